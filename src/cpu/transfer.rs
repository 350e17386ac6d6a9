//! From rows of a layout to walks of the vector kernels.
//!
//! A [`Transfer`] knows one layer's keys or values, where they come from and where they go. It cuts a
//! span of rows into *runs* that lie at constant strides on both sides, and hands each run to a kernel:
//!
//! - Contiguous head vectors: one walk over heads and rows turns the window; the dimensions around it
//!   move by a second walk, a tile at a time, so that both find the tile in the nearest cache.
//! - Cut-up head vectors (`x`-packed pages): a run of rows first moves, pack by pack, and is then turned
//!   in place. Neighbouring rows of a pack are contiguous, so one kernel vector takes the same
//!   dimensions of many rows, with the cosines and sines of all of them.

use std::cmp::Reverse;
use std::ops::Range;

use super::arch::{self, Kernels, Walk};
use crate::layout::Axis;
use crate::rotations::{Table, Turn, TurnedSpan};
use crate::{KeyLayout, Pairing, oracle};

/// Bytes of a tile that is passed over more than once.
const TILE: usize = 16 << 10;

/// Rows of a pack that one kernel vector takes at most: enough to fill wide registers many times over.
const STRETCH: usize = 64;

/// Rows of one layer's keys or values on their way from one place to another, or turning in place.
#[derive(Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) src: End<'a>,
    pub(super) dst: End<'a>,
    /// How keys turn. `None`: values, and keys without a rope.
    pub(super) table: Option<&'a Table>,
    /// Whether whole rows go from source to destination, or only the window turns where it is.
    pub(super) moves: bool,
}

/// A layout and the buffer that it describes.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) layout: &'a KeyLayout<'a>,
    pub(super) base: *mut u8,
}

// SAFETY: an `End` is an address and a description. Whoever dereferences it answers for the memory: see
// `Transfer::span`, whose callers give different threads different rows or different heads.
unsafe impl Send for End<'_> {}
// SAFETY: as above; a shared `End` gives no access by itself.
unsafe impl Sync for End<'_> {}

/// The part of the rows that one call works on.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) batch: usize,
    pub(super) heads: Range<usize>,
}

/// Rows at constant strides on both sides.
#[derive(Clone, Copy)]
struct Run {
    /// The first row's first element at the source.
    src: usize,
    /// The first row's first element at the destination.
    dst: usize,
    /// The first row, counted from the start of the span.
    first: usize,
    rows: usize,
    /// To be walked from the last row to the first.
    backwards: bool,
}

/// By what the rows of a span turn.
#[derive(Clone, Copy)]
struct Angles<'a> {
    table: &'a Table,
    turn: Turn,
}

impl<'a> Angles<'a> {
    /// Whether all rows turn by one row of the table.
    fn alike(&self) -> bool {
        self.turn.step == 0
    }

    /// The cosines and sines of row `row` of the span.
    fn row(&self, row: usize) -> (&'a [f32], &'a [f32]) {
        let step = self.turn.step as usize;
        self.table.row(self.turn.first as usize + row * step)
    }
}

impl Transfer<'_> {
    /// Bytes of one row of `heads` heads that this transfer reads.
    pub(super) fn row_bytes(&self, heads: usize) -> usize {
        let dims = match self.table {
            Some(table) if !self.moves => table.rope().rotary_dim(),
            _ => self.dst.layout.head_dim(),
        };
        let bytes = dims.saturating_mul(self.dst.layout.element().size());
        heads.saturating_mul(bytes)
    }

    /// Brings rows `rows` of `span`, counted from its start, to their destination. `scratch` is what this
    /// thread reuses from call to call.
    ///
    /// # Safety
    /// `check` has passed for these layouts, rows and buffers, so every address below is inside its
    /// buffer. Nothing else reads or writes the part's destination elements meanwhile, nor writes its
    /// source elements. The bases are valid for reads (`src`) and writes (`dst`) of the lengths that
    /// `check` was given.
    pub(super) unsafe fn span(
        &self,
        span: &TurnedSpan,
        Range { mut start, mut end }: Range<usize>,
        part: &Part,
        scratch: &mut Groups,
    ) {
        let turn = self.table.and_then(|table| span.turn(table));
        let angles = self
            .table
            .zip(turn)
            .map(|(table, turn)| Angles { table, turn });
        if angles.is_none() && !self.moves {
            return;
        }
        let (src, dst) = (self.src.layout, self.dst.layout);
        let packed = self.packed();
        let backwards = self.moves && span.dst > span.src;
        let tile = self.tile(packed, part.heads.len(), angles);
        if let Some(angles) = angles.filter(|_| packed) {
            scratch.lay_out(dst, angles, end - start);
        }
        while start < end {
            let left = (end - start).min(tile);
            let (first, rows) = if backwards {
                let rows = src.run_before(span.src + end, left);
                let rows = dst.run_before(span.dst + end, rows);
                end -= rows;
                (end, rows)
            } else {
                let rows = src.run_from(span.src + start, left);
                let rows = dst.run_from(span.dst + start, rows);
                start += rows;
                (start - rows, rows)
            };
            let run = Run {
                src: src.row(part.batch, span.src + first),
                dst: dst.row(part.batch, span.dst + first),
                first,
                rows,
                backwards,
            };
            // SAFETY: the run's rows are the caller's.
            unsafe {
                if packed {
                    if self.moves {
                        self.move_dims(run, &part.heads, 0..dst.head_dim());
                    }
                    if let Some(angles) = angles {
                        self.turn_groups(run, &part.heads, angles, scratch);
                    }
                } else {
                    self.turn_and_move(run, &part.heads, angles);
                }
            }
        }
    }

    /// Whether head vectors are cut into packs, here or there.
    fn packed(&self) -> bool {
        self.src.layout.packs.len > 1 || self.dst.layout.packs.len > 1
    }

    /// Bytes that a thread's [`Groups`] for it take at most.
    pub(super) fn groups(&self) -> usize {
        let table = self.table.filter(|_| self.packed());
        table.map_or(0, |table| {
            Groups::bytes(self.dst.layout, table.rope().pairs())
        })
    }

    /// Rows that are passed over together; all of them where one pass does everything.
    fn tile(&self, packed: bool, heads: usize, angles: Option<Angles<'_>>) -> usize {
        let Some(angles) = angles else {
            return usize::MAX;
        };
        let rows = (TILE / self.row_bytes(heads).max(1)).max(1);
        let whole = angles.table.rope().rotary_dim() == self.dst.layout.head_dim();
        if packed {
            rows.max(STRETCH)
        } else if !angles.alike() {
            1
        } else if self.moves && !whole {
            rows
        } else {
            usize::MAX
        }
    }

    /// A run of contiguous head vectors: turns the window and moves what is around it.
    ///
    /// # Safety
    /// As [`span`](Self::span); neither side is packed; the rows turn alike, or there is one.
    unsafe fn turn_and_move(&self, run: Run, heads: &Range<usize>, angles: Option<Angles<'_>>) {
        let layout = self.dst.layout;
        let mut window = 0..0;
        if let Some(angles) = angles {
            let rope = angles.table.rope();
            let (cos, sin) = angles.row(run.first);
            window = rope.window();
            let half_stride = rope.pairs() as isize;
            let turn = arch::Turn {
                half_stride,
                cos,
                sin,
            };
            let kernel = self.kernels.turn(layout.element(), rope.pairing());
            let steps = [
                Steps::new(heads.len(), self.src.layout.heads, layout.heads),
                Steps::new(run.rows, self.src.layout.rows, layout.rows),
            ];
            let (walk, (to_first, from_first)) = walk(steps, run.backwards);
            let (to, from) = self.at(run, 0, heads.start, window.start);
            let size = layout.element().size();
            let to = to.wrapping_add(to_first * size);
            let from = from.wrapping_add(from_first * size);
            // SAFETY: a window lies inside its head vector, which is the caller's; head vectors do not
            // overlap each other (`KeyLayout::check`), and rows are walked in the order of the move.
            unsafe { kernel(to, from, &walk, &turn) };
        }
        if self.moves {
            for around in [0..window.start, window.end..layout.head_dim()] {
                // SAFETY: passed on.
                unsafe { self.move_dims(run, heads, around) };
            }
        }
    }

    /// Moves some dimensions of a run as they are.
    ///
    /// # Safety
    /// As [`span`](Self::span).
    unsafe fn move_dims(&self, run: Run, heads: &Range<usize>, dims: Range<usize>) {
        let (src, dst) = (self.src.layout, self.dst.layout);
        let size = dst.element().size();
        let mut dim = dims.start;
        while dim < dims.end {
            // As many as are contiguous on both sides.
            let mut len = (dims.end - dim)
                .min(src.pack - dim % src.pack)
                .min(dst.pack - dim % dst.pack);
            let packs = if len == src.pack && len == dst.pack {
                (dims.end - dim) / len
            } else {
                1
            };
            let (to, from) = self.at(run, 0, heads.start, dim);
            dim += len * packs;

            let mut steps = [
                Steps::new(packs, src.packs, dst.packs),
                Steps::new(heads.len(), src.heads, dst.heads),
                Steps::new(run.rows, src.rows, dst.rows),
            ];
            // What touches is one longer piece.
            while let Some(touching) = steps.iter_mut().find(|s| s.len > 1 && s.over(len)) {
                len *= touching.len;
                touching.len = 1;
            }
            steps.sort_by_key(|s| (s.len > 1, Reverse(s.dst)));
            let [outermost, outer, inner] = steps;
            let (walk, (to_first, from_first)) = walk([outer, inner], run.backwards);
            let walk = walk.scaled(size as isize);
            for step in 0..outermost.len {
                let step = if run.backwards {
                    outermost.len - 1 - step
                } else {
                    step
                };
                let to = to.wrapping_add((to_first + step * outermost.dst) * size);
                let from = from.wrapping_add((from_first + step * outermost.src) * size);
                // SAFETY: these dimensions of these rows are the caller's; a piece is read before it is
                // written, and rows are walked in the order of the move.
                unsafe { (self.kernels.move_rows)(to, from, &walk, len * size) };
            }
        }
    }

    /// Turns a run of cut-up head vectors where they lie, at the destination.
    ///
    /// # Safety
    /// As [`span`](Self::span); `groups` are laid out for the destination and the angles.
    unsafe fn turn_groups(
        &self,
        run: Run,
        heads: &Range<usize>,
        angles: Angles<'_>,
        groups: &mut Groups,
    ) {
        let layout = self.dst.layout;
        let here = Transfer {
            src: self.dst,
            ..*self
        };
        let run = Run {
            src: run.dst,
            ..run
        };
        let mut row = 0;
        while row < run.rows {
            // All whole stretches that turn alike at once, then what is left.
            let stretch = groups.stretch.min(run.rows - row);
            let stretches = if angles.alike() {
                (run.rows - row) / stretch
            } else {
                groups.fill(angles, run.first + row, stretch);
                1
            };
            // A whole block is one group, if the layout lets it be.
            let whole = groups.block.as_slice();
            let list = if stretch == layout.rows.len && !whole.is_empty() {
                whole
            } else {
                &groups.list
            };
            for group in list {
                let kernel = self.kernels.turn(layout.element(), group.pairing);
                // Rows that touch are one vector; those that do not are a vector each, and a call each
                // where their angles differ.
                let (calls, vectors, rows) = match (group.touching, angles.alike()) {
                    (true, _) => (1, stretches, stretch),
                    (false, true) => (1, stretches * stretch, 1),
                    (false, false) => (stretch, 1, 1),
                };
                for call in 0..calls {
                    let (cos, sin) = groups.table(group, call, rows);
                    let turn = arch::Turn {
                        half_stride: group.half_stride,
                        cos,
                        sin,
                    };
                    let (at, _) = here.at(run, row + call, heads.start, group.dim);
                    let rows = Axis::new(vectors, layout.rows.stride * rows);
                    let steps = [
                        Steps::new(heads.len(), layout.heads, layout.heads),
                        Steps::new(vectors, rows, rows),
                    ];
                    let (walk, _) = walk(steps, false);
                    // SAFETY: in place; the group's dimensions of these rows are the caller's, and no
                    // two vectors share an element.
                    unsafe { kernel(at, at, &walk, &turn) };
                }
            }
            row += stretch * stretches;
        }
    }

    /// Destination and source of one head vector's dimension `dim`, `row` rows into the run.
    fn at(&self, run: Run, row: usize, head: usize, dim: usize) -> (*mut u8, *const u8) {
        let address = |end: End<'_>, first: usize| {
            let layout = end.layout;
            let element =
                first + row * layout.rows.stride + head * layout.heads.stride + layout.dim(dim);
            end.base.wrapping_add(element * layout.element().size())
        };
        (
            address(self.dst, run.dst),
            address(self.src, run.src).cast_const(),
        )
    }
}

/// One loop of a walk: so many steps, so many elements apart at the source and the destination.
#[derive(Clone, Copy)]
struct Steps {
    len: usize,
    src: usize,
    dst: usize,
}

impl Steps {
    /// Where there is one index, the strides may be any, and nobody computes with them. (As a product: with a choice in
    /// its place, the compiler's splice of f16 rows of 64 and 80 is slower by 5 and 10 %.)
    fn new(len: usize, src: Axis, dst: Axis) -> Steps {
        let used = usize::from(len > 1);
        Steps {
            len,
            src: used * src.stride,
            dst: used * dst.stride,
        }
    }

    /// Whether a step goes over just `elements` elements on both sides.
    fn over(&self, elements: usize) -> bool {
        self.src == elements && self.dst == elements
    }
}

/// Two loops as a walk, the finer one inside, and where it begins: destination and source, in elements from
/// the lowest address. Backwards it goes down in both: in memory order, whichever loop is the rows'.
fn walk(mut steps: [Steps; 2], backwards: bool) -> (Walk, (usize, usize)) {
    steps.sort_by_key(|s| (s.len > 1, Reverse(s.dst)));
    let [outer, inner] = steps;
    let last = |stride: fn(&Steps) -> usize| steps.iter().map(|s| (s.len - 1) * stride(s)).sum();
    let first = if backwards {
        (last(|s| s.dst), last(|s| s.src))
    } else {
        (0, 0)
    };
    let sign = if backwards { -1 } else { 1 };
    let walk = Walk {
        outer: outer.len,
        inner: inner.len,
        src_outer: sign * outer.src as isize,
        src_inner: sign * inner.src as isize,
        dst_outer: sign * outer.dst as isize,
        dst_inner: sign * inner.dst as isize,
    };
    (walk, first)
}

/// The pairs of a window in a layout that cuts up its head vectors: groups whose first and whose second
/// elements are each contiguous, with their cosines and sines for a stretch of rows. Each thread has one,
/// and lays it out anew for each span that it works on.
#[derive(Default)]
pub(super) struct Groups {
    /// Rows that the tables are for.
    stretch: usize,
    list: Vec<Group>,
    /// All groups as one, for a whole block: its packs touch, so that the groups continue each other.
    block: Option<Group>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

#[derive(Clone)]
struct Group {
    /// How the kernel finds a pair's second element.
    pairing: Pairing,
    half_stride: isize,
    /// Dimension of the first pair's first element.
    dim: usize,
    /// Whether the same dimensions of neighbouring rows are contiguous: the group fills its packs.
    touching: bool,
    /// The pairs of one row.
    pairs: Range<usize>,
    /// Where the cosines of the first row begin; those of each further row follow.
    table: usize,
}

impl Group {
    /// Contiguous elements of a row from the first pair's first element on.
    fn elements(&self) -> usize {
        match self.pairing {
            Pairing::HalfSplit => self.pairs.len(),
            Pairing::Interleaved => 2 * self.pairs.len(),
        }
    }
}

impl Groups {
    /// Bytes that they take at most, while their lists grow.
    fn bytes(layout: &KeyLayout<'_>, pairs: usize) -> usize {
        let stretch = STRETCH.min(layout.rows.len);
        3 * pairs * (size_of::<Group>() + 2 * size_of::<f32>() * stretch)
    }

    /// For rows of `layout` that turn by `angles`, and `rows` of them at most.
    fn lay_out(&mut self, layout: &KeyLayout<'_>, angles: Angles<'_>, rows: usize) {
        let rope = angles.table.rope();
        let pack = layout.pack;
        let left_in_pack = |dim: usize| pack - dim % pack;
        self.stretch = STRETCH.min(layout.rows.len).min(rows);
        self.list.clear();
        let mut pair = 0;
        while pair < rope.pairs() {
            let (a, b) = oracle::pair(rope, pair);
            let left = rope.pairs() - pair;
            let (pairing, pairs) = match rope.pairing() {
                Pairing::HalfSplit => {
                    let pairs = left.min(left_in_pack(a)).min(left_in_pack(b));
                    (Pairing::HalfSplit, pairs)
                }
                // A pair cut by the end of a pack: one pair, its halves at any distance.
                Pairing::Interleaved if left_in_pack(a) == 1 => (Pairing::HalfSplit, 1),
                Pairing::Interleaved => (Pairing::Interleaved, left.min(left_in_pack(a) / 2)),
            };
            let mut group = Group {
                pairing,
                half_stride: layout.dim(b) as isize - layout.dim(a) as isize,
                dim: a,
                touching: false,
                pairs: pair..pair + pairs,
                table: pair * self.stretch,
            };
            group.touching = group.elements() == pack && layout.rows.stride == pack;
            self.list.push(group);
            pair += pairs;
        }
        let continued = |groups: &[Group]| {
            let [group, next] = groups else { return true };
            group.pairing == next.pairing
                && group.half_stride == next.half_stride
                && group.dim + group.elements() == next.dim
        };
        let whole = self.stretch == layout.rows.len
            && layout.rows.len.checked_mul(pack) == Some(layout.packs.stride)
            && self.list.iter().all(|group| group.touching)
            && self.list.windows(2).all(continued);
        self.block = whole.then(|| Group {
            pairs: 0..rope.pairs(),
            ..self.list[0].clone()
        });
        if angles.alike() {
            self.fill(angles, 0, self.stretch);
        }
    }

    /// The cosines and sines of rows `first .. first + rows` of the span; `rows` is a stretch at most.
    fn fill(&mut self, angles: Angles<'_>, first: usize, rows: usize) {
        let len = self.stretch * angles.table.rope().pairs();
        self.cos.resize(len, 0.0);
        self.sin.resize(len, 0.0);
        for row in 0..rows {
            let (cos, sin) = angles.row(first + row);
            for group in &self.list {
                let to = group.table + row * group.pairs.len();
                let to = to..to + group.pairs.len();
                self.cos[to.clone()].copy_from_slice(&cos[group.pairs.clone()]);
                self.sin[to].copy_from_slice(&sin[group.pairs.clone()]);
            }
        }
    }

    /// The cosines and sines of a group for `rows` rows from row `first` of the stretch on.
    fn table(&self, group: &Group, first: usize, rows: usize) -> (&[f32], &[f32]) {
        let pairs = group.pairs.len();
        let range = group.table + first * pairs..group.table + (first + rows) * pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
