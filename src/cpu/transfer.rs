//! From rows of a layout to walks of the vector kernels.
//!
//! A [`Transfer`] knows one layer's keys or values, where they come from and where they go. It cuts a
//! span of rows into *runs* that lie at constant strides on both sides, and hands each run to a kernel:
//!
//! - Contiguous head vectors: one walk over heads and rows turns the window; the dimensions around it
//!   move by a second walk, a tile at a time, so that both find the tile in the nearest cache.
//! - Cut-up head vectors (`x`-packed pages): a run of rows first moves, pack by pack, and is then turned
//!   in place. Neighbouring rows of a pack are contiguous, so one kernel vector takes the same
//!   dimensions of many rows, with a table row repeated that often.

use std::ops::Range;

use super::arch::{self, Kernels, Walk};
use crate::rotations::{Table, TurnedSpan};
use crate::{KeyLayout, Pairing, Rope, oracle};

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
    rows: usize,
    /// To be walked from the last row to the first.
    backwards: bool,
}

/// One row of a table.
type CosSin<'a> = (&'a [f32], &'a [f32]);

impl Transfer<'_> {
    /// Bytes of one row of `heads` heads that this transfer reads.
    pub(super) fn row_bytes(&self, heads: usize) -> usize {
        let dims = match self.table {
            Some(table) if !self.moves => table.rope().rotary_dim(),
            _ => self.dst.layout.head_dim(),
        };
        heads * dims * self.dst.layout.element().size()
    }

    /// Brings rows `rows` of `span`, counted from its start, to their destination.
    ///
    /// # Safety
    /// `check` has passed for these layouts, rows and buffers, so every address below is inside its
    /// buffer. Nothing else reads or writes the part's destination elements meanwhile, nor writes its
    /// source elements. The bases are valid for reads (`src`) and writes (`dst`) of the lengths that
    /// `check` was given.
    pub(super) unsafe fn span(&self, span: &TurnedSpan, rows: Range<usize>, part: &Part) {
        let backwards = self.moves && span.dst > span.src;
        // SAFETY: passed on; the rows of the pieces below are those of `rows`.
        unsafe {
            match self.table.zip(span.turn) {
                None if !self.moves => {}
                None => self.rows(span, rows, part, backwards, None),
                Some((table, turn)) if turn.step == 0 => {
                    let row = Some(table.row(turn.first as usize));
                    self.rows(span, rows, part, backwards, row);
                }
                Some((table, turn)) => {
                    let one = |row: usize| {
                        let cos_sin = table.row(turn.first as usize + row);
                        self.rows(span, row..row + 1, part, backwards, Some(cos_sin));
                    };
                    if backwards {
                        rows.rev().for_each(one);
                    } else {
                        rows.for_each(one);
                    }
                }
            }
        }
    }

    /// Rows that all turn alike, in runs.
    ///
    /// # Safety
    /// As [`span`](Self::span).
    unsafe fn rows(
        &self,
        span: &TurnedSpan,
        Range { mut start, mut end }: Range<usize>,
        part: &Part,
        backwards: bool,
        cos_sin: Option<CosSin<'_>>,
    ) {
        let (src, dst) = (self.src.layout, self.dst.layout);
        let rope = self.table.map(Table::rope);
        let packed = src.packs.len > 1 || dst.packs.len > 1;
        let groups = match (rope, cos_sin) {
            (Some(rope), Some(row)) if packed => Groups::new(dst, rope, row),
            _ => Groups::default(),
        };
        let tile = self.tile(packed, part.heads.len(), cos_sin);
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
                rows,
                backwards,
            };
            // SAFETY: the run's rows are the caller's.
            unsafe {
                if packed {
                    if self.moves {
                        self.move_dims(run, &part.heads, 0..dst.head_dim());
                    }
                    self.turn_groups(run, &part.heads, &groups);
                } else {
                    self.turn_and_move(run, &part.heads, rope.zip(cos_sin));
                }
            }
        }
    }

    /// Rows that are passed over together; all of them where one pass does everything.
    fn tile(&self, packed: bool, heads: usize, cos_sin: Option<CosSin<'_>>) -> usize {
        let whole = |(cos, _): CosSin<'_>| 2 * cos.len() == self.dst.layout.head_dim();
        let rows = (TILE / self.row_bytes(heads).max(1)).max(1);
        match cos_sin {
            Some(_) if packed => rows.max(STRETCH),
            Some(row) if self.moves && !whole(row) => rows,
            _ => usize::MAX,
        }
    }

    /// A run of contiguous head vectors: turns the window and moves what is around it.
    ///
    /// # Safety
    /// As [`span`](Self::span); neither side is packed.
    unsafe fn turn_and_move(
        &self,
        run: Run,
        heads: &Range<usize>,
        turn: Option<(&Rope, CosSin<'_>)>,
    ) {
        let layout = self.dst.layout;
        let mut window = 0..0;
        if let Some((rope, (cos, sin))) = turn {
            window = rope.window();
            let half_stride = rope.pairs() as isize;
            let turn = arch::Turn {
                half_stride,
                cos,
                sin,
            };
            let kernel = self.kernels.turn(layout.element(), rope.pairing());
            let first = if run.backwards { run.rows - 1 } else { 0 };
            let (to, from) = self.at(run, first, heads.start, window.start);
            let walk = self.walk(run.rows, 1, heads.len(), run.backwards);
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
            let len = (dims.end - dim)
                .min(src.pack - dim % src.pack)
                .min(dst.pack - dim % dst.pack);
            // Where neighbouring rows touch, the run is one long row.
            let touching = src.rows.stride == len && dst.rows.stride == len;
            let (rows, elements) = if touching {
                (1, run.rows * len)
            } else {
                (run.rows, len)
            };
            let first = if run.backwards { rows - 1 } else { 0 };
            let (to, from) = self.at(run, first, heads.start, dim);
            let walk = self
                .walk(rows, 1, heads.len(), run.backwards)
                .scaled(size as isize);
            // SAFETY: these dimensions of these rows are the caller's; a row is read before it is
            // written, and rows are walked in the order of the move.
            unsafe { (self.kernels.move_rows)(to, from, &walk, elements * size) };
            dim += len;
        }
    }

    /// Turns a run of cut-up head vectors where they lie, at the destination.
    ///
    /// # Safety
    /// As [`span`](Self::span).
    unsafe fn turn_groups(&self, run: Run, heads: &Range<usize>, groups: &Groups) {
        let layout = self.dst.layout;
        let here = Transfer {
            src: self.dst,
            ..*self
        };
        let run = Run {
            src: run.dst,
            ..run
        };
        for group in &groups.list {
            let kernel = self.kernels.turn(layout.element(), group.pairing);
            let mut row = 0;
            while row < run.rows {
                // All whole stretches in one walk, then what is left.
                let stretch = group.stretch.min(run.rows - row);
                let stretches = (run.rows - row) / stretch;
                let (cos, sin) = groups.row(group, stretch);
                let turn = arch::Turn {
                    half_stride: group.half_stride,
                    cos,
                    sin,
                };
                let (at, _) = here.at(run, row, heads.start, group.dim);
                let walk = here.walk(stretches, stretch, heads.len(), false);
                // SAFETY: in place; the group's dimensions of these rows are the caller's, and no two
                // stretches share an element.
                unsafe { kernel(at, at, &walk, &turn) };
                row += stretch * stretches;
            }
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

    /// A walk over `heads` heads of `steps` steps, each `rows` rows long, finest stride inside.
    fn walk(&self, steps: usize, rows: usize, heads: usize, backwards: bool) -> Walk {
        let stride = |end: End<'_>| {
            let stride = (end.layout.rows.stride * rows) as isize;
            (
                if backwards { -stride } else { stride },
                end.layout.heads.stride as isize,
            )
        };
        let (src_rows, src_heads) = stride(self.src);
        let (dst_rows, dst_heads) = stride(self.dst);
        if dst_heads < dst_rows.abs() {
            Walk {
                outer: steps,
                inner: heads,
                src_outer: src_rows,
                src_inner: src_heads,
                dst_outer: dst_rows,
                dst_inner: dst_heads,
            }
        } else {
            Walk {
                outer: heads,
                inner: steps,
                src_outer: src_heads,
                src_inner: src_rows,
                dst_outer: dst_heads,
                dst_inner: dst_rows,
            }
        }
    }
}

/// The pairs of a window in a layout that cuts up its head vectors: groups whose first and whose second
/// elements are each contiguous, with their table rows.
#[derive(Default)]
struct Groups {
    list: Vec<Group>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

struct Group {
    /// How the kernel finds a pair's second element.
    pairing: Pairing,
    half_stride: isize,
    /// Dimension of the first pair's first element.
    dim: usize,
    /// Rows that one kernel vector takes.
    stretch: usize,
    /// Pairs of one row.
    pairs: usize,
    /// Where the group's table begins: `stretch` times the cos and sin of its pairs.
    table: usize,
}

impl Groups {
    fn new(layout: &KeyLayout<'_>, rope: &Rope, (cos, sin): CosSin<'_>) -> Groups {
        let pack = layout.pack;
        let left_in_pack = |dim: usize| pack - dim % pack;
        let mut groups = Groups::default();
        let mut pair = 0;
        while pair < rope.pairs() {
            let (a, b) = oracle::pair(rope, pair);
            let left = rope.pairs() - pair;
            let (pairing, pairs, elements) = match rope.pairing() {
                Pairing::HalfSplit => {
                    let pairs = left.min(left_in_pack(a)).min(left_in_pack(b));
                    (Pairing::HalfSplit, pairs, pairs)
                }
                // A pair cut by the end of a pack: one pair, its halves at any distance.
                Pairing::Interleaved if left_in_pack(a) == 1 => (Pairing::HalfSplit, 1, 1),
                Pairing::Interleaved => {
                    let pairs = left.min(left_in_pack(a) / 2);
                    (Pairing::Interleaved, pairs, 2 * pairs)
                }
            };
            // The same dimensions of neighbouring rows are contiguous if the group fills its packs.
            let touching = elements == pack && layout.rows.stride == pack;
            let stretch = if touching {
                STRETCH.min(layout.rows.len)
            } else {
                1
            };
            groups.list.push(Group {
                pairing,
                half_stride: layout.dim(b) as isize - layout.dim(a) as isize,
                dim: a,
                stretch,
                pairs,
                table: groups.cos.len(),
            });
            for _ in 0..stretch {
                groups.cos.extend_from_slice(&cos[pair..pair + pairs]);
                groups.sin.extend_from_slice(&sin[pair..pair + pairs]);
            }
            pair += pairs;
        }
        groups
    }

    /// The table row of a group for a vector of `stretch` rows.
    fn row(&self, group: &Group, stretch: usize) -> CosSin<'_> {
        let range = group.table..group.table + group.pairs * stretch;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
