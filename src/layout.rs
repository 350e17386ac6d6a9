//! Where the rows of a cache lie: one descriptor, by strides and an optional block table, for every
//! unquantised cache layout in use.
//!
//! A *row* is what one token left in one layer: `heads` vectors of `head_dim` elements. Rows are
//! numbered in the order of the sequence; the layout says where row `r` is:
//!
//! ```text
//! element(batch, head, row, dim) =
//!       offset
//!     + batch            * batch_stride
//!     + block(row)       * block_stride      block(row) = table[row / block_rows], or row / block_rows
//!     + (row % block_rows) * row_stride
//!     + head             * head_stride
//!     + (dim / pack)     * pack_stride
//!     +  dim % pack
//! ```
//!
//! A contiguous cache is the case of one block that holds every row. `pack` is `head_dim` unless the
//! head dimension itself is cut up, as in the `x`-packed pages of vLLM's first kernels.

use crate::{ElementType, Error, Result};

/// How the keys (or values) of one layer lie in their buffer. All counts and strides are in elements
/// or rows, never in bytes.
///
/// Values use the same descriptor; a [`CacheLayout`] holds one for each.
#[derive(Clone, Copy, Debug, Eq)]
pub struct KeyLayout<'t> {
    pub(crate) element: ElementType,
    pub(crate) offset: usize,
    pub(crate) batch: Axis,
    pub(crate) blocks: Axis,
    pub(crate) rows: Axis,
    pub(crate) heads: Axis,
    pub(crate) packs: Axis,
    pub(crate) pack: usize,
    pub(crate) table: Option<&'t [u32]>,
}

/// One axis of a layout: how many steps, and how far apart in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Number of indices along this axis.
    pub len: usize,
    /// Distance between two neighbours, in elements.
    pub stride: usize,
}

impl Axis {
    /// An axis of `len` indices, `stride` elements apart.
    pub const fn new(len: usize, stride: usize) -> Axis {
        Axis { len, stride }
    }

    /// Distance from the first index to the last, `None` if it does not fit a `usize`.
    fn reach(self) -> Option<usize> {
        self.len.saturating_sub(1).checked_mul(self.stride)
    }
}

/// The strides of a cache that none of [`KeyLayout`]'s named constructors describes; see
/// [`KeyLayout::strided`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Elements before the first one.
    pub offset: usize,
    /// Sequences that lie side by side and are edited alike.
    pub batch: Axis,
    /// Blocks (pages). One for a contiguous cache.
    pub blocks: Axis,
    /// Rows inside a block.
    pub rows: Axis,
    /// Heads.
    pub heads: Axis,
    /// Packs of neighbouring dimensions; one where a head vector is contiguous.
    pub packs: Axis,
    /// Dimensions in a pack, contiguous in memory.
    pub pack: usize,
}

impl<'t> KeyLayout<'t> {
    /// `[batch, heads, seq, dim]`, as Hugging Face transformers and candle keep it.
    ///
    /// A plan is applied to every sequence of the batch alike (beams, samples of one prompt); narrow
    /// the slice to edit one sequence alone.
    pub fn bhsd(element: ElementType, [batch, heads, seq, dim]: [usize; 4]) -> Self {
        let [b, h, s] = contiguous([heads, seq, dim]);
        Self::dense(element, [(batch, b), (1, 0), (seq, s), (heads, h)], dim)
    }

    /// `[batch, seq, heads, dim]`, as FlashAttention keeps it.
    ///
    /// A plan is applied to every sequence of the batch alike.
    pub fn bshd(element: ElementType, [batch, seq, heads, dim]: [usize; 4]) -> Self {
        let [b, s, h] = contiguous([seq, heads, dim]);
        Self::dense(element, [(batch, b), (1, 0), (seq, s), (heads, h)], dim)
    }

    /// `[slots, heads, dim]`: one token a slot, as SGLang's token pool keeps it. With
    /// [`with_table`](Self::with_table), entry `r` of the table is the slot of row `r`.
    ///
    /// The rows of a multi-head latent attention (MLA) are this with one head of, say, 512 + 64.
    pub fn slots(element: ElementType, [slots, heads, dim]: [usize; 3]) -> Self {
        Self::nhd(element, [slots, 1, heads, dim])
    }

    /// Pages `[blocks, block, heads, dim]`, as vLLM's FlashAttention backend and FlashInfer's NHD
    /// keep them.
    pub fn nhd(element: ElementType, [blocks, block, heads, dim]: [usize; 4]) -> Self {
        let [b, s, h] = contiguous([block, heads, dim]);
        Self::dense(element, [(1, 0), (blocks, b), (block, s), (heads, h)], dim)
    }

    /// Pages `[blocks, heads, block, dim]`, as FlashInfer's HND and TensorRT-LLM keep them.
    pub fn hnd(element: ElementType, [blocks, heads, block, dim]: [usize; 4]) -> Self {
        let [b, h, s] = contiguous([heads, block, dim]);
        Self::dense(element, [(1, 0), (blocks, b), (block, s), (heads, h)], dim)
    }

    /// Pages `[blocks, heads, dim / x, block, x]`, as vLLM's first PagedAttention kernels keep keys.
    /// Their values, `[blocks, heads, dim, block]`, are the case of `x = 1`.
    pub fn x_packed(element: ElementType, [blocks, heads, packs, block, x]: [usize; 5]) -> Self {
        let [b, h, p, s] = contiguous([heads, packs, block, x]);
        Self::strided(
            element,
            Strides {
                offset: 0,
                batch: Axis::new(1, 0),
                blocks: Axis::new(blocks, b),
                rows: Axis::new(block, s),
                heads: Axis::new(heads, h),
                packs: Axis::new(packs, p),
                pack: x,
            },
        )
    }

    /// A layout whose head vectors are contiguous, from the extent and stride of its batch, blocks, rows
    /// and heads.
    fn dense(element: ElementType, axes: [(usize, usize); 4], dim: usize) -> Self {
        let [batch, blocks, rows, heads] = axes.map(|(len, stride)| Axis::new(len, stride));
        Self::strided(
            element,
            Strides {
                offset: 0,
                batch,
                blocks,
                rows,
                heads,
                packs: Axis::new(1, 0),
                pack: dim,
            },
        )
    }

    /// Any layout by its strides. Overlapping rows are refused when the layout is used, not here.
    pub fn strided(element: ElementType, strides: Strides) -> Self {
        let Strides {
            offset,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
        } = strides;
        KeyLayout {
            element,
            offset,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
            table: None,
        }
    }

    /// The same layout seen through a block table: row `r` is in block `table[r / block]`.
    ///
    /// Only the entries of rows that a call touches are read, so a padded table is fine.
    /// `bytemuck::cast_slice` turns the `i32` tables of vLLM and FlashInfer into this; a negative
    /// entry is then out of range and refused.
    pub fn with_table(mut self, table: &'t [u32]) -> Self {
        self.table = Some(table);
        self
    }

    /// The same layout, `elements` further into the buffer.
    pub fn with_offset(mut self, elements: usize) -> Self {
        // Saturating: an offset that does not fit is refused when the layout is checked.
        self.offset = self.offset.saturating_add(elements);
        self
    }

    /// Keys and values of packed pages, `[blocks, 2, block, heads, dim]`: both lie in one buffer.
    pub fn packed_nhd(
        element: ElementType,
        [blocks, block, heads, dim]: [usize; 4],
    ) -> CacheLayout<'t> {
        Self::nhd(element, [blocks, block, heads, dim]).packed()
    }

    /// Keys and values of packed pages, `[blocks, 2, heads, block, dim]`: both lie in one buffer.
    pub fn packed_hnd(
        element: ElementType,
        [blocks, heads, block, dim]: [usize; 4],
    ) -> CacheLayout<'t> {
        Self::hnd(element, [blocks, heads, block, dim]).packed()
    }

    fn packed(mut self) -> CacheLayout<'t> {
        let half = self.blocks.stride;
        self.blocks.stride = half.saturating_mul(2);
        CacheLayout {
            keys: self,
            values: Some(self.with_offset(half)),
        }
    }

    /// Heads `range` alone. The keys and values of `[seq, 2 * heads, dim]` are its two halves.
    ///
    /// # Errors
    /// [`Error::Layout`] if the range is empty or goes past the layout's heads.
    pub fn narrow_heads(mut self, range: std::ops::Range<usize>) -> Result<Self> {
        if range.is_empty() || range.end > self.heads.len {
            return Err(Error::Layout(format!(
                "heads {range:?} are not inside the layout's {} heads",
                self.heads.len
            )));
        }
        self.offset = range
            .start
            .checked_mul(self.heads.stride)
            .and_then(|skipped| skipped.checked_add(self.offset))
            .ok_or_else(too_large)?;
        self.heads.len = range.len();
        Ok(self)
    }

    /// Dimensions `range` of every head alone. The keys and values of `[seq, heads, 2 * dim]` are its
    /// two halves.
    ///
    /// # Errors
    /// [`Error::Layout`] if the range is empty, goes past the head dimension, or cuts a pack.
    pub fn narrow_dims(mut self, range: std::ops::Range<usize>) -> Result<Self> {
        if range.is_empty() || range.end > self.head_dim() {
            return Err(Error::Layout(format!(
                "dimensions {range:?} are not inside the head dimension {}",
                self.head_dim()
            )));
        }
        let skipped = if self.packs.len == 1 {
            self.pack = range.len();
            Some(range.start)
        } else if range.start.is_multiple_of(self.pack) && range.end.is_multiple_of(self.pack) {
            self.packs.len = range.len() / self.pack;
            (range.start / self.pack).checked_mul(self.packs.stride)
        } else {
            return Err(Error::Layout(format!(
                "dimensions {range:?} cut a pack of {}",
                self.pack
            )));
        };
        self.offset = skipped
            .and_then(|skipped| skipped.checked_add(self.offset))
            .ok_or_else(too_large)?;
        Ok(self)
    }

    /// Everything but the table.
    fn lattice(&self) -> (ElementType, Strides) {
        let KeyLayout {
            element,
            offset,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
            table: _,
        } = *self;
        let strides = Strides {
            offset,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
        };
        (element, strides)
    }

    /// Whether two layouts differ in their tables at most, so that different blocks share no element.
    pub(crate) fn same_lattice(&self, other: &KeyLayout<'_>) -> bool {
        self.lattice() == other.lattice()
    }

    /// Whether the other is the same layout by the very same table. A table may be long, and so takes time to
    /// compare: this is false where two are merely equal.
    pub(crate) fn is_same(&self, other: &KeyLayout<'_>) -> bool {
        self.same_lattice(other) && same_table(self.table, other.table)
    }

    /// The stored type.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Heads of one row.
    pub fn heads(&self) -> usize {
        self.heads.len
    }

    /// Elements of one head vector.
    pub fn head_dim(&self) -> usize {
        self.packs.len.saturating_mul(self.pack)
    }

    /// Sequences that are edited alike.
    pub fn batch(&self) -> usize {
        self.batch.len
    }

    /// Rows that the layout (its table, if it has one) can hold.
    pub fn rows(&self) -> usize {
        let blocks = self.table.map_or(self.blocks.len, <[u32]>::len);
        blocks.saturating_mul(self.rows.len)
    }

    /// The physical block that holds rows `index * block ..`.
    ///
    /// # Panics
    /// If the table has no such entry.
    pub(crate) fn block(&self, index: usize) -> usize {
        self.table.map_or(index, |table| table[index] as usize)
    }

    /// The first element of a row: its batch's, of head 0, of dimension 0. The layout has passed
    /// [`check`](Self::check) and the row's block exists, so nothing overflows.
    pub(crate) fn row(&self, batch: usize, row: usize) -> usize {
        self.offset
            + batch * self.batch.stride
            + self.block(row / self.rows.len) * self.blocks.stride
            + row % self.rows.len * self.rows.stride
    }

    /// Where dimension `dim` is, counted from the start of its head vector.
    pub(crate) fn dim(&self, dim: usize) -> usize {
        dim / self.pack * self.packs.stride + dim % self.pack
    }

    /// How many of the rows from `row` on follow each other at the row stride, at most `limit`.
    pub(crate) fn run_from(&self, row: usize, limit: usize) -> usize {
        let mut run = self.rows.len - row % self.rows.len;
        while run < limit && self.continues((row + run) / self.rows.len) {
            run += self.rows.len;
        }
        run.min(limit)
    }

    /// How many of the rows that end before `end` follow each other at the row stride, at most `limit`.
    pub(crate) fn run_before(&self, end: usize, limit: usize) -> usize {
        let mut run = (end - 1) % self.rows.len + 1;
        while run < limit && self.continues((end - run) / self.rows.len) {
            run += self.rows.len;
        }
        run.min(limit)
    }

    /// Whether block `index` begins where the block before it ends.
    fn continues(&self, index: usize) -> bool {
        self.rows.stride.checked_mul(self.rows.len) == Some(self.blocks.stride)
            && self.block(index) == self.block(index - 1) + 1
    }

    /// Every axis, slowest to fastest in no particular order; the elements of a pack are the last.
    fn axes(&self) -> [Axis; 6] {
        [
            self.batch,
            self.blocks,
            self.rows,
            self.heads,
            self.packs,
            Axis::new(self.pack, 1),
        ]
    }

    /// Elements from the start of the buffer to just past the last one that the layout can name.
    pub(crate) fn required_len(&self) -> Result<usize> {
        if self.axes().iter().any(|axis| axis.len == 0) {
            return Ok(0);
        }
        self.axes()
            .iter()
            .try_fold(self.offset, |sum, axis| sum.checked_add(axis.reach()?))
            .and_then(|last| last.checked_add(1))
            .ok_or_else(too_large)
    }

    /// Refuses a layout that does not fit a buffer of `len` elements or whose elements overlap.
    ///
    /// # Errors
    /// [`Error::Layout`] names what is wrong. Table entries are checked per call, since only those
    /// of the rows that a call touches need to be valid.
    pub fn check(&self, len: usize) -> Result<()> {
        // A cache may be empty, its rows may not.
        if self.heads.len == 0 || self.head_dim() == 0 {
            return Err(Error::Layout(format!(
                "it has {} heads of {} dimensions",
                self.heads.len,
                self.head_dim()
            )));
        }
        let needed = self.required_len()?;
        if needed > len {
            return Err(Error::Layout(format!(
                "it needs a buffer of {needed} elements, this one has {len}"
            )));
        }
        // Where there are no elements, none are in one place, whatever the strides of an empty shape come to.
        if needed == 0 {
            return Ok(());
        }
        nested_span(&mut self.axes()).map(drop)
    }

    /// Whether `self` and `other`, in one buffer, name no element in common: true for two views of
    /// one packed cache, whose axes agree and whose offsets interleave; false if in doubt.
    pub fn is_disjoint(&self, other: &KeyLayout<'_>) -> bool {
        let (first, second) = if self.offset <= other.offset {
            (self, other)
        } else {
            (other, self)
        };
        let gap = second.offset - first.offset;
        // One wholly before the other.
        if first.required_len().is_ok_and(|end| end <= second.offset) {
            return true;
        }
        // The same lattice twice, `gap` apart: inner axes must fit into the gap, outer ones must
        // step over both. An axis that the two do not share has to be an inner one.
        let mut first_inner = Vec::new();
        let mut second_inner = Vec::new();
        let mut outer = Vec::new();
        for (a, b) in first.axes().into_iter().zip(second.axes()) {
            let inner = |axis: Axis| axis.len <= 1 || axis.stride < gap;
            if inner(a) && inner(b) {
                first_inner.push(a);
                second_inner.push(b);
            } else if a == b {
                outer.push(a);
            } else {
                return false;
            }
        }
        let (Ok(first_span), Ok(second_span)) = (
            nested_span(&mut first_inner),
            nested_span(&mut second_inner),
        ) else {
            return false;
        };
        let Some(both) = gap.checked_add(second_span) else {
            return false;
        };
        // Whichever blocks their tables name: both are in the same part of every one.
        first_span <= gap && nested_span_from(both, &mut outer).is_ok()
    }
}

impl PartialEq for KeyLayout<'_> {
    fn eq(&self, other: &KeyLayout<'_>) -> bool {
        // Two that have one table need not look at it.
        self.is_same(other) || self.same_lattice(other) && self.table == other.table
    }
}

/// Whether two tables are one.
fn same_table(a: Option<&[u32]>, b: Option<&[u32]>) -> bool {
    let place = |table: &[u32]| (table.as_ptr(), table.len());
    a.map(place) == b.map(place)
}

/// The layouts of a layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLayout<'t> {
    /// Where the keys lie.
    pub keys: KeyLayout<'t>,
    /// Where the values lie; `None` where there are none, as in MLA, or where a call leaves them.
    pub values: Option<KeyLayout<'t>>,
}

impl<'t> CacheLayout<'t> {
    /// Keys alone.
    pub fn keys_only(keys: KeyLayout<'t>) -> Self {
        CacheLayout { keys, values: None }
    }

    /// Keys and values, each by its own layout.
    pub fn new(keys: KeyLayout<'t>, values: KeyLayout<'t>) -> Self {
        CacheLayout {
            keys,
            values: Some(values),
        }
    }

    /// Keys and values, `elements` further into their buffers.
    pub fn with_offset(self, elements: usize) -> Self {
        CacheLayout {
            keys: self.keys.with_offset(elements),
            values: self.values.map(|values| values.with_offset(elements)),
        }
    }

    /// Keys and values seen through one block table.
    pub fn with_table(mut self, table: &'t [u32]) -> Self {
        self.keys.table = Some(table);
        if let Some(values) = &mut self.values {
            values.table = Some(table);
        }
        self
    }
}

impl<'t> From<KeyLayout<'t>> for CacheLayout<'t> {
    /// Values in a buffer of their own, laid out as the keys are.
    fn from(layout: KeyLayout<'t>) -> Self {
        CacheLayout::new(layout, layout)
    }
}

/// Strides of a dense array whose outermost extent is not among `inner`; saturating, since a stride
/// that does not fit is refused by [`KeyLayout::required_len`] with a clear error.
fn contiguous<const N: usize>(inner: [usize; N]) -> [usize; N] {
    let mut strides = [0; N];
    let mut stride = 1usize;
    for (slot, extent) in strides.iter_mut().zip(inner).rev() {
        stride = stride.saturating_mul(extent);
        *slot = stride;
    }
    strides
}

/// Elements that a set of axes spans, or an error where two indices can name one element.
///
/// Sorted by stride, each axis must step over everything that the finer axes span. That is sufficient,
/// and every real cache satisfies it.
fn nested_span(axes: &mut [Axis]) -> Result<usize> {
    nested_span_from(1, axes)
}

fn nested_span_from(finest: usize, axes: &mut [Axis]) -> Result<usize> {
    axes.sort_unstable_by_key(|axis| axis.stride);
    let mut span = finest;
    for axis in axes.iter().filter(|axis| axis.len > 1) {
        if axis.stride < span {
            return Err(Error::Layout(format!(
                "rows overlap: an axis of {} steps {} elements at a time over {span} elements",
                axis.len, axis.stride
            )));
        }
        span = axis
            .reach()
            .and_then(|reach| reach.checked_add(span))
            .ok_or_else(too_large)?;
    }
    Ok(span)
}

fn too_large() -> Error {
    Error::Layout("its size does not fit a usize".into())
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Rows that follow each other are found as a whole, and no others, from either end.
    #[test]
    fn runs_are_as_long_as_the_addresses_say() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let (block, blocks) = (random.random_range(1..4), random.random_range(1..8));
            let shape = [8, block, 1, 2];
            let pages = match random.random_range(0..3) {
                0 => KeyLayout::nhd(ElementType::F32, shape),
                // Other heads, or values, lie in between.
                1 => KeyLayout::hnd(ElementType::F32, [8, 2, block, 2]),
                _ => KeyLayout::packed_nhd(ElementType::F32, shape).keys,
            };
            // Often the block behind the last one.
            let mut table = vec![random.random_range(0..8)];
            while table.len() < blocks {
                let next = (table[table.len() - 1] + 1) % 8;
                table.push(match random.random_ratio(2, 3) {
                    true => next,
                    false => random.random_range(0..8),
                });
            }
            let layout = pages.with_table(&table);
            let follows =
                |row: usize| layout.row(0, row) == layout.row(0, row - 1) + layout.rows.stride;
            let row = random.random_range(0..layout.rows());
            let limit = random.random_range(1..layout.rows() - row + 1);
            let run = 1
                + (row + 1..row + limit)
                    .take_while(|&row| follows(row))
                    .count();
            assert_eq!(
                layout.run_from(row, limit),
                run,
                "{layout:?}, {row}, {limit}"
            );
            let end = row + 1;
            let limit = random.random_range(1..end + 1);
            let run = 1
                + (end - limit + 1..end)
                    .rev()
                    .take_while(|&row| follows(row))
                    .count();
            assert_eq!(
                layout.run_before(end, limit),
                run,
                "{layout:?}, {end}, {limit}"
            );
        }
    }
}
