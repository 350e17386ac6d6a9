//! From layers and rows to the words that a kernel reads.

use std::ops::Range;

use bytemuck::Pod;

use super::abi::{Header, LARGE, SMALL, Shape, Side, magic};
use super::grid::{self, Device, Launch};
use super::modules::Verb;
use crate::order::{End, NONE, Order, Span};
use crate::{Axis, CacheLayout, Error, KeyLayout, Pairing, Result, Rope, Rotations, Table};

/// Bytes of a wide access.
const WIDE: usize = 16;

/// One layer's keys or values at one end of a call.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Address of the buffer.
    pub(super) address: u64,
    pub(super) layout: &'a KeyLayout<'a>,
}

impl Place<'_> {
    /// Address of the layout's first element: see [`check_addresses`].
    fn base(&self) -> u64 {
        self.address + (self.layout.offset * self.layout.element().size()) as u64
    }
}

/// One layer's keys or values on their way.
#[derive(Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) source: Place<'a>,
    pub(super) destination: Place<'a>,
    /// Which of the rotations' tables turns them; `None`: values, and keys without a rope.
    pub(super) table: Option<usize>,
    pub(super) values: bool,
}

/// What a verb comes to.
pub(super) struct Call<'a> {
    pub(super) verb: Verb,
    pub(super) rotations: &'a Rotations,
    /// The rows, in the order in which kernels take them.
    pub(super) order: Order,
    pub(super) transfers: Vec<Transfer<'a>>,
}

/// What transfers of one shape have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    table: Option<usize>,
    values: bool,
    wide: bool,
}

/// Makes launches, in memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Builder {
    /// A [`Header`], then everything that it points to.
    pub(super) words: Vec<u32>,
    /// The parameters of an upload.
    pub(super) upload: Vec<u32>,
    /// Block tables that are among the words: address, length, and where.
    block_tables: Vec<(usize, usize, u32)>,
}

impl Builder {
    /// How many bytes of workspace the words take; 0 if they fit a launch's parameters.
    pub(super) fn workspace(&self) -> usize {
        if self.words.len() <= LARGE {
            0
        } else {
            4 * self.words.len()
        }
    }

    /// Whether the words fit small parameters.
    pub(super) fn is_small(&self) -> bool {
        self.words.len() <= SMALL
    }

    /// Makes the words of a call. `None`: there is nothing to do.
    pub(super) fn build(&mut self, call: &Call<'_>, device: Device) -> Result<Option<Launch>> {
        let &Call {
            verb,
            rotations,
            ref order,
            ref transfers,
        } = call;
        self.words.clear();
        self.block_tables.clear();
        // Layouts without heads or dimensions are refused before.
        let transfers: Vec<_> = transfers
            .iter()
            .filter(|transfer| transfer.destination.layout.batch() > 0)
            .collect();
        let Some(&first) = transfers.first().filter(|_| order.rows > 0) else {
            return Ok(None);
        };
        for transfer in &transfers {
            check_addresses(transfer)?;
        }
        let (mut read, mut written) = (order.touched(End::Source), order.touched(End::Destination));
        if verb == Verb::Splice {
            // One buffer, of which its kernel has one idea.
            read = read.start.min(written.start)..read.end.max(written.end);
            written = read.clone();
        }
        if read.end.max(written.end) > 1 << 31 {
            return Err(Error::Limit(
                "the CUDA kernels count rows in 31 bits".into(),
            ));
        }

        self.words.resize(size_of::<Header>() / 4, 0);
        let in_place = verb == Verb::Rotate && rows_stay(first, order);
        let mut kinds: Vec<Kind> = Vec::new();
        let mut shape_of = Vec::with_capacity(transfers.len());
        for &transfer in &transfers {
            let rope = transfer.table.map(|index| rotations.tables()[index].rope());
            let kind = Kind {
                table: transfer.table,
                values: transfer.values,
                wide: is_wide(transfer, rope, in_place),
            };
            let known = kinds.iter().position(|&known| known == kind);
            shape_of.push(known.unwrap_or(kinds.len()) as u32);
            if known.is_none() {
                kinds.push(kind);
            }
        }

        // Tables first, for shapes say where they are.
        let cos_sin: Vec<u32> = (0..rotations.tables().len())
            .map(|index| {
                let used = kinds.iter().any(|kind| kind.table == Some(index));
                if used {
                    self.push(rotations.tables()[index].as_slice(), 4)
                } else {
                    NONE
                }
            })
            .collect();
        let mut shapes = Vec::with_capacity(kinds.len());
        for (index, kind) in kinds.iter().enumerate() {
            let one = shape_of.iter().position(|&shape| shape as usize == index);
            let transfer = transfers[one.expect("a transfer of each kind")];
            let table = kind.table.map(|index| &rotations.tables()[index]);
            let rope = table.map(Table::rope);
            let mut shape = shape(transfer, rope, kind.wide, in_place)?;
            shape.row_by_row = table.is_some_and(Table::is_row_by_row).into();
            shape.cos_sin_at = kind.table.map_or(NONE, |index| cos_sin[index]);
            self.block_table(&mut shape.source, transfer.source.layout, &read);
            self.block_table(
                &mut shape.destination,
                transfer.destination.layout,
                &written,
            );
            shapes.push(shape);
        }

        let jobs: Vec<u64> = (0..shapes.len())
            .map(|shape| shape_of.iter().filter(|&&of| of as usize == shape).count() as u64)
            .collect();
        let launch = grid::fit(verb, order.rows, &mut shapes, &jobs, device)?;

        let addresses = |end: fn(&Transfer<'_>) -> u64| -> Vec<u64> {
            transfers.iter().map(|&transfer| end(transfer)).collect()
        };
        let destinations = addresses(|transfer| transfer.destination.base());
        let sources = addresses(|transfer| transfer.source.base());
        let destinations_at = self.push(&destinations, 2);
        let sources_at = if sources == destinations {
            destinations_at
        } else {
            self.push(&sources, 2)
        };
        let header = Header {
            workspace: 0,
            rows: order.rows,
            steps: launch.steps,
            spans_at: self.push(&order.spans, 2),
            spans: order.spans.len() as u32,
            sources_at,
            destinations_at,
            shape_of_at: self.push(&shape_of, 1),
            shapes_at: self.push(&shapes, 2),
            in_place: u32::from(in_place),
            unused: 0,
        };
        self.set_header(&header);
        if u32::try_from(self.words.len()).is_err() {
            return Err(Error::Limit(
                "the tables of a call take more than 2³² words; split the plan".into(),
            ));
        }
        Ok(Some(launch))
    }

    /// Has the kernel read its words from device memory.
    pub(super) fn set_workspace(&mut self, address: u64) {
        self.words[..2].copy_from_slice(bytemuck::cast_slice(&[address]));
    }

    fn set_header(&mut self, header: &Header) {
        self.words[..size_of::<Header>() / 4].copy_from_slice(bytemuck::cast_slice(&[*header]));
    }

    /// Appends items at a multiple of `align` words; returns where they are.
    fn push<T: Pod>(&mut self, items: &[T], align: usize) -> u32 {
        let start = self.words.len().next_multiple_of(align);
        self.words.resize(start, 0);
        self.words.extend_from_slice(bytemuck::cast_slice(items));
        start as u32
    }

    /// Puts the entries of a layout's block table that these rows need among the words, and says so in its side.
    fn block_table(&mut self, side: &mut Side, layout: &KeyLayout<'_>, rows: &Range<usize>) {
        let Some(table) = layout.table else {
            return;
        };
        let block = layout.rows.len;
        let needed = rows.start / block..rows.end.div_ceil(block);
        let part = &table[needed.clone()];
        let key = (part.as_ptr().addr(), part.len());
        let known = self
            .block_tables
            .iter()
            .find(|known| (known.0, known.1) == key);
        let start = known.map(|known| known.2).unwrap_or_else(|| {
            let start = self.push(part, 1);
            self.block_tables.push((key.0, key.1, start));
            start
        });
        side.table_at = start.wrapping_sub(needed.start as u32);
        side.has_table = 1;
    }
}

/// Refuses addresses that no kernel could use.
fn check_addresses(transfer: &Transfer<'_>) -> Result<()> {
    for place in [&transfer.source, &transfer.destination] {
        let size = place.layout.element().size();
        let refuse = |problem: String| {
            Err(Error::Argument {
                argument: "layers",
                problem: format!("address {:#x}: {problem}", place.address),
            })
        };
        if !place.address.is_multiple_of(size as u64) {
            return refuse(format!(
                "no multiple of the {size} bytes of {}",
                place.layout.element()
            ));
        }
        let offset = place.layout.offset.checked_mul(size);
        if offset.is_none_or(|bytes| place.address.checked_add(bytes as u64).is_none()) {
            return refuse(format!(
                "an offset of {} elements goes past the last one",
                place.layout.offset
            ));
        }
    }
    Ok(())
}

/// How many words a call takes at most: see [`Builder::build`].
pub(super) fn words_at_most(
    rotations: &Rotations,
    layouts: &[&CacheLayout<'_>],
    layers: usize,
) -> usize {
    let words = |size: usize| size.div_ceil(4);
    let tables = rotations.tables();
    let cos_sin: usize = tables.iter().map(|table| table.as_slice().len() + 3).sum();
    // Keys of each rope, keys without one and values, each in 16 bytes or not.
    let shapes = 2 * (tables.len() + 2) * words(size_of::<Shape>());
    // Keys and values: two addresses, and which shape.
    let jobs = 2 * layers * (2 + 2 + 1);
    let spans = rotations.spans().len() * words(size_of::<Span>());
    let rows = rotations.old_rows().max(rotations.new_rows());
    let parts = layouts
        .iter()
        .flat_map(|layout| [Some(layout.keys), layout.values].into_iter().flatten());
    let paged = parts.filter(|part| part.table.is_some());
    let block_tables: usize = paged
        .map(|part| rows.div_ceil(part.rows.len.max(1)) + 1)
        .sum();
    // Sections begin at even words.
    words(size_of::<Header>()) + cos_sin + shapes + jobs + spans + block_tables + 8
}

/// Whether every row of a call without moves stays in its buffer.
fn rows_stay(transfer: &Transfer<'_>, order: &Order) -> bool {
    std::ptr::eq(transfer.source.layout, transfer.destination.layout)
        && transfer.source.address == transfer.destination.address
        && order.spans.iter().all(|span| span.src == span.dst)
}

fn shape(
    transfer: &Transfer<'_>,
    rope: Option<&Rope>,
    wide: bool,
    in_place: bool,
) -> Result<Shape> {
    let layout = transfer.destination.layout;
    let count = |number: usize| {
        u32::try_from(number)
            .map_err(|_| Error::Limit(format!("the CUDA kernels count {number} in 32 bits")))
    };
    let chunk = if wide {
        WIDE / layout.element().size()
    } else {
        1
    };
    let dims = layout.head_dim();
    let (window, pairs) = rope.map_or((0..0, 0), |rope| (rope.window(), rope.pairs()));
    let inside = wide && rope.is_some_and(|rope| rope.pairing() == Pairing::Interleaved);
    // Narrow chunks of interleaved pairs are neighbours.
    let (item_step, partner) = match rope.map(Rope::pairing) {
        Some(Pairing::Interleaved) if !wide => (2, 1),
        _ => (chunk, pairs),
    };
    // Rows that stay have nothing to carry around the window.
    let around = if in_place {
        0
    } else {
        (dims - window.len()) / chunk
    };
    let turning = pairs / chunk;
    Ok(Shape {
        source: side(transfer.source.layout)?,
        destination: side(layout)?,
        batches: count(layout.batch())?,
        heads: count(layout.heads())?,
        items: count(turning + around.div_ceil(2))?,
        turning_items: count(turning)?,
        window: count(window.start)?,
        window_width: count(window.len())?,
        item_step: count(item_step)?,
        partner: count(partner)?,
        around: count(around)?,
        pairs: count(pairs)?,
        wide: wide.into(),
        inside: inside.into(),
        ..Shape::default()
    })
}

fn side(layout: &KeyLayout<'_>) -> Result<Side> {
    let size = layout.element().size();
    // Nobody takes a step along an axis of one.
    let bytes = |axis: Axis| match axis.len {
        0 | 1 => Ok(0),
        _ => axis
            .stride
            .checked_mul(size)
            .map(|bytes| bytes as u64)
            .ok_or_else(|| Error::Layout(format!("a stride of {} elements", axis.stride))),
    };
    let (magic, shift) = magic(layout.rows.len as u64);
    let pack = u32::try_from(layout.pack);
    Ok(Side {
        batch_stride: bytes(layout.batch)?,
        block_stride: bytes(layout.blocks)?,
        row_stride: bytes(layout.rows)?,
        head_stride: bytes(layout.heads)?,
        pack_stride: bytes(layout.packs)?,
        pack: pack
            .map_err(|_| Error::Limit("the CUDA kernels count dimensions in 32 bits".into()))?,
        block_rows: u32::try_from(layout.rows.len).unwrap_or(u32::MAX),
        magic,
        shift,
        table_at: 0,
        has_table: 0,
    })
}

/// Whether everything that a kernel would address is a multiple of 16 bytes.
fn is_wide(transfer: &Transfer<'_>, rope: Option<&Rope>, in_place: bool) -> bool {
    let size = transfer.destination.layout.element().size();
    let chunk = WIDE / size;
    let fits = |place: &Place<'_>| {
        let layout = place.layout;
        let axes = [
            layout.batch,
            layout.blocks,
            layout.rows,
            layout.heads,
            layout.packs,
        ];
        let strides = axes
            .iter()
            .filter(|axis| axis.len > 1)
            .map(|axis| axis.stride);
        let pack = (layout.packs.len > 1).then_some(layout.pack);
        place.base().is_multiple_of(WIDE as u64)
            && strides
                .chain(pack)
                .all(|elements| elements.is_multiple_of(chunk))
    };
    let rope_fits = |rope: &Rope| {
        rope.window().start.is_multiple_of(chunk) && rope.pairs().is_multiple_of(chunk)
    };
    fits(&transfer.source)
        && fits(&transfer.destination)
        && rope.is_none_or(rope_fits)
        && (in_place || transfer.destination.layout.head_dim().is_multiple_of(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotations::TurnedSpan;
    use crate::{ElementType, Plan, Strides};

    /// f16 rows of so many dimensions, so far apart, from an element on.
    fn strides(dims: usize, stride: usize, offset: usize) -> Strides {
        // Nobody takes a step along an axis of one.
        let odd = Axis::new(1, 3);
        Strides {
            batch: odd,
            blocks: odd,
            rows: Axis::new(20, stride),
            heads: odd,
            packs: odd,
            offset,
            pack: dims,
        }
    }

    fn rows(dims: usize, stride: usize, offset: usize) -> KeyLayout<'static> {
        KeyLayout::strided(ElementType::F16, strides(dims, stride, offset))
    }

    /// A wrong answer costs speed, not results.
    #[test]
    fn usual_caches_are_accessed_by_16_bytes() {
        let rope = |width: usize| Rope::from_theta(10_000.0, width).unwrap();
        let wide = |layout: KeyLayout<'_>, address: u64, turn: Option<Rope>, in_place: bool| {
            let place = |address| Place {
                address,
                layout: &layout,
            };
            let transfer = |source, destination| Transfer {
                source: place(source),
                destination: place(destination),
                table: None,
                values: false,
            };
            let [one, other] = [transfer(address, 4096), transfer(4096, address)]
                .map(|transfer| is_wide(&transfer, turn.as_ref(), in_place));
            assert_eq!(one, other);
            one
        };
        let f16 = ElementType::F16;
        assert!(wide(
            KeyLayout::bhsd(f16, [2, 2, 20, 64]),
            256,
            Some(rope(64)),
            false
        ));
        assert!(wide(
            rows(64, 64, 8),
            16,
            Some(rope(32).with_offset(32)),
            false
        ));
        assert!(wide(
            KeyLayout::x_packed(f16, [4, 2, 4, 16, 8]),
            256,
            Some(rope(32)),
            true
        ));
        assert!(wide(rows(64, 64, 0), 256, None, false));
        // Dimensions behind the window stay where they are.
        assert!(wide(rows(36, 40, 0), 256, Some(rope(32)), true));

        assert!(!wide(rows(36, 40, 0), 256, Some(rope(32)), false));
        assert!(!wide(rows(64, 64, 0), 264, Some(rope(64)), true));
        assert!(!wide(rows(64, 64, 4), 256, Some(rope(64)), true));
        assert!(!wide(rows(64, 68, 0), 256, Some(rope(64)), true));
        assert!(!wide(rows(64, 64, 0), 256, Some(rope(24)), true));
        assert!(!wide(
            rows(64, 64, 0),
            256,
            Some(rope(32).with_offset(4)),
            true
        ));
        // Packs of four, though each begins at a multiple of sixteen bytes.
        let apart = Strides {
            packs: Axis::new(8, 8),
            pack: 4,
            rows: Axis::new(20, 64),
            ..strides(64, 64, 0)
        };
        assert!(!wide(
            KeyLayout::strided(f16, apart),
            256,
            Some(rope(32)),
            true
        ));
    }

    #[test]
    fn rows_that_stay_are_known() {
        let layout = rows(64, 64, 0);
        let copy = layout;
        let place = |address, layout| Place { address, layout };
        let stay = |source, destination, moved: usize| {
            let transfer = Transfer {
                source,
                destination,
                table: Some(0),
                values: false,
            };
            let rope = Rope::from_theta(10_000.0, 64).unwrap();
            let plan = Plan::from_positions(&[1, 2, 3], &[2, 3, 4]).unwrap();
            let rotations = Rotations::new(&plan, &rope).unwrap();
            let spans = rotations.spans().iter().map(|&span| TurnedSpan {
                dst: span.src + moved,
                ..span
            });
            rows_stay(&transfer, &Order::new(spans).unwrap())
        };
        assert!(stay(place(256, &layout), place(256, &layout), 0));
        assert!(!stay(place(256, &layout), place(256, &layout), 1));
        assert!(!stay(place(256, &layout), place(512, &layout), 0));
        assert!(!stay(place(256, &layout), place(256, &copy), 0));
    }
}
