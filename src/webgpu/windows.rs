//! Windows: the parts of a cache that fit one binding.

use std::ops::Range;

use super::layer::WgpuSlice;
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
        let touched = (rows.start / block..rows.end.div_ceil(block)).map(|b| layout.block(b));
        let blocks = touched
            .map(|block| block..block + 1)
            .reduce(|all, one| all.start.min(one.start)..all.end.max(one.end))
            .unwrap_or(0..0);
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

    /// Rows of the sequence from the first to the last one that lies in this region, of those in `rows`.
    pub(super) fn rows_of(&self, layout: &KeyLayout<'_>, rows: Range<usize>) -> Range<usize> {
        let block = layout.rows.len;
        let mut inside = (rows.start / block..rows.end.div_ceil(block))
            .filter(|&index| self.blocks.contains(&layout.block(index)));
        let Some(first) = inside.next() else {
            return 0..0;
        };
        let last = inside.next_back().unwrap_or(first);
        let start = first * block + self.rows.start;
        let end = last * block + self.rows.end;
        start.max(rows.start)..end.min(rows.end)
    }
}

/// The binding around some bytes: aligned at its start, whole words long.
pub(super) fn bound(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / ALIGNMENT * ALIGNMENT..bytes.end.next_multiple_of(4)
}

pub(super) fn length(bytes: &Range<u64>) -> u64 {
    bytes.end - bytes.start
}
