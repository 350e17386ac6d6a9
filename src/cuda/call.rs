//! From layers and rows to one launch: the words that its kernel reads, and its grid.

use std::ops::Range;

use bytemuck::Pod;

use super::abi::{Header, LARGE, SMALL, Shape, Side, magic};
use super::modules::Verb;
use crate::order::{End, NONE, Order, Span};
use crate::{CacheLayout, Error, KeyLayout, Pairing, Result, Rope, Rotations};

/// Threads of a block, at most: what the kernels' `__launch_bounds__` say.
const THREADS: u32 = 256;
const WARP: u32 = 32;

/// Blocks that a multiprocessor runs at a time (`__launch_bounds__`): as many lanes of `splice` keep all of them busy.
const RESIDENT: u64 = 2;

/// Blocks of `rotate` that follow each other there, so that all multiprocessors finish at about the same time.
const WAVES: u64 = 4;

/// Rows that a thread of `rotate` takes, at most, and how many of them it loads at once (its `DEPTH`).
const STEPS: u64 = 16;
const DEPTH: u64 = 4;

/// Bytes of a wide access.
const WIDE: usize = 16;

/// Threads that one row is shared out to, at most: 1 KiB of neighbouring chunks on each side of a window, and four
/// rows to a block.
const ACROSS: u32 = 64;

/// Items of a lane of `splice`: whole cache lines of 128 bytes if there are lanes enough, whole sectors of 32 bytes
/// if not.
const SPLICE_ITEMS: [u32; 3] = [8, 4, 2];

/// One layer's keys or values at one end of a call.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Address of the buffer.
    pub(super) address: u64,
    pub(super) layout: &'a KeyLayout<'a>,
}

impl Place<'_> {
    /// Address of the layout's first element.
    fn base(&self) -> u64 {
        let bytes = self.layout.offset as u64 * self.layout.element().size() as u64;
        self.address.wrapping_add(bytes)
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

/// What transfers of one shape have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    table: Option<usize>,
    values: bool,
    wide: bool,
}

/// A launch, but for where its words are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) verb: Verb,
    pub(super) grid: [u32; 2],
    pub(super) threads: u32,
}

/// Makes launches, in memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Builder {
    /// A [`Header`], then everything that it points to.
    pub(super) words: Vec<u32>,
    /// Block tables that are among the words: address, length, and where.
    block_tables: Vec<(*const u32, usize, u32)>,
}

// SAFETY: the addresses are compared, never followed.
unsafe impl Send for Builder {}

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
    pub(super) fn build(
        &mut self,
        verb: Verb,
        rotations: &Rotations,
        order: &Order,
        transfers: &[Transfer<'_>],
        multiprocessors: u32,
    ) -> Result<Option<Launch>> {
        self.words.clear();
        self.block_tables.clear();
        let Some(first) = transfers.first() else {
            return Ok(None);
        };
        let empty =
            |layout: &KeyLayout<'_>| layout.batch() * layout.heads() * layout.head_dim() == 0;
        if order.rows == 0
            || transfers
                .iter()
                .all(|transfer| empty(transfer.destination.layout))
        {
            return Ok(None);
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
        for transfer in transfers {
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
            let transfer = &transfers[one.expect("a transfer of each kind")];
            let rope = kind.table.map(|index| rotations.tables()[index].rope());
            let mut shape = shape(transfer, rope, kind.wide, in_place)?;
            shape.cos_sin_at = kind.table.map_or(NONE, |index| cos_sin[index]);
            shape.source.table_at = self.block_table(transfer.source.layout, &read);
            shape.destination.table_at = self.block_table(transfer.destination.layout, &written);
            shapes.push(shape);
        }

        let jobs =
            |shape: usize| shape_of.iter().filter(|&&of| of as usize == shape).count() as u64;
        let multiprocessors = u64::from(multiprocessors);
        match verb {
            Verb::Rotate => shapes.iter_mut().for_each(share_out),
            Verb::Splice => {
                for most in SPLICE_ITEMS {
                    shapes.iter_mut().for_each(|shape| cut_lanes(shape, most));
                    let lanes = shapes
                        .iter()
                        .enumerate()
                        .map(|(index, shape)| jobs(index) * lanes(shape));
                    if lanes.sum::<u64>() >= multiprocessors * RESIDENT {
                        break;
                    }
                }
            }
        }
        let across = |shape: &Shape| shape.group * shape.head_group;
        let busy = shapes
            .iter()
            .map(|shape| u64::from(across(shape)) * u64::from(order.rows));
        let threads = busy.max().unwrap_or(0).next_multiple_of(WARP.into());
        let threads = threads.min(THREADS.into()) as u32;
        // Rows that a block takes at once, and how often it does, for all rows.
        let rounds = |shape: &Shape| u64::from(order.rows.div_ceil(threads / across(shape)));
        let steps = match verb {
            Verb::Rotate => {
                let all: u64 = shapes
                    .iter()
                    .enumerate()
                    .map(|(index, shape)| jobs(index) * lanes(shape) * rounds(shape))
                    .sum();
                let wanted = multiprocessors * RESIDENT * WAVES;
                let steps = (all / wanted).clamp(1, STEPS);
                if steps > DEPTH {
                    steps / DEPTH * DEPTH
                } else {
                    steps
                }
            }
            Verb::Splice => u64::MAX,
        };
        let blocks = shapes
            .iter()
            .map(|shape| lanes(shape) * rounds(shape).div_ceil(steps));
        let blocks = blocks.max().unwrap_or(0);
        let grid = [
            u32::try_from(blocks)
                .ok()
                .filter(|&blocks| blocks < 1 << 31),
            u32::try_from(transfers.len())
                .ok()
                .filter(|&jobs| jobs < 1 << 16),
        ];
        let [Some(blocks), Some(jobs)] = grid else {
            return Err(Error::Limit(format!(
                "{blocks} blocks for each of {} key and value buffers are more than a launch takes",
                transfers.len()
            )));
        };

        let addresses =
            |end: fn(&Transfer<'_>) -> u64| transfers.iter().map(end).collect::<Vec<u64>>();
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
            steps: steps as u32,
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
        Ok(Some(Launch {
            verb,
            grid: [blocks, jobs],
            threads,
        }))
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

    /// Where entry 0 of a layout's block table would be among the words, of which only those of these rows are there.
    fn block_table(&mut self, layout: &KeyLayout<'_>, rows: &Range<usize>) -> u32 {
        let Some(table) = layout.table else {
            return NONE;
        };
        let block = layout.rows.len;
        let needed = rows.start / block..rows.end.div_ceil(block);
        let part = &table[needed.clone()];
        let key = (part.as_ptr(), part.len());
        let known = self
            .block_tables
            .iter()
            .find(|known| (known.0, known.1) == key);
        let start = known.map(|known| known.2).unwrap_or_else(|| {
            if self.words.len() + 1 == needed.start {
                // Entry 0 would be at -1, which reads as `NONE`.
                self.words.push(0);
            }
            let start = self.push(part, 1);
            self.block_tables.push((key.0, key.1, start));
            start
        });
        start.wrapping_sub(needed.start as u32)
    }
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

/// How many independent lanes a shape has in each job: blocks, but for the rows.
fn lanes(shape: &Shape) -> u64 {
    u64::from(shape.batches)
        * u64::from(shape.heads.div_ceil(shape.head_group))
        * u64::from(shape.items.div_ceil(shape.group))
}

/// Shares a block out to items, heads and rows for `rotate`: neighbouring threads to what is near in memory.
fn share_out(shape: &mut Shape) {
    let side = &shape.destination;
    (shape.group, shape.head_group) = (1, 1);
    if side.pack_stride > side.row_stride {
        // The rows of a pack are neighbours: x-packed pages.
        return;
    }
    shape.group = evenly(shape.items, ACROSS);
    if side.head_stride < side.row_stride {
        shape.head_group = evenly(shape.heads, ACROSS / shape.group);
    }
}

/// The same for `splice`, whose items are each a lane of their own.
fn cut_lanes(shape: &mut Shape, most: u32) {
    let side = &shape.destination;
    (shape.group, shape.head_group) = (1, 1);
    if side.pack_stride <= side.row_stride {
        // As many bytes of narrow items.
        let most = if shape.wide == 1 { most } else { most * 8 };
        shape.group = evenly(shape.items, most);
    }
}

/// The largest of the equal parts, as equal as can be, of no more than `most` that `all` has.
fn evenly(all: u32, most: u32) -> u32 {
    all.div_ceil(all.div_ceil(most.max(1)).max(1)).max(1)
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
    let size = layout.element().size() as u64;
    let bytes = |stride: usize| stride as u64 * size;
    let (magic, shift) = magic(layout.rows.len as u64);
    let pack = u32::try_from(layout.pack);
    Ok(Side {
        batch_stride: bytes(layout.batch.stride),
        block_stride: bytes(layout.blocks.stride),
        row_stride: bytes(layout.rows.stride),
        head_stride: bytes(layout.heads.stride),
        // Without packs there is no way between them, and nothing that is longer than a row.
        pack_stride: if layout.packs.len > 1 {
            bytes(layout.packs.stride)
        } else {
            0
        },
        pack: pack
            .map_err(|_| Error::Limit("the CUDA kernels count dimensions in 32 bits".into()))?,
        block_rows: u32::try_from(layout.rows.len).unwrap_or(u32::MAX),
        magic,
        shift,
        table_at: NONE,
        unused: 0,
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
