//! Edits in old coordinates, and the plan that they make.

use std::ops::Range;

use super::{NewSpan, Plan, Span, check_rows};
use crate::{Error, Result};

/// Replace the old tokens `range` by `insert` new ones, in old coordinates: the indices of tokens
/// before any edit of the same list.
///
/// An empty `range` inserts before the old token of that index, or at the end; `insert` 0 deletes;
/// both together do nothing, wherever in the sequence it is.
///
/// The edits of a list may come in any order. Their ranges must not overlap, and nothing may be
/// inserted between two tokens that another edit removes; they may touch. The new sequence then
/// follows the old one: insertions at the same point stay in the order of the list, and an
/// insertion at the start of a replaced range comes before its replacement, one at the end after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Old tokens to remove; empty to insert only.
    pub range: Range<usize>,
    /// Number of tokens to put in their place.
    pub insert: usize,
}

impl Edit {
    /// Insert `tokens` tokens before old token `at` (at the end, if `at` is the number of tokens).
    pub fn insert(at: usize, tokens: usize) -> Edit {
        Edit::replace(at..at, tokens)
    }

    /// Delete the old tokens `range`.
    pub fn delete(range: Range<usize>) -> Edit {
        Edit::replace(range, 0)
    }

    /// Replace the old tokens `range` by `tokens` new ones.
    pub fn replace(range: Range<usize>, tokens: usize) -> Edit {
        Edit {
            range,
            insert: tokens,
        }
    }

    fn does_nothing(&self) -> bool {
        self.range.is_empty() && self.insert == 0
    }

    /// The edit's place, for messages.
    fn place(&self) -> String {
        let Range { start, end } = self.range;
        if start == end {
            format!("the insertion at {start}")
        } else {
            format!("range {start}..{end}")
        }
    }
}

/// Indices of the edits, in old order: memory that [`Plan::set_edits`] works in and keeps for the
/// next time. It is no part of what a plan says, so it equals any other.
#[derive(Clone, Default)]
pub(super) struct Order(Vec<usize>);

impl PartialEq for Order {
    fn eq(&self, _: &Order) -> bool {
        true
    }
}

impl Eq for Order {}

impl Plan {
    /// The plan of any number of edits to `rows` tokens, of which token `i` lies in row `i` and is
    /// at position `i`.
    ///
    /// # Errors
    ///
    /// [`Error::Edit`] if a range ends before it starts or lies outside the sequence, if two edits
    /// overlap (`index` is that of the later one in the list, the message names the other), or if
    /// the new tokens of an edit push the sequence past position `i32::MAX`; [`Error::Plan`] if the
    /// old sequence already passes it.
    pub fn from_edits(rows: usize, edits: &[Edit]) -> Result<Plan> {
        Plan::from_edits_at(0, rows, edits)
    }

    /// [`Plan::from_edits`] for a sequence whose row `i` is at position `first_position + i`,
    /// before and after.
    ///
    /// # Errors
    ///
    /// As [`Plan::from_edits`]; [`Error::Plan`] also if `first_position` is negative.
    pub fn from_edits_at(first_position: i32, rows: usize, edits: &[Edit]) -> Result<Plan> {
        let mut plan = Plan::default();
        plan.set_edits_at(first_position, rows, edits)?;
        Ok(plan)
    }

    /// Makes this plan that of [`Plan::from_edits`], in the memory it has: nothing is allocated
    /// once the plan has held as many spans.
    ///
    /// # Errors
    ///
    /// As [`Plan::from_edits`]; the plan is then as it was.
    pub fn set_edits(&mut self, rows: usize, edits: &[Edit]) -> Result<()> {
        self.set_edits_at(0, rows, edits)
    }

    /// Makes this plan that of [`Plan::from_edits_at`], in the memory it has: nothing is allocated
    /// once the plan has held as many spans.
    ///
    /// # Errors
    ///
    /// As [`Plan::from_edits_at`]; the plan is then as it was.
    pub fn set_edits_at(&mut self, first_position: i32, rows: usize, edits: &[Edit]) -> Result<()> {
        let mut order = std::mem::take(&mut self.order);
        let checked = order.arrange(first_position, rows, edits);
        if checked.is_ok() {
            self.build(
                first_position,
                rows,
                order.0.iter().map(|&index| &edits[index]),
            );
        }
        self.order = order;
        checked
    }

    /// The plan of checked edits, given in old order.
    fn build<'a>(
        &mut self,
        first_position: i32,
        rows: usize,
        edits: impl Iterator<Item = &'a Edit>,
    ) {
        // No row is past `i32::MAX - first_position`: `arrange` has seen to it. Where a span is
        // empty, its row may be one past that, and then its position, which nobody reads, wraps.
        let position = |row: usize| first_position.wrapping_add(row as i32);
        let kept = |src: usize, dst: usize, end: usize| Span {
            src,
            dst,
            len: end - src,
            old_position: position(src),
            new_position: position(dst),
        };

        self.start(rows);
        let mut src = 0;
        for edit in edits {
            self.keep(kept(src, self.new_rows, edit.range.start));
            let row = self.new_rows;
            self.open(NewSpan {
                row,
                len: edit.insert,
                position: position(row),
            });
            src = edit.range.end;
        }
        self.keep(kept(src, self.new_rows, rows));
        self.finish();
    }
}

impl Order {
    /// Checks every edit, alone and beside the others, and puts those that do something in old
    /// order.
    fn arrange(&mut self, first_position: i32, rows: usize, edits: &[Edit]) -> Result<()> {
        let room = check_rows(first_position, rows)?;
        for (index, edit) in edits.iter().enumerate() {
            check_range(index, edit, rows)?;
        }

        self.0.clear();
        self.0
            .extend((0..edits.len()).filter(|&index| !edits[index].does_nothing()));
        // An insertion at the start of another's range ends first, and so comes first. The index
        // keeps the order of the list, and spares a stable sort, which would allocate.
        self.0.sort_unstable_by_key(|&index| {
            (edits[index].range.start, edits[index].range.end, index)
        });

        // As `build` walks: `src` and `dst` are the next rows before and after.
        let (mut src, mut dst) = (0, 0);
        let (mut previous, mut inserting) = (0, 0);
        for &index in &self.0 {
            let edit = &edits[index];
            if edit.range.start < src {
                return Err(overlap(edits, index, previous));
            }
            dst = advance(edits, inserting, dst, edit.range.start - src, room)?;
            if edit.insert > 0 {
                inserting = index;
            }
            dst = advance(edits, inserting, dst, edit.insert, room)?;
            src = edit.range.end;
            previous = index;
        }
        advance(edits, inserting, dst, rows - src, room)?;
        Ok(())
    }
}

fn check_range(index: usize, edit: &Edit, rows: usize) -> Result<()> {
    let Range { start, end } = edit.range;
    let problem = if start > end {
        format!("range {start}..{end} ends before it starts")
    } else if end > rows {
        format!("{} is outside the {rows} old tokens", edit.place())
    } else {
        return Ok(());
    };
    Err(Error::Edit { index, problem })
}

fn overlap(edits: &[Edit], one: usize, other: usize) -> Error {
    let (earlier, index) = (one.min(other), one.max(other));
    let problem = format!(
        "{} overlaps {} of edit {earlier}",
        edits[index].place(),
        edits[earlier].place()
    );
    Error::Edit { index, problem }
}

/// The row `len` rows after `row`, if there is room for them. Rows fit unless something was
/// inserted before them, so there is always an `inserting` edit to name.
fn advance(edits: &[Edit], inserting: usize, row: usize, len: usize, room: usize) -> Result<usize> {
    if len > room - row {
        let problem = format!(
            "inserting {} tokens pushes the sequence past the largest position, {}",
            edits[inserting].insert,
            i32::MAX
        );
        return Err(Error::Edit {
            index: inserting,
            problem,
        });
    }
    Ok(row + len)
}
