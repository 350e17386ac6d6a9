//! Windows: the parts of a cache that fit one binding.

use std::ops::Range;

use super::layer::WgpuSlice;
use crate::order::{End, Order, Span, hull};
use crate::{Error, KeyLayout, Result};

/// What bindings are aligned to: WebGPU's guarantee for storage buffers, whatever the device could do.
pub(super) const ALIGNMENT: u64 = 256;

/// The keys or values of one layer at one end of a call.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    /// Bytes before the layout's element 0.
    pub(super) offset: u64,
    pub(super) layout: KeyLayout<'a>,
}

impl<'a> Place<'a> {
    pub(super) fn new(slice: WgpuSlice<'a>, layout: KeyLayout<'a>) -> Place<'a> {
        Place {
            buffer: slice.buffer,
            offset: slice.offset,
            layout,
        }
    }

    fn size(&self) -> u64 {
        self.layout.element().size() as u64
    }

    /// Where the layout's first element is, in bytes from the start of the buffer.
    pub(super) fn base(&self) -> u64 {
        self.offset + self.layout.offset as u64 * self.size()
    }
}

/// A part of a layout: a range of each axis that rows are counted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) batch: Range<usize>,
    pub(super) blocks: Range<usize>,
    /// Rows inside a block.
    pub(super) rows: Range<usize>,
    pub(super) heads: Range<usize>,
}

impl Region {
    /// All that lies between the first and the last of some rows of the sequence.
    pub(super) fn around(layout: &KeyLayout<'_>, rows: Range<usize>) -> Region {
        let block = layout.rows.len;
        let touched = rows.start / block..rows.end.div_ceil(block);
        let blocks = match layout.table {
            // A table of token slots is long, and is looked at for each layer: no more than this a slot.
            Some(table) if !touched.is_empty() => {
                let (first, last) = table[touched]
                    .iter()
                    .fold((u32::MAX, 0), |(first, last), &block| {
                        (first.min(block), last.max(block))
                    });
                first as usize..last as usize + 1
            }
            _ => touched,
        };
        let rows = if rows.end <= block { rows } else { 0..block };
        Region {
            batch: 0..layout.batch(),
            blocks,
            rows,
            heads: 0..layout.heads(),
        }
    }

    /// The bytes of the buffer from its first to its last element.
    pub(super) fn bytes(&self, place: &Place<'_>) -> Range<u64> {
        let layout = &place.layout;
        let axes = [
            (&self.batch, layout.batch.stride),
            (&self.blocks, layout.blocks.stride),
            (&self.rows, layout.rows.stride),
            (&self.heads, layout.heads.stride),
            (&(0..layout.packs.len), layout.packs.stride),
        ];
        let sum = |index: fn(&Range<usize>) -> usize| -> u64 {
            let elements = axes
                .iter()
                .map(|(range, stride)| index(range) as u64 * *stride as u64);
            elements.sum()
        };
        let first = sum(|range| range.start);
        let end = sum(|range| range.end - 1) + layout.pack as u64;
        place.base() + first * place.size()..place.base() + end * place.size()
    }

    /// Cuts the region until each part can be bound, along the coarsest axes first.
    ///
    /// # Errors
    /// [`Error::Limit`] if a single head vector spans more than a binding.
    pub(super) fn cut(
        self,
        place: &Place<'_>,
        largest: u64,
        parts: &mut Vec<Region>,
    ) -> Result<()> {
        if length(&bound(&self.bytes(place))) <= largest {
            parts.push(self);
            return Ok(());
        }
        let layout = &place.layout;
        type Part = fn(&mut Region) -> &mut Range<usize>;
        let axes: [(Part, usize); 4] = [
            (|region| &mut region.batch, layout.batch.stride),
            (|region| &mut region.blocks, layout.blocks.stride),
            (|region| &mut region.rows, layout.rows.stride),
            (|region| &mut region.heads, layout.heads.stride),
        ];
        let long = axes
            .into_iter()
            .filter(|(part, _)| part(&mut self.clone()).len() > 1);
        let Some((part, stride)) = long.max_by_key(|&(_, stride)| stride) else {
            return Err(Error::Limit(format!(
                "one head vector spans {} bytes of its buffer, the device binds at most {largest} \
                 (`max_storage_buffer_binding_size`)",
                length(&self.bytes(place))
            )));
        };
        let mut one = self.clone();
        let all = part(&mut one).clone();
        *part(&mut one) = all.start..all.start + 1;
        // Aligning may cost a binding up to `ALIGNMENT` bytes at its start, and a word at its end.
        let room = (largest - ALIGNMENT - 4).saturating_sub(length(&one.bytes(place)));
        let step = 1 + (room / (stride as u64 * place.size())) as usize;
        for start in all.clone().step_by(step) {
            let mut piece = self.clone();
            *part(&mut piece) = start..all.end.min(start + step);
            piece.cut(place, largest, parts)?;
        }
        Ok(())
    }
}

/// The windows onto the touched rows of a place, in the order of the call's rows.
pub(super) struct Windows {
    /// Each with the shortest stretch of the call's order that has all of its rows.
    pub(super) parts: Vec<(Range<u32>, Region)>,
    /// The furthest end of a stretch so far. With it, whose stretch meets another is looked up instead of tried.
    reach: Vec<u32>,
}

impl Windows {
    /// # Errors
    /// [`Error::Limit`] if a single head vector spans more than a binding.
    pub(super) fn new(place: &Place<'_>, order: &Order, end: End, largest: u64) -> Result<Windows> {
        let layout = &place.layout;
        let touched = order.touched(end);
        let mut regions = Vec::new();
        Region::around(layout, touched.clone()).cut(place, largest, &mut regions)?;
        if regions.len() == 1 {
            let parts = regions.into_iter().map(|all| (0..order.rows, all));
            return Ok(Windows {
                parts: parts.collect(),
                reach: vec![order.rows],
            });
        }

        let rows = layout.rows.len;
        let touched = touched.start / rows..touched.end.div_ceil(rows);
        let mut blocks: Vec<_> = touched.map(|index| (layout.block(index), index)).collect();
        blocks.sort_unstable();
        let mut spans = order.spans.clone();
        spans.sort_unstable_by_key(|span| span.range(end).start);
        let stretch_of = |region: &Region| {
            let first = blocks.partition_point(|&(block, _)| block < region.blocks.start);
            let inside = blocks[first..]
                .iter()
                .take_while(|(block, _)| *block < region.blocks.end);
            let stretches = inside.map(|(_, index)| {
                let start = index * rows;
                let here = start + region.rows.start..start + region.rows.end;
                stretch(&spans, end, &here)
            });
            let stretches = stretches.filter(|stretch| !stretch.is_empty());
            stretches.reduce(hull).unwrap_or(0..0)
        };
        let parts = regions
            .into_iter()
            .map(|region| (stretch_of(&region), region));
        let mut parts: Vec<_> = parts.filter(|(stretch, _)| !stretch.is_empty()).collect();
        parts.sort_by_key(|(stretch, _)| stretch.start);
        let mut furthest = 0;
        let reach = parts.iter().map(|(stretch, _)| {
            furthest = stretch.end.max(furthest);
            furthest
        });
        let reach = reach.collect();
        Ok(Windows { parts, reach })
    }

    /// The windows that some of `rows` of the call's order may be in, each with those.
    pub(super) fn of(&self, rows: Range<u32>) -> impl Iterator<Item = (Range<u32>, &Region)> {
        let first = self.reach.partition_point(|&end| end <= rows.start);
        let end = self
            .parts
            .partition_point(|(stretch, _)| stretch.start < rows.end);
        let near = self.parts[first.min(end)..end].iter();
        near.map(move |(stretch, region)| (intersection(stretch, &rows), region))
            .filter(|(rows, _)| !rows.is_empty())
    }
}

/// The shortest stretch of the order with every row that is among `rows` at `end`, of the spans sorted by
/// their rows there.
fn stretch(sorted: &[Span], end: End, rows: &Range<usize>) -> Range<u32> {
    let first = sorted.partition_point(|span| span.range(end).end <= rows.start);
    let inside = sorted[first..]
        .iter()
        .take_while(|span| span.range(end).start < rows.end);
    let parts = inside.map(|span| {
        let all = span.range(end);
        let part = all.start.max(rows.start)..all.end.min(rows.end);
        let part = if span.dst > span.src {
            all.end - part.end..all.end - part.start
        } else {
            part.start - all.start..part.end - all.start
        };
        span.before + part.start as u32..span.before + part.end as u32
    });
    parts.reduce(hull).unwrap_or(0..0)
}

pub(super) fn intersection<T: Copy + Ord>(a: &Range<T>, b: &Range<T>) -> Range<T> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// The binding around some bytes: aligned at its start, whole words long.
pub(super) fn bound(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / ALIGNMENT * ALIGNMENT..bytes.end.next_multiple_of(4)
}

pub(super) fn length(bytes: &Range<u64>) -> u64 {
    bytes.end - bytes.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotations::TurnedSpan;

    #[test]
    fn a_stretch_holds_its_rows_in_the_order_of_the_call() {
        let span = |src, dst, len| TurnedSpan {
            src,
            dst,
            len,
            delta: None,
            own: None,
        };
        // Right-movers from the last to the first and each last row first, then a left-mover.
        let spans = [span(20, 25, 3), span(10, 12, 2), span(30, 28, 2)];
        let order = Order::new(spans.into_iter()).expect("small");
        let at = |end, rows| {
            let mut spans = order.spans.clone();
            spans.sort_unstable_by_key(|span| span.range(end).start);
            stretch(&spans, end, &rows)
        };
        assert_eq!(at(End::Source, 20..21), 2..3);
        assert_eq!(at(End::Source, 21..30), 0..2);
        assert_eq!(at(End::Source, 11..21), 2..4);
        assert_eq!(at(End::Source, 22..32), 0..7);
        assert_eq!(at(End::Destination, 13..25), 3..4);
        assert_eq!(at(End::Destination, 27..29), 0..6);
        assert!(at(End::Source, 12..20).is_empty());
        assert!(at(End::Source, 0..10).is_empty());
    }
}
