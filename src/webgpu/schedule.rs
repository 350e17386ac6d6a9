//! From layers and rows to dispatches.
//!
//! A [`Transfer`] is one layer's keys or values on their way. It becomes one [`Job`] of a kernel, or several
//! where its cache is larger than a binding. Jobs that no order binds and that see the same buffers through the
//! same kernel share a dispatch, as long as one binding holds them all.
//!
//! Where rows move from one window to another of the same buffer and the two cannot be bound side by side, rows
//! are carried through a scratch buffer, as many at a time as it holds: two dispatches a time, in the call's
//! order, so that overlapping moves stay safe.

use std::ops::Range;

use super::FEWEST;
use super::abi::{Job, Side};
use super::pipelines::{Access, Kernel, Key, Pairs};
use super::windows::{Place, Region, Windows, bound, intersection, length};
use crate::order::{End, NONE, Order, hull};
use crate::{Axis, Error, KeyLayout, Pairing, Result, Rope, Rotations, Strides};

/// Rows of a workgroup of `kernels/rotate.wgsl`: its `TILE`.
pub(super) const TILE: u32 = 64;

/// How many steps before it a step may join. Windows come in order, so what fits together is near; all of them
/// would cost the square of their number.
const NEAR: usize = 128;

/// One layer's keys or values on their way.
#[derive(Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) source: Place<'a>,
    pub(super) destination: Place<'a>,
    /// Which of the rotations' tables turns them; `None`: values, and keys without a rope.
    pub(super) table: Option<usize>,
    /// Whole rows go from source to destination; otherwise the window alone turns where it is.
    pub(super) moves: bool,
}

/// Part of a buffer that one binding holds, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window<Buffer = wgpu::Buffer> {
    pub(super) buffer: Buffer,
    pub(super) bytes: Range<u64>,
}

impl<Buffer: Clone + PartialEq> Window<Buffer> {
    /// The window around both, if it is one buffer and no longer than `largest`.
    fn union(&self, other: &Self, largest: u64) -> Option<Self> {
        let bytes = self.bytes.start.min(other.bytes.start)..self.bytes.end.max(other.bytes.end);
        (self.buffer == other.buffer && length(&bytes) <= largest).then(|| Window {
            buffer: self.buffer.clone(),
            bytes,
        })
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer && !intersection(&self.bytes, &other.bytes).is_empty()
    }
}

/// What a dispatch binds: a source, `None` if it is in the destination's window, and a destination. The two of one
/// buffer never overlap, as WGSL forbids to write what another binding sees.
type Bound<Buffer> = (Option<Window<Buffer>>, Window<Buffer>);

/// One window to read and one to write; `None` if they cannot be bound together.
fn bind<Buffer: Clone + PartialEq>(
    source: Window<Buffer>,
    destination: Window<Buffer>,
    largest: u64,
) -> Option<Bound<Buffer>> {
    match destination.union(&source, largest) {
        Some(both) => Some((None, both)),
        None if source.overlaps(&destination) => None,
        None => Some((Some(source), destination)),
    }
}

/// What two steps bind, which both have a source apart or neither; `None` if one dispatch cannot do both.
fn bind_both<Buffer: Clone + PartialEq>(
    one: (Option<&Window<Buffer>>, &Window<Buffer>),
    other: (Option<&Window<Buffer>>, &Window<Buffer>),
    largest: u64,
) -> Option<Bound<Buffer>> {
    let destination = one.1.union(other.1, largest)?;
    let Some((one, other)) = one.0.zip(other.0) else {
        return Some((None, destination));
    };
    let source = one.union(other, largest)?;
    (!source.overlaps(&destination)).then_some((Some(source), destination))
}

/// Jobs that one dispatch does.
pub(super) struct Step {
    pub(super) key: Key,
    /// `None`: the destination's.
    pub(super) source: Option<Window>,
    pub(super) destination: Window,
    drafts: Vec<Draft>,
}

/// A job that does not know yet where its bindings begin.
struct Draft {
    job: Job,
    source: u64,
    destination: u64,
}

impl Step {
    /// Its jobs, now that its windows are what they are.
    pub(super) fn jobs(&self) -> impl Iterator<Item = Job> {
        let size = self.key.element.size() as i64;
        let from = self
            .source
            .as_ref()
            .unwrap_or(&self.destination)
            .bytes
            .start;
        let to = self.destination.bytes.start;
        // A layout may begin before its window: kernels wrap, too.
        let first = move |base: u64, window: u64| ((base as i64 - window as i64) / size) as u32;
        self.drafts.iter().map(move |draft| {
            let mut job = draft.job;
            job.source.first = first(draft.source, from);
            job.destination.first = first(draft.destination, to);
            job
        })
    }

    /// Its grid: tiles of rows, lanes, jobs.
    pub(super) fn grid(&self) -> [u32; 3] {
        let jobs = || self.drafts.iter().map(|draft| &draft.job);
        let tiles = match self.key.kernel {
            Kernel::Rotate => jobs().map(|job| job.rows.div_ceil(TILE)).max(),
            Kernel::Splice => Some(1),
        };
        let lanes = jobs().map(|job| job.batches * job.heads * job.items.div_ceil(job.group));
        [
            tiles.unwrap_or(0),
            lanes.max().unwrap_or(0),
            self.drafts.len() as u32,
        ]
    }
}

/// What a schedule is made for.
pub(super) struct Schedule<'a> {
    rotations: &'a Rotations,
    order: &'a Order,
    /// Bytes that one binding holds.
    largest: u64,
    /// Invocations of a workgroup.
    threads: u32,
    /// Head vectors of the call, those of all layers.
    vectors: u32,
    pub(super) steps: Vec<Step>,
    /// Steps before this one have to be done before those after it.
    phase: usize,
    /// The entries of block tables that the call needs, one table after the other.
    pub(super) tables: Vec<u32>,
    known_tables: Vec<(*const [u32], usize)>,
}

/// Where rows are that lie one after the other in the call's order, from this one on.
type Dense = Option<u32>;

impl<'a> Schedule<'a> {
    pub(super) fn new(
        rotations: &'a Rotations,
        order: &'a Order,
        largest: u64,
        threads: u32,
    ) -> Self {
        Schedule {
            rotations,
            order,
            largest,
            threads,
            vectors: 0,
            steps: Vec::new(),
            phase: 0,
            tables: Vec::new(),
            known_tables: Vec::new(),
        }
    }

    /// Jobs for transfers whose rows no order binds. Returns those that have to go through a scratch buffer.
    ///
    /// # Errors
    /// [`Error::Limit`] if a head vector spans more than a binding.
    pub(super) fn free(&mut self, transfers: &[Transfer<'a>]) -> Result<Vec<Transfer<'a>>> {
        let mut rest = Vec::new();
        for transfer in transfers {
            match self.pairs(transfer)? {
                Some(steps) => steps.into_iter().for_each(|step| self.add(step)),
                None => rest.push(*transfer),
            }
        }
        Ok(rest)
    }

    /// A job for each pair of windows that rows go between; `None` if there is a pair that cannot be bound.
    fn pairs(&mut self, transfer: &Transfer<'a>) -> Result<Option<Vec<Step>>> {
        let source = self.windows(&transfer.source, End::Source)?;
        let destination = match transfer.moves {
            true => Some(self.windows(&transfer.destination, End::Destination)?),
            false => None,
        };
        let mut steps = Vec::new();
        for (rows, from) in &source.parts {
            // Rows that stay are where they were.
            let stay = destination.is_none().then(|| (rows.clone(), from));
            let go = destination
                .iter()
                .flat_map(|windows| windows.of(rows.clone()));
            for (rows, to) in stay.into_iter().chain(go) {
                if shared(from, to).is_none() {
                    continue;
                }
                match self.step(Kernel::Rotate, transfer, (from, None), (to, None), rows) {
                    Some(step) => steps.push(step),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(steps))
    }

    /// Jobs for transfers that move inside their buffer, in the call's order. Returns those that have to go
    /// through a scratch buffer: whose lanes are longer than a binding.
    ///
    /// # Errors
    /// [`Error::Limit`] if a head vector spans more than a binding.
    pub(super) fn ordered(&mut self, transfers: &[Transfer<'a>]) -> Result<Vec<Transfer<'a>>> {
        let mut rest = Vec::new();
        let (source, destination) = (
            self.order.touched(End::Source),
            self.order.touched(End::Destination),
        );
        let touched = hull(source, destination);
        let vectors = transfers
            .iter()
            .map(|transfer| &transfer.destination.layout);
        let vectors = vectors.map(|layout| layout.batch() * layout.heads());
        self.vectors = u32::try_from(vectors.sum::<usize>()).unwrap_or(u32::MAX);
        for transfer in transfers {
            let place = &transfer.destination;
            let whole = Region::around(&place.layout, touched.clone());
            let mut regions = Vec::new();
            whole.clone().cut(place, self.largest, &mut regions)?;
            let whole_lanes = regions
                .iter()
                .all(|part| part.blocks == whole.blocks && part.rows == whole.rows);
            if !whole_lanes {
                rest.push(*transfer);
                continue;
            }
            for region in &regions {
                let rows = 0..self.order.rows;
                let step = self.step(
                    Kernel::Splice,
                    transfer,
                    (region, None),
                    (region, None),
                    rows,
                );
                self.add(step.expect("a region fits a binding"));
            }
        }
        Ok(rest)
    }

    /// Carries a transfer's rows through `scratch`, in the call's order.
    ///
    /// # Errors
    /// [`Error::Limit`] if a row does not fit the scratch buffer, or a head vector no binding.
    pub(super) fn bounce(
        &mut self,
        transfer: &Transfer<'a>,
        scratch: &'a wgpu::Buffer,
    ) -> Result<()> {
        let layout = &transfer.destination.layout;
        let (batch, heads) = (layout.batch(), layout.heads());
        // Any access that the cache allows is aligned in the scratch buffer.
        let dim = layout.head_dim().next_multiple_of(8);
        let row_bytes = (batch * heads * dim * layout.element().size()) as u64;
        let rows_at_once = u32::try_from(scratch.size() / row_bytes).unwrap_or(u32::MAX);
        if rows_at_once == 0 {
            return Err(Error::Limit(format!(
                "a row of {row_bytes} bytes does not fit the {} of one binding",
                scratch.size()
            )));
        }
        let between = Place {
            buffer: scratch,
            offset: 0,
            layout: KeyLayout::strided(
                layout.element(),
                Strides {
                    offset: 0,
                    batch: Axis::new(batch, rows_at_once as usize * heads * dim),
                    blocks: Axis::new(1, 0),
                    rows: Axis::new(rows_at_once as usize, heads * dim),
                    heads: Axis::new(heads, dim),
                    packs: Axis::new(1, 0),
                    pack: layout.head_dim(),
                },
            ),
        };
        let here = Region::around(&between.layout, 0..rows_at_once as usize);
        let out = Transfer {
            destination: between,
            ..*transfer
        };
        let back = Transfer {
            source: between,
            table: None,
            ..*transfer
        };
        let source = self.windows(&out.source, End::Source)?;
        let destination = self.windows(&back.destination, End::Destination)?;
        for start in (0..self.order.rows).step_by(rows_at_once as usize) {
            let rows = start..self.order.rows.min(start.saturating_add(rows_at_once));
            let there = (&here, Some(start));
            self.phase = self.steps.len();
            for (rows, region) in source.of(rows.clone()) {
                let step = self.step(Kernel::Rotate, &out, (region, None), there, rows);
                step.into_iter().for_each(|step| self.add(step));
            }
            self.phase = self.steps.len();
            for (rows, region) in destination.of(rows) {
                let step = self.step(Kernel::Rotate, &back, there, (region, None), rows);
                step.into_iter().for_each(|step| self.add(step));
            }
        }
        self.phase = self.steps.len();
        Ok(())
    }

    fn windows(&self, place: &Place<'_>, end: End) -> Result<Windows> {
        Windows::new(place, self.order, end, self.largest)
    }

    /// A step of one job: rows `rows` of the call's order, from one window to another. `None` if there is
    /// nothing to do, or if the two windows cannot be bound together.
    fn step(
        &mut self,
        kernel: Kernel,
        transfer: &Transfer<'a>,
        (from, from_dense): (&Region, Dense),
        (to, to_dense): (&Region, Dense),
        rows: Range<u32>,
    ) -> Option<Step> {
        if rows.is_empty() {
            return None;
        }
        let (from, to) = shared(from, to)?;
        let window = |place: &Place<'_>, region: &Region| Window {
            buffer: place.buffer.clone(),
            bytes: bound(&region.bytes(place)),
        };
        let source = window(&transfer.source, &from);
        let destination = window(&transfer.destination, &to);
        let (source, destination) = bind(source, destination, self.largest)?;

        let table = transfer.table.map(|index| &self.rotations.tables()[index]);
        let rope = table.map(|table| table.rope());
        let layout = &transfer.destination.layout;
        let ends = [&transfer.source, &transfer.destination];
        let ends = ends.map(|place| (place.base(), &place.layout));
        let access = access(ends, transfer.moves, rope);
        let chunk = access.chunk(layout.element());
        let dims = layout.head_dim();
        let (window, pairs, partner, item_step, turning) = match rope {
            None => (dims..dims, 0, 0, 0, 0),
            Some(rope) => {
                let (pairs, window) = (rope.pairs(), rope.window());
                match rope.pairing() {
                    Pairing::HalfSplit => (window, pairs, pairs, chunk, pairs / chunk),
                    Pairing::Interleaved if chunk == 1 => (window, pairs, 1, 2, pairs),
                    Pairing::Interleaved => (window, pairs, 0, chunk, 2 * pairs / chunk),
                }
            }
        };
        let around = if transfer.moves {
            (dims - window.len()) / chunk
        } else {
            0
        };
        let items = turning + around;
        if items == 0 {
            return None;
        }
        let group = Group {
            kernel,
            access,
            rows_first: layout.packs.len > 1,
            items: items as u32,
            rows: rows.len() as u32,
            threads: self.threads,
            vectors: self.vectors,
        };
        let job = Job {
            source: self.side(&transfer.source, &from, from_dense, End::Source),
            destination: self.side(&transfer.destination, &to, to_dense, End::Destination),
            first_batch: to.batch.start as u32,
            batches: to.batch.len() as u32,
            first_head: to.heads.start as u32,
            heads: to.heads.len() as u32,
            first_row: rows.start,
            rows: rows.len() as u32,
            items: items as u32,
            group: group.size(),
            rows_first: u32::from(group.rows_first),
            turning_items: turning as u32,
            window: window.start as u32,
            window_width: window.len() as u32,
            item_step: item_step as u32,
            partner: partner as u32,
            table: transfer.table.map_or(0, |index| self.table_start(index)),
            row_by_row: table.is_some_and(|table| table.is_row_by_row()).into(),
            pairs: pairs as u32,
        };
        Some(Step {
            key: Key {
                kernel,
                access,
                element: layout.element(),
                pairs: match (turning, partner) {
                    (0, _) => Pairs::None,
                    (_, 0) => Pairs::Inside,
                    _ => Pairs::Apart,
                },
                within: source.is_none(),
                threads: self.threads,
            },
            source,
            destination,
            drafts: vec![Draft {
                job,
                source: transfer.source.base(),
                destination: transfer.destination.base(),
            }],
        })
    }

    /// Where a table's floats begin among those of all tables.
    fn table_start(&self, index: usize) -> u32 {
        let before = &self.rotations.tables()[..index];
        before
            .iter()
            .map(|table| table.as_slice().len() as u32)
            .sum()
    }

    fn side(&mut self, place: &Place<'a>, region: &Region, dense: Dense, end: End) -> Side {
        let layout = &place.layout;
        let limit = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Side {
            first: 0,
            // Strides wrap as the kernels' sums do.
            batch_stride: layout.batch.stride as u32,
            block_stride: layout.blocks.stride as u32,
            row_stride: layout.rows.stride as u32,
            head_stride: layout.heads.stride as u32,
            pack_stride: layout.packs.stride as u32,
            pack: limit(layout.pack),
            block_rows: limit(layout.rows.len),
            table: layout
                .table
                .map_or(NONE, |table| self.block_table(table, layout.rows.len, end)),
            first_block: limit(region.blocks.start),
            blocks: limit(region.blocks.len()),
            first_row: limit(region.rows.start),
            rows: limit(region.rows.len()),
            dense: dense.unwrap_or(NONE),
        }
    }

    /// Where entry 0 of a block table would be among the entries that the call needs.
    fn block_table(&mut self, table: &'a [u32], block: usize, end: End) -> u32 {
        let rows = self.order.touched(end);
        let needed = rows.start / block..rows.end.div_ceil(block);
        let part = &table[needed.clone()];
        let known = self
            .known_tables
            .iter()
            .find(|(known, _)| std::ptr::eq(*known, part));
        let start = match known {
            Some(&(_, start)) => start,
            None => {
                if self.tables.len() + 1 == needed.start {
                    // Entry 0 would be at -1, which reads as `NONE`.
                    self.tables.push(0);
                }
                let start = self.tables.len();
                self.tables.extend_from_slice(part);
                self.known_tables.push((part, start));
                start
            }
        };
        (start as u32).wrapping_sub(needed.start as u32)
    }

    /// Adds a step, into one of the same phase if their windows fit one binding.
    fn add(&mut self, mut step: Step) {
        for other in self.steps[self.phase..].iter_mut().rev().take(NEAR) {
            let Some(key) = other.key.both(step.key) else {
                continue;
            };
            let bound = bind_both(
                (other.source.as_ref(), &other.destination),
                (step.source.as_ref(), &step.destination),
                self.largest,
            );
            let Some((source, destination)) = bound else {
                continue;
            };
            other.key = key;
            other.source = source;
            other.destination = destination;
            other.drafts.append(&mut step.drafts);
            return;
        }
        self.steps.push(step);
    }
}

/// The two regions without the batches and heads that only one of them has.
fn shared(from: &Region, to: &Region) -> Option<(Region, Region)> {
    let batch = intersection(&from.batch, &to.batch);
    let heads = intersection(&from.heads, &to.heads);
    let narrow = |region: &Region| Region {
        batch: batch.clone(),
        heads: heads.clone(),
        ..region.clone()
    };
    (!batch.is_empty() && !heads.is_empty()).then(|| (narrow(from), narrow(to)))
}

/// The widest access that fits everything which a kernel would address: of both ends, by the byte at which each
/// begins, of whole rows if they move.
fn access(ends: [(u64, &KeyLayout<'_>); 2], moves: bool, rope: Option<&Rope>) -> Access {
    let element = ends[0].1.element();
    // Everything that must be a multiple of the access's elements, as the bits that any of it has.
    let mut all = 0;
    for (base, layout) in ends {
        all |= (base / element.size() as u64) as usize;
        let axes = [
            layout.batch,
            layout.blocks,
            layout.rows,
            layout.heads,
            layout.packs,
        ];
        for axis in axes.iter().filter(|axis| axis.len > 1) {
            all |= axis.stride;
        }
        if layout.packs.len > 1 {
            all |= layout.pack;
        }
        if moves {
            all |= layout.head_dim();
        }
    }
    if let Some(rope) = rope {
        let window = rope.window();
        all |= window.start | window.end;
        if rope.pairing() == Pairing::HalfSplit {
            all |= rope.pairs();
        }
    }
    [Access::Wide, Access::Word]
        .into_iter()
        .find(|access| all.is_multiple_of(access.chunk(element)))
        .unwrap_or(Access::Half)
}

/// How many of a head vector's items one workgroup takes: neighbours in memory, but no more than leave a good
/// number of rows to the rest of its invocations.
struct Group {
    kernel: Kernel,
    access: Access,
    /// Neighbours in memory are rows instead.
    rows_first: bool,
    /// Items of a head vector.
    items: u32,
    /// Rows of the job.
    rows: u32,
    /// Invocations of a workgroup.
    threads: u32,
    /// Head vectors of the call.
    vectors: u32,
}

impl Group {
    fn size(&self) -> u32 {
        let most = match (self.kernel, self.access) {
            _ if self.rows_first => 1,
            // Lanes are all that a splice fills a GPU with, so they are no wider than a cache line.
            (Kernel::Splice, Access::Wide) => self.narrow(8),
            (Kernel::Splice, _) => self.narrow(64),
            (Kernel::Rotate, _) => 64,
        };
        // Of few rows, more items, so that as few invocations as possible have nothing to do.
        let rows = match self.kernel {
            Kernel::Rotate => self.rows.min(TILE),
            Kernel::Splice => self.rows,
        };
        let enough = self.threads * ROWS_EACH / rows;
        let most = most.max(enough).min(self.items).min(self.threads);
        self.items.div_ceil(self.items.div_ceil(most))
    }

    /// Fewer than `most` items where a GPU has room for more workgroups, but whole sectors of its memory.
    fn narrow(&self, most: u32) -> u32 {
        // A processor, of the fewest invocations, has no such room.
        if self.threads == FEWEST {
            return most;
        }
        let least = SECTOR / self.access.bytes();
        let groups = (FILL / self.threads).div_ceil(self.vectors);
        (self.items / groups).clamp(least, most)
    }
}

/// Rows that an invocation has to itself where there are enough: `DEPTH` of `kernels/splice.wgsl`.
const ROWS_EACH: u32 = 4;

/// Invocations that fill a GPU: the largest of today run 132 times 2048 at once.
const FILL: u32 = 132 * 2048;

/// Bytes that a GPU's memory reads or writes at least.
const SECTOR: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ElementType;

    #[test]
    fn lanes_are_as_narrow_as_a_gpu_has_room_and_invocations_have_rows() {
        let splice = |vectors, threads, rows| Group {
            kernel: Kernel::Splice,
            access: Access::Wide,
            rows_first: false,
            items: 16,
            rows,
            threads,
            vectors,
        };
        // Lanes enough; twice as many are missing; 24 layers of 2 heads, keys and values: whole sectors.
        assert_eq!(splice(2000, 256, 4096).size(), 8);
        assert_eq!(splice(264, 256, 4096).size(), 4);
        assert_eq!(splice(96, 256, 4096).size(), 2);
        // A processor.
        assert_eq!(splice(96, 64, 4096).size(), 8);
        // Three rows do not occupy 256 invocations, however narrow a lane is.
        assert_eq!(splice(96, 256, 3).size(), 16);
        assert_eq!(splice(96, 64, 32).size(), 8);
        let word = |threads| Group {
            access: Access::Word,
            items: 64,
            ..splice(96, threads, 4096)
        };
        assert_eq!(word(256).size(), 8);
        assert_eq!(word(64).size(), 64);
        let packed = |kernel, rows| Group {
            kernel,
            rows_first: true,
            ..splice(96, 256, rows)
        };
        assert_eq!(packed(Kernel::Splice, 4096).size(), 1);
        assert_eq!(packed(Kernel::Splice, 128).size(), 8);
        // A workgroup has no more than `TILE` rows of a rotation.
        assert_eq!(packed(Kernel::Rotate, 4096).size(), 16);
    }

    #[test]
    fn what_is_bound_never_overlaps() {
        let window = |buffer, bytes| Window { buffer, bytes };
        let bound = |source, destination| bind(window(0, source), window(0, destination), 100);
        // Within one window, as long as that may be.
        assert_eq!(bound(0..10, 90..100), Some((None, window(0, 0..100))));
        let apart = Some((Some(window(0, 0..10)), window(0, 91..101)));
        assert_eq!(bound(0..10, 91..101), apart);
        assert_eq!(
            bound(51..101, 0..51),
            Some((Some(window(0, 51..101)), window(0, 0..51)))
        );
        assert_eq!(bound(50..101, 0..51), None);
        let other = bind(window(1, 0..10), window(0, 0..10), 100);
        assert_eq!(other, Some((Some(window(1, 0..10)), window(0, 0..10))));

        let both = |one: (Range<u64>, Range<u64>), other: (Range<u64>, Range<u64>)| {
            let [one, other] = [one, other]
                .map(|(source, destination)| (window(0, source), window(0, destination)));
            bind_both((Some(&one.0), &one.1), (Some(&other.0), &other.1), 100)
        };
        let apart = Some((Some(window(0, 0..60)), window(0, 160..230)));
        assert_eq!(both((0..10, 200..230), (50..60, 160..170)), apart);
        // Each is apart by itself, and all sources from all destinations are not.
        assert_eq!(both((0..10, 80..110), (70..95, 172..180)), None);
        assert_eq!(
            both((0..10, 80..110), (70..80, 172..180)),
            Some((Some(window(0, 0..80)), window(0, 80..180)))
        );
        // Too long to read, and to write.
        assert_eq!(both((0..10, 300..310), (95..101, 300..310)), None);
        assert_eq!(both((0..10, 300..310), (0..10, 395..401)), None);
        let within = bind_both((None, &window(0, 0..10)), (None, &window(0, 90..100)), 100);
        assert_eq!(within, Some((None, window(0, 0..100))));
        assert_eq!(
            bind_both((None, &window(0, 0..9)), (None, &window(1, 0..9)), 100),
            None
        );
    }

    /// A wrong answer costs speed, or reads what is not there.
    #[test]
    fn accesses_are_as_wide_as_all_fits() {
        let f16 = ElementType::F16;
        let rope = |width| Rope::from_theta(10_000.0, width).unwrap();
        let one = Axis::new(1, 3);
        let rows = Strides {
            batch: one,
            blocks: one,
            rows: Axis::new(20, 64),
            heads: one,
            packs: one,
            offset: 0,
            pack: 64,
        };
        let widest = |strides, base, moves, rope: &Rope| {
            let (plain, layout) = (
                KeyLayout::strided(f16, rows),
                KeyLayout::strided(f16, strides),
            );
            let ends = [(256, &plain), (base, &layout)];
            let both = [ends, [ends[1], ends[0]]].map(|ends| access(ends, moves, Some(rope)));
            assert_eq!(both[0], both[1]);
            both[0]
        };
        assert_eq!(widest(rows, 16, true, &rope(64)), Access::Wide);
        assert_eq!(widest(rows, 8, true, &rope(64)), Access::Word);
        assert_eq!(widest(rows, 2, true, &rope(64)), Access::Half);
        let apart = |stride| Strides {
            rows: Axis::new(20, stride),
            ..rows
        };
        assert_eq!(widest(apart(72), 0, true, &rope(64)), Access::Wide);
        assert_eq!(widest(apart(66), 0, true, &rope(64)), Access::Word);
        assert_eq!(widest(apart(65), 0, true, &rope(64)), Access::Half);
        // Two elements of every eight, so that a pack is what is narrow.
        let packs = Strides {
            packs: Axis::new(8, 8),
            pack: 2,
            ..rows
        };
        assert_eq!(widest(packs, 0, false, &rope(16)), Access::Word);
        // Dimensions that stay are not looked at.
        let wide = Strides { pack: 61, ..rows };
        assert_eq!(widest(wide, 0, false, &rope(32)), Access::Wide);
        assert_eq!(widest(wide, 0, true, &rope(32)), Access::Half);
        // Pairs of halves, and neighbours.
        assert_eq!(widest(rows, 0, false, &rope(24)), Access::Word);
        let neighbours = |width| rope(width).with_pairing(Pairing::Interleaved);
        assert_eq!(widest(rows, 0, false, &neighbours(24)), Access::Wide);
        let both_ends = neighbours(24).with_offset(4);
        assert_eq!(widest(rows, 0, false, &both_ends), Access::Word);
        let first = neighbours(28).with_offset(4);
        assert_eq!(widest(rows, 0, false, &first), Access::Word);
        assert_eq!(widest(rows, 0, false, &neighbours(28)), Access::Word);
    }
}
