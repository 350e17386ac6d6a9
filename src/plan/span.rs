//! What a plan is made of: runs of rows that survive, and runs of rows to encode.

/// A run of rows that survive: `len` rows from `src` go to `dst`; row `i` of the run was at
/// position `old_position + i` and is now at `new_position + i`.
///
/// Rows are counted in cache rows (one per token), positions are what the rotary encoding was
/// given. In a [`Plan`](crate::Plan) `len` is at least one and no position is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First row before.
    pub src: usize,
    /// First row after.
    pub dst: usize,
    /// Number of rows.
    pub len: usize,
    /// Position that the key in row `src` was rotated to.
    pub old_position: i32,
    /// Position that the key in row `dst` has to be rotated to.
    pub new_position: i32,
}

impl Span {
    /// By how many positions every key of the span turns: `new_position - old_position`.
    pub fn delta(&self) -> i32 {
        self.new_position - self.old_position
    }

    /// Whether the keys of the span change position.
    pub fn turns(&self) -> bool {
        self.old_position != self.new_position
    }

    /// Whether the rows of the span, keys and values, change place.
    pub fn moves(&self) -> bool {
        self.src != self.dst
    }

    /// Whether anything happens to the span: it turns, moves, or both.
    pub fn is_affected(&self) -> bool {
        self.turns() || self.moves()
    }

    /// Whether `next` carries on where this span ends, in rows and in both positions.
    pub(super) fn continues_in(&self, next: &Span) -> bool {
        self.src + self.len == next.src
            && self.dst + self.len == next.dst
            && is_run(self.old_position, self.len, next.old_position)
            && is_run(self.new_position, self.len, next.new_position)
    }
}

/// A run of new rows, which the engine has to encode: rows `row..row + len`, counted after the
/// edit, at positions `position..position + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NewSpan {
    /// First row, counted after the edit.
    pub row: usize,
    /// Number of rows, at least one in a [`Plan`](crate::Plan).
    pub len: usize,
    /// Position of the first row.
    pub position: i32,
}

impl NewSpan {
    /// Whether `next` carries on where this span ends.
    pub(super) fn continues_in(&self, next: &NewSpan) -> bool {
        self.row + self.len == next.row && is_run(self.position, self.len, next.position)
    }
}

/// Whether `len` positions from `first` on end right before `next`. A run may end at the largest
/// position, so the position behind it need not fit an `i32`.
fn is_run(first: i32, len: usize, next: i32) -> bool {
    i64::from(first) + len as i64 == i64::from(next)
}
