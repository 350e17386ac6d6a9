//! The CPU backend: the three verbs over slices, or over raw addresses.

pub(crate) mod arch;
mod layer;
mod threads;
mod transfer;

use std::ops::Range;

pub use layer::{Layer, LayerRef, RawLayer};

use crate::check;
use crate::rotations::{Table, TurnedSpan};
use crate::{CacheLayout, Element, Error, KeyLayout, Result, Rotations, memory};
use arch::Kernels;
use threads::Threads;
use transfer::{End, Groups, Part, Transfer};

/// Bytes that one thread works on before it asks for more: long enough for a stream of memory to get
/// going, short enough that the last threads to finish finish together.
const PIECE: usize = 1 << 20;

/// Turns and moves cached rows in the memory of the CPU.
///
/// ```
/// use pie_rope::{Cpu, Edit, ElementType, KeyLayout, Layer, Plan, Rope, Rotations};
///
/// // One layer, `[batch, heads, seq, dim]`, room for 16 rows of which 10 are in use.
/// let layout = KeyLayout::bhsd(ElementType::F32, [1, 2, 16, 64]);
/// let mut keys = vec![0.5f32; 2 * 16 * 64];
/// let mut values = vec![0.5f32; 2 * 16 * 64];
///
/// // Three tokens are inserted before token 4: rows 4.. move to 7.. and turn by 3 positions.
/// let plan = Plan::from_edits(10, &[Edit::insert(4, 3)])?;
/// let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 64)?)?;
/// Cpu::new().splice(&rotations, layout, &mut [Layer::new(&mut keys, &mut values)])?;
///
/// // Rows 4..7 are the engine's to encode, at positions 4..7.
/// assert_eq!(plan.new_spans()[0].position, 4);
/// # Ok::<(), pie_rope::Error>(())
/// ```
///
/// # What a verb does
///
/// - [`rotate`](Cpu::rotate): rows stay where they are (`src` of each span), keys turn in place.
/// - [`splice`](Cpu::splice): rows move inside their buffer, keys turn on the way, values move.
/// - [`copy`](Cpu::copy): rows go to another buffer, or ([`copy_within`](Cpu::copy_within)) to other
///   pages of the same one; keys turn on the way.
///
/// Only the window of the rope is read and written where rows stay, and rows that neither turn nor move
/// are not touched at all.
///
/// # Cost
///
/// A call makes a few small allocations, in proportion to the layers and spans. Small calls run on the
/// calling thread; large ones are spread over the backend's threads.
///
/// # Exactness
///
/// Every output is one f32 product and one fused multiply-add on the table's f32 values, rounded once,
/// to nearest even, to the stored type. All instruction sets give the same bits. A NaN that comes out
/// of a turn is the one with a clear sign and all value bits set.
///
/// # Errors
///
/// All verbs check all of their arguments before they write, and return [`Error::Layout`] (a layout or
/// table that does not fit its buffer or the plan), [`Error::Argument`] (arguments that do not fit
/// each other) or [`Error::OutOfMemory`]. A refused call has written nothing.
#[derive(Debug)]
pub struct Cpu {
    kernels: &'static Kernels,
    threads: Threads,
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl Cpu {
    /// The widest instructions that this CPU has, on all of its cores (rayon's global pool; without the
    /// `rayon` feature, the calling thread).
    pub fn new() -> Cpu {
        Cpu {
            kernels: Kernels::best(),
            threads: Threads::default(),
        }
    }

    /// As [`new`](Cpu::new), on `threads` threads: one is the calling thread, more are a pool that
    /// lives as long as the backend does.
    ///
    /// # Errors
    /// [`Error::Argument`] if `threads` is zero or more than 4096, and [`Error::Limit`] if the system
    /// does not give as many.
    pub fn with_threads(threads: usize) -> Result<Cpu> {
        Ok(Cpu {
            kernels: Kernels::best(),
            threads: Threads::new(threads)?,
        })
    }

    #[cfg(feature = "capi")]
    pub(crate) const MAX_THREADS: usize = threads::MAX_THREADS;

    /// Starts the threads that a call may be spread over, which the first large one would do else.
    #[cfg(feature = "capi")]
    pub(crate) fn start(&self) -> Result<()> {
        self.threads.start()
    }

    /// Every instruction set that this build has kernels for, widest first.
    pub const INSTRUCTION_SETS: &[&str] = arch::NAMES;

    /// One of [`INSTRUCTION_SETS`](Cpu::INSTRUCTION_SETS), on the calling thread. All of them give the
    /// same bits: this is for tests and measurements.
    ///
    /// # Errors
    /// [`Error::Argument`] if this build has no such kernels, or this CPU cannot run them.
    pub fn with_instruction_set(name: &str) -> Result<Cpu> {
        let known = Kernels::available().find(|kernels| kernels.name == name);
        let kernels = known.ok_or_else(|| Error::Argument {
            argument: "name",
            problem: if Cpu::INSTRUCTION_SETS.contains(&name) {
                format!("this CPU has no {name}")
            } else {
                format!(
                    "there is no {name}, only {}",
                    Cpu::INSTRUCTION_SETS.join(", ")
                )
            },
        })?;
        Ok(Cpu {
            kernels,
            threads: Threads::One,
        })
    }

    /// The instruction set in use.
    pub fn instruction_set(&self) -> &'static str {
        self.kernels.name
    }

    /// How many threads a large call is spread over.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Turns keys where they lie: row `src` of every span, in every layer. Values are not looked at.
    ///
    /// For engines whose rows keep their places (token slots, cells) or were already moved
    /// (`Plan::in_place`).
    ///
    /// # Errors
    /// See [`Cpu`].
    pub fn rotate<'t, T: Element>(
        &self,
        rotations: &Rotations,
        layout: impl Into<CacheLayout<'t>>,
        layers: &mut [Layer<'_, T>],
    ) -> Result<()> {
        let layout = typed::<T>(layout.into())?;
        // SAFETY: a slice is valid for its length, and `&mut` means that nobody else has it.
        unsafe { self.rotate_raw(rotations, &layout, &raw(layers)) }
    }

    /// Moves rows inside their buffers and turns keys on the way. Safe for overlapping moves in both
    /// directions at once.
    ///
    /// # Errors
    /// See [`Cpu`].
    pub fn splice<'t, T: Element>(
        &self,
        rotations: &Rotations,
        layout: impl Into<CacheLayout<'t>>,
        layers: &mut [Layer<'_, T>],
    ) -> Result<()> {
        let layout = typed::<T>(layout.into())?;
        // SAFETY: as in `rotate`.
        unsafe { self.splice_raw(rotations, &layout, &raw(layers)) }
    }

    /// Copies every row that the plan keeps to another buffer and turns keys on the way.
    ///
    /// # Errors
    /// See [`Cpu`].
    pub fn copy<'s, 'd, T: Element>(
        &self,
        rotations: &Rotations,
        src_layout: impl Into<CacheLayout<'s>>,
        src: &[LayerRef<'_, T>],
        dst_layout: impl Into<CacheLayout<'d>>,
        dst: &mut [Layer<'_, T>],
    ) -> Result<()> {
        let (src_layout, dst_layout) = (
            typed::<T>(src_layout.into())?,
            typed::<T>(dst_layout.into())?,
        );
        let src: Vec<_> = src.iter().map(LayerRef::raw).collect();
        // SAFETY: as in `rotate`; a `&` source cannot overlap a `&mut` destination.
        unsafe { self.copy_raw(rotations, (&src_layout, &src), (&dst_layout, &raw(dst))) }
    }

    /// Copies every row that the plan keeps to other pages, or another part, of the same buffers, and
    /// turns keys on the way. To leave out a prefix whose pages both sequences share, pass
    /// [`Rotations::starting_at`].
    ///
    /// # Errors
    /// See [`Cpu`]; also if a row would be copied into a block that is copied from.
    pub fn copy_within<'s, 'd, T: Element>(
        &self,
        rotations: &Rotations,
        src_layout: impl Into<CacheLayout<'s>>,
        dst_layout: impl Into<CacheLayout<'d>>,
        layers: &mut [Layer<'_, T>],
    ) -> Result<()> {
        let (src_layout, dst_layout) = (
            typed::<T>(src_layout.into())?,
            typed::<T>(dst_layout.into())?,
        );
        let layers = raw(layers);
        // SAFETY: as in `rotate`.
        unsafe { self.copy_raw(rotations, (&src_layout, &layers), (&dst_layout, &layers)) }
    }

    /// [`rotate`](Cpu::rotate) by address.
    ///
    /// # Safety
    /// This is the one door through which unchecked memory comes in, and the rules are the same for all
    /// three verbs:
    ///
    /// - every address of a [`RawLayer`] is valid for reads and writes of its length (for reads alone if
    ///   it is only copied from), and holds elements of the layout's type;
    /// - nobody else reads or writes these buffers during the call;
    /// - no element that the layouts name is in two buffers of a call (interleaved views of one allocation
    ///   share none), except that a layer's keys and values may be *one* buffer (equal addresses), and that
    ///   source and destination of a copy may be the same layers (equal addresses). Both are then checked,
    ///   by their layouts, to have no element in common.
    ///
    /// # Errors
    /// See [`Cpu`].
    pub unsafe fn rotate_raw(
        &self,
        rotations: &Rotations,
        layout: &CacheLayout<'_>,
        layers: &[RawLayer],
    ) -> Result<()> {
        check::in_place(
            rotations,
            layout,
            layers.iter().map(RawLayer::buffers),
            false,
        )?;
        let keys = keys_of(layers, layout).collect::<Vec<_>>();
        let transfers = keys.iter().enumerate().map(|(layer, &end)| Transfer {
            kernels: self.kernels,
            src: end,
            dst: end,
            table: rotations.table(layer),
            moves: false,
        });
        let transfers = transfers
            .filter(|transfer| transfer.table.is_some())
            .collect();
        let turned = rotations.spans().iter().filter(|span| span.turns());
        let in_place = turned.map(|&span| TurnedSpan {
            dst: span.src,
            ..span
        });
        // SAFETY: `check` has passed; the caller answers for the memory.
        unsafe { self.in_pieces(transfers, in_place) }
    }

    /// [`splice`](Cpu::splice) by address.
    ///
    /// # Safety
    /// See [`rotate_raw`](Cpu::rotate_raw).
    ///
    /// # Errors
    /// See [`Cpu`].
    pub unsafe fn splice_raw(
        &self,
        rotations: &Rotations,
        layout: &CacheLayout<'_>,
        layers: &[RawLayer],
    ) -> Result<()> {
        check::in_place(
            rotations,
            layout,
            layers.iter().map(RawLayer::buffers),
            true,
        )?;
        let spans: Vec<_> = check::splice_order(rotations.spans()).copied().collect();
        if spans.is_empty() {
            return Ok(());
        }
        let transfers = self.transfers(rotations, (layout, layers), (layout, layers));
        self.room_for_groups(&transfers)?;
        let lanes = lanes(&transfers, self.threads());
        let bytes = bytes(&transfers, spans.iter().map(|span| span.len).sum());
        self.threads.run(lanes.len(), bytes, |lane| {
            let (transfer, part) = &lanes[lane];
            let mut scratch = Groups::default();
            for span in &spans {
                // SAFETY: `check` has passed; the caller answers for the memory. A lane is one layer's
                // keys or values, some of its heads, and all of its rows, so no two lanes share an
                // element, and inside a lane the spans come in an order in which none overwrites the
                // source of a later one.
                unsafe { transfers[*transfer].span(span, 0..span.len, part, &mut scratch) };
            }
        });
        Ok(())
    }

    /// [`copy`](Cpu::copy), or [`copy_within`](Cpu::copy_within) if both layers are the same, by address.
    ///
    /// # Safety
    /// See [`rotate_raw`](Cpu::rotate_raw).
    ///
    /// # Errors
    /// See [`Cpu`].
    pub unsafe fn copy_raw(
        &self,
        rotations: &Rotations,
        src: (&CacheLayout<'_>, &[RawLayer]),
        dst: (&CacheLayout<'_>, &[RawLayer]),
    ) -> Result<()> {
        let buffers =
            |layers: &[RawLayer]| layers.iter().map(RawLayer::buffers).collect::<Vec<_>>();
        let within = src
            .1
            .iter()
            .zip(dst.1)
            // Empty slices share an address without sharing memory.
            .any(|(src, dst)| {
                src.keys == dst.keys && src.keys_len > 0
                    || src.values == dst.values && !src.values.is_null() && src.values_len > 0
            });
        check::copy(
            rotations,
            (src.0, &buffers(src.1)),
            (dst.0, &buffers(dst.1)),
            within,
        )?;
        let transfers = self.transfers(rotations, src, dst);
        // SAFETY: `check` has passed; the caller answers for the memory.
        unsafe { self.in_pieces(transfers, rotations.spans().iter().copied()) }
    }
}

impl Cpu {
    /// What a splice or a copy has to carry: the keys of every layer, then the values of those that have
    /// some.
    fn transfers<'a>(
        &self,
        rotations: &'a Rotations,
        (src_layout, src): (&'a CacheLayout<'_>, &[RawLayer]),
        (dst_layout, dst): (&'a CacheLayout<'_>, &[RawLayer]),
    ) -> Vec<Transfer<'a>> {
        let transfer = |src, dst, table| Transfer {
            kernels: self.kernels,
            src,
            dst,
            table,
            moves: true,
        };
        let keys = keys_of(src, src_layout).zip(keys_of(dst, dst_layout));
        let keys = keys
            .enumerate()
            .map(|(layer, (src, dst))| transfer(src, dst, rotations.table(layer)));
        let values = values_of(src, src_layout).zip(values_of(dst, dst_layout));
        keys.chain(values.map(|(src, dst)| transfer(src, dst, None)))
            .collect()
    }

    /// Brings spans to their destinations in pieces that no order binds, so that threads can take them
    /// as they come.
    ///
    /// # Safety
    /// As [`Transfer::span`], for all rows of the spans; no span's destination is another's source.
    unsafe fn in_pieces(
        &self,
        transfers: Vec<Transfer<'_>>,
        spans: impl Iterator<Item = TurnedSpan>,
    ) -> Result<()> {
        let Some(first) = transfers.first() else {
            return Ok(());
        };
        let layout = first.dst.layout;
        let spans: Vec<_> = spans.collect();
        if spans.is_empty() {
            return Ok(());
        }
        // Rows with an angle each: fetching it is worth more than a long stream of one head.
        let row_by_row = |transfer: &Transfer<'_>| transfer.table.is_some_and(Table::is_row_by_row);
        let heads = if transfers.iter().any(row_by_row) {
            layout.heads()
        } else {
            heads_together(layout)
        };
        // All transfers share the pieces: sized for the keys, fine for the values.
        let row_bytes = first.row_bytes(heads);
        let rows = (PIECE / row_bytes.max(1)).max(1);
        let number = spans.iter().map(|span| span.len.div_ceil(rows)).sum();
        let mut pieces: Vec<(TurnedSpan, Range<usize>)> = memory::list(number)?;
        pieces.extend(spans.into_iter().flat_map(|span| {
            let pieces = (0..span.len).step_by(rows);
            pieces.map(move |start| (span, start..(start + rows).min(span.len)))
        }));
        self.room_for_groups(&transfers)?;
        let parts: Vec<Vec<Part>> = transfers
            .iter()
            .map(|t| parts(t.dst.layout, heads))
            .collect();
        // Keys and values may have different numbers of heads, hence of parts.
        let ends: Vec<usize> = parts
            .iter()
            .scan(0, |end, parts| {
                *end += parts.len() * pieces.len();
                Some(*end)
            })
            .collect();
        let tasks = ends.last().copied().unwrap_or(0);
        let bytes = bytes(&transfers, pieces.iter().map(|(_, rows)| rows.len()).sum());
        self.threads.run(tasks, bytes, |task| {
            let index = ends.partition_point(|&end| end <= task);
            let start = if index == 0 { 0 } else { ends[index - 1] };
            let (span, rows) = &pieces[(task - start) % pieces.len()];
            let part = &parts[index][(task - start) / pieces.len()];
            // SAFETY: passed on. Tasks differ in the buffer, the heads or the rows.
            unsafe { transfers[index].span(span, rows.clone(), part, &mut Groups::default()) };
        });
        Ok(())
    }

    /// Whether there is memory for what each thread lays out for keys that are cut into packs. Asked for before anything
    /// is written.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn room_for_groups(&self, transfers: &[Transfer<'_>]) -> Result<()> {
        match transfers.iter().map(Transfer::groups).max() {
            None | Some(0) => Ok(()),
            Some(bytes) => memory::room(bytes.saturating_mul(self.threads())),
        }
    }
}

/// Bytes that `rows` rows of all transfers take; as many as can be counted, where a layout claims more.
fn bytes(transfers: &[Transfer<'_>], rows: usize) -> usize {
    let row = transfers.iter().fold(0usize, |sum, transfer| {
        sum.saturating_add(transfer.row_bytes(transfer.dst.layout.heads()))
    });
    row.saturating_mul(rows)
}

/// The layout, if it is for elements of type `T`.
fn typed<T: Element>(layout: CacheLayout<'_>) -> Result<CacheLayout<'_>> {
    for part in [Some(layout.keys), layout.values].into_iter().flatten() {
        if part.element() != T::TYPE {
            return Err(Error::Argument {
                argument: "layers",
                problem: format!(
                    "slices of {}, but the layout is for {}",
                    T::TYPE,
                    part.element()
                ),
            });
        }
    }
    Ok(layout)
}

fn raw<T: Element>(layers: &mut [Layer<'_, T>]) -> Vec<RawLayer> {
    layers.iter_mut().map(Layer::raw).collect()
}

fn keys_of<'a>(layers: &[RawLayer], layout: &'a CacheLayout<'_>) -> impl Iterator<Item = End<'a>> {
    layers.iter().map(|layer| End {
        layout: &layout.keys,
        base: layer.keys.cast(),
    })
}

fn values_of<'a>(
    layers: &[RawLayer],
    layout: &'a CacheLayout<'_>,
) -> impl Iterator<Item = End<'a>> {
    let values = layers.iter().filter(|layer| !layer.values.is_null());
    let ends = values.map(|layer| layout.values.as_ref().zip(Some(layer.values.cast())));
    ends.flatten().map(|(layout, base)| End { layout, base })
}

/// Heads that one thread takes together, so that it walks memory in order: one where the rows of a head
/// follow each other for long, all where the heads of a row do.
fn heads_together(layout: &KeyLayout<'_>) -> usize {
    const LONG: usize = 64 << 10;
    // Of an axis of one index, any stride is sound.
    let head_bytes = layout.rows.len.saturating_mul(layout.rows.stride);
    let head_bytes = head_bytes.saturating_mul(layout.element().size());
    if layout.heads.stride > layout.rows.stride && head_bytes >= LONG {
        1
    } else {
        layout.heads()
    }
}

/// A layout's heads, `together` at a time, of every sequence of the batch.
fn parts(layout: &KeyLayout<'_>, together: usize) -> Vec<Part> {
    let heads = layout.heads();
    let starts = (0..heads).step_by(together.max(1));
    (0..layout.batch())
        .flat_map(|batch| {
            starts.clone().map(move |start| Part {
                batch,
                heads: start..(start + together).min(heads),
            })
        })
        .collect()
}

/// The independent moves of a splice: each transfer's heads, cut finer where there are too few of them to
/// keep the threads busy.
fn lanes(transfers: &[Transfer<'_>], threads: usize) -> Vec<(usize, Part)> {
    const LANES_PER_THREAD: usize = 4;
    let batches: usize = transfers.iter().map(|t| t.dst.layout.batch()).sum();
    let cuts = (threads * LANES_PER_THREAD).div_ceil(batches.max(1));
    let lanes = transfers.iter().enumerate().flat_map(|(index, transfer)| {
        let layout = transfer.dst.layout;
        let finer = if threads > 1 {
            layout.heads().div_ceil(cuts)
        } else {
            usize::MAX
        };
        let together = heads_together(layout).min(finer);
        parts(layout, together)
            .into_iter()
            .map(move |part| (index, part))
    });
    lanes.collect()
}
