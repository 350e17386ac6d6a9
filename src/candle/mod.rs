//! The verbs over candle's tensors, in place: one call, and on a GPU one launch, for all layers.

#[cfg(feature = "candle-cuda")]
mod cuda;
mod lend;
mod view;

use candle_core::{Device, Tensor};

use crate::{CacheLayout, Cpu, Error, RawLayer, Result, Rotations, check};
use lend::{Memory, Storage};
use view::{End, View};

/// Turns and moves cached rows in the memory of candle's tensors: on the CPU by [`Cpu`], and with the feature
/// `candle-cuda` on NVIDIA GPUs by `Cuda`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use pie_rope::{Candle, CandleLayer, Edit, Plan, Rope, Rotations};
///
/// # fn main() -> candle_core::Result<()> {
/// // Once. Two layers, `[batch, heads, seq, dim]`, room for 16 rows of which 10 are in use.
/// let candle = Candle::new();
/// let tensor = || Tensor::ones((1, 2, 16, 64), DType::F32, &Device::Cpu);
/// let cache = [(tensor()?, tensor()?), (tensor()?, tensor()?)];
///
/// // Once per edit: three tokens are inserted before token 4.
/// let plan = Plan::from_edits(10, &[Edit::insert(4, 3)])?;
/// let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 64)?)?;
/// let layers: Vec<_> = cache.iter().map(|(k, v)| CandleLayer::new(k, v)).collect();
/// candle.splice(&rotations, &layers)?;
/// # Ok(())
/// # }
/// ```
///
/// # Which tensors
///
/// `[batch, heads, seq, dim]`, or `[heads, seq, dim]`, of f32, f16 or bf16, with any strides: whole tensors, and views
/// as `narrow`, `get` and `transpose` give them (`[batch, seq, heads, dim]` is one `transpose(1, 2)` away). A tensor's
/// `seq` is the room it has, not the rows in use. Views of one tensor may be given together, as keys and values or as
/// several layers, if they have no element in common. All keys of a call have one shape and one set of strides, as
/// have all values; layers that lie otherwise take a call of their own, with [`Rotations::select`].
///
/// Three dimensions are always `[heads, seq, dim]`. Pages, with block tables or without, take
/// [`CandleLayer::with_layout`]: those of latent attention, `[blocks, block, dim]`, too.
///
/// A tensor is changed for all who share its memory, clones and views, as by candle's own `slice_set`; gradients do
/// not see it.
///
/// # Locks
///
/// A call holds candle's locks on the memory of all its tensors, for writing but of what is only copied from, from
/// before its last checks until it has run: other threads see them as they were before or after. It takes them in
/// increasing order of their addresses, as candle's in-place operations do, so calls never wait for each other in a
/// circle. Candle's other operations lock their arguments as they come: one that takes *two* tensors of a call at once
/// (a `matmul` of two, a `slice_set` from one into the other) must not run at the same time. On CUDA, a call returns
/// when it has been launched into candle's stream of the device, and is ordered there as candle's own kernels are.
///
/// # Errors
///
/// All verbs check all of their arguments before they write: a refused call has written nothing. Errors are candle's,
/// and say what this crate's [`Error`] says, which `?` turns into candle's anywhere.
#[derive(Debug, Default)]
pub struct Candle {
    cpu: Cpu,
    #[cfg(feature = "candle-cuda")]
    cuda: cuda::Backends,
}

/// The keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct CandleLayer<'a> {
    keys: &'a Tensor,
    values: Option<&'a Tensor>,
    /// `None`: as their shapes and strides say.
    layout: Option<&'a CacheLayout<'a>>,
}

impl<'a> CandleLayer<'a> {
    /// Keys and values in a tensor, or a view, each.
    pub fn new(keys: &'a Tensor, values: &'a Tensor) -> Self {
        CandleLayer {
            keys,
            values: Some(values),
            layout: None,
        }
    }

    /// Keys alone: for `rotate`, and for caches that have no values, as in MLA.
    pub fn keys_only(keys: &'a Tensor) -> Self {
        CandleLayer {
            keys,
            values: None,
            layout: None,
        }
    }

    /// Keys and values that lie in the elements of their tensors as `layout` says, whatever shape these have: pages with
    /// a block table, slots, packs. Offsets count from a tensor's first element; both may be one tensor.
    ///
    /// The tensors must be contiguous, as whole ones are, and views along their first axis.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use pie_rope::{Candle, CandleLayer, Edit, ElementType, KeyLayout, CacheLayout, Plan, Rope, Rotations};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// // As mistral.rs pages: keys [blocks, heads, dim / x, block, x], values [blocks, heads, dim, block].
    /// let (blocks, heads, dim, block, x) = (12, 2, 64, 16, 8);
    /// let keys = Tensor::ones((blocks, heads, dim / x, block, x), DType::F16, &Device::Cpu)?;
    /// let values = Tensor::ones((blocks, heads, dim, block), DType::F16, &Device::Cpu)?;
    /// let layout = CacheLayout::new(
    ///     KeyLayout::x_packed(ElementType::F16, [blocks, heads, dim / x, block, x]),
    ///     KeyLayout::x_packed(ElementType::F16, [blocks, heads, dim, block, 1]),
    /// );
    /// // The blocks of one sequence of 40 tokens, before 3 are inserted.
    /// let layout = layout.with_table(&[7, 2, 11]);
    /// let plan = Plan::from_edits(40, &[Edit::insert(4, 3)])?;
    /// let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, dim)?)?;
    /// Candle::new().splice(&rotations, &[CandleLayer::with_layout(&keys, Some(&values), &layout)])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_layout(
        keys: &'a Tensor,
        values: Option<&'a Tensor>,
        layout: &'a CacheLayout<'a>,
    ) -> Self {
        CandleLayer {
            keys,
            values,
            layout: Some(layout),
        }
    }
}

/// Candle's own, with the same text.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        candle_core::Error::wrap(error)
    }
}

impl Candle {
    /// On the CPU with all cores, as [`Cpu::new`], and on whichever CUDA devices the tensors are.
    pub fn new() -> Candle {
        Candle::default()
    }

    /// With a CPU backend of one's own, of so many threads for instance.
    pub fn with_cpu(cpu: Cpu) -> Candle {
        Candle {
            cpu,
            #[cfg(feature = "candle-cuda")]
            cuda: cuda::Backends::default(),
        }
    }

    /// Turns keys where they lie: row `src` of every span, in every layer. Values are not looked at.
    ///
    /// # Errors
    /// See [`Candle`].
    pub fn rotate(
        &self,
        rotations: &Rotations,
        layers: &[CandleLayer<'_>],
    ) -> candle_core::Result<()> {
        self.in_place(Verb::Rotate, rotations, layers)
    }

    /// Moves rows inside their tensors and turns keys on the way. Safe for overlapping moves in both directions at
    /// once.
    ///
    /// # Errors
    /// See [`Candle`].
    pub fn splice(
        &self,
        rotations: &Rotations,
        layers: &[CandleLayer<'_>],
    ) -> candle_core::Result<()> {
        self.in_place(Verb::Splice, rotations, layers)
    }

    /// Copies every row that the plan keeps to other tensors, or to another part of the same ones, and turns keys on
    /// the way.
    ///
    /// # Errors
    /// See [`Candle`]; also if a destination may have an element in common with a source.
    pub fn copy(
        &self,
        rotations: &Rotations,
        src: &[CandleLayer<'_>],
        dst: &[CandleLayer<'_>],
    ) -> candle_core::Result<()> {
        check::layer_count(rotations, src.len())?;
        check::same_layers(src.len(), dst.len())?;
        let (Some(from), Some(to)) = (End::new("src", src, true)?, End::new("dst", dst, true)?)
        else {
            return Ok(());
        };
        let device = one_device(&[&from, &to])?;
        let storages = storages(&[(&from, false), (&to, true)])?;
        lend::lend(&storages, &|memory| {
            let (src, dst) = (from.raw(memory)?, to.raw(memory)?);
            let (src, dst) = ((&from.layout, &*src), (&to.layout, &*dst));
            match device {
                // SAFETY: as in `in_place`, `storages` having seen that no written element is another's, but for blocks
                // of one tensor, which the verb holds apart itself where both ends of a layer are the same buffers.
                Device::Cpu => unsafe { self.cpu.copy_raw(rotations, src, dst) },
                // SAFETY: likewise.
                other => unsafe { self.copy_there(other, rotations, src, dst) },
            }
        })
    }
}

/// What is done in place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Rotate,
    Splice,
}

/// One end of a call: how its layers lie, and where.
type Ends<'a> = (&'a CacheLayout<'a>, &'a [RawLayer]);

impl Candle {
    fn in_place(
        &self,
        verb: Verb,
        rotations: &Rotations,
        layers: &[CandleLayer<'_>],
    ) -> candle_core::Result<()> {
        check::layer_count(rotations, layers.len())?;
        let Some(end) = End::new("layers", layers, verb == Verb::Splice)? else {
            return Ok(());
        };
        let device = one_device(&[&end])?;
        let storages = storages(&[(&end, true)])?;
        lend::lend(&storages, &|memory| {
            let raw = end.raw(memory)?;
            // SAFETY, of all three: `lend` has locked each storage, for writing, until this returns, and says where it
            // is and how long; `raw` begins inside, and the verbs hold layouts to what is left. Buffers of one storage
            // may interleave where the conditions say apart, but `storages` has seen that no two layouts name one
            // element, and a verb touches no others.
            match (device, verb) {
                // SAFETY: above.
                (Device::Cpu, Verb::Rotate) => unsafe {
                    self.cpu.rotate_raw(rotations, &end.layout, &raw)
                },
                // SAFETY: above.
                (Device::Cpu, Verb::Splice) => unsafe {
                    self.cpu.splice_raw(rotations, &end.layout, &raw)
                },
                // SAFETY: above.
                (other, verb) => unsafe { self.there(other, verb, rotations, (&end.layout, &raw)) },
            }
        })
    }

    /// A verb in place on another device than the CPU.
    ///
    /// # Safety
    /// As [`Cpu::rotate_raw`], of addresses on that device.
    unsafe fn there(
        &self,
        device: &Device,
        verb: Verb,
        rotations: &Rotations,
        end: Ends<'_>,
    ) -> Result<()> {
        #[cfg(feature = "candle-cuda")]
        if let Device::Cuda(device) = device {
            // SAFETY: passed on.
            return unsafe { self.cuda.in_place(device, verb, rotations, end) };
        }
        let _ = (verb, rotations, end);
        Err(lend::unsupported(device))
    }

    /// A copy on another device than the CPU.
    ///
    /// # Safety
    /// As [`there`](Candle::there).
    unsafe fn copy_there(
        &self,
        device: &Device,
        rotations: &Rotations,
        src: Ends<'_>,
        dst: Ends<'_>,
    ) -> Result<()> {
        #[cfg(feature = "candle-cuda")]
        if let Device::Cuda(device) = device {
            // SAFETY: passed on.
            return unsafe { self.cuda.copy(device, rotations, src, dst) };
        }
        let _ = (rotations, src, dst);
        Err(lend::unsupported(device))
    }
}

/// The device that all tensors are on, one that there are kernels for.
fn one_device<'a>(ends: &[&End<'a>]) -> Result<&'a Device> {
    let mut views = ends.iter().flat_map(|end| end.views());
    let first = views.next().expect("an end has a layer").tensor.device();
    for view in views {
        if !view.tensor.device().same_device(first) {
            return Err(Error::Argument {
                argument: view.argument,
                problem: format!(
                    "layer {}: {} are on {:?}, other tensors of this call on {:?}",
                    view.layer,
                    view.part,
                    view.tensor.device().location(),
                    first.location()
                ),
            });
        }
    }
    match first {
        Device::Cpu => Ok(first),
        #[cfg(feature = "candle-cuda")]
        Device::Cuda(_) => Ok(first),
        other => Err(lend::unsupported(other)),
    }
}

/// The memory that ends lie in, each once, in the order of candle's locks, if no element that is written to is
/// another's as well, but for a copy from blocks to others of one tensor, which the verb sees to. The `bool` says
/// whether an end is written to.
fn storages<'a>(ends: &[(&End<'a>, bool)]) -> Result<Vec<Storage<'a>>> {
    let views = ends
        .iter()
        .flat_map(|&(end, written)| end.views().map(move |view| (view, written)))
        .filter(|(view, _)| !view.is_empty());
    let mut views: Vec<(&View<'a>, bool)> = views.collect();
    views.sort_by_key(|(view, _)| (view.storage, view.start));
    for (index, &(view, written)) in views.iter().enumerate() {
        let placed = view.placed();
        // What begins behind the last element of this one is apart from it, as is what follows.
        let end = placed.required_len()?;
        let near = views[index + 1..]
            .iter()
            .take_while(|(other, _)| other.storage == view.storage && other.start < end);
        for &(other, other_written) in near {
            if (written || other_written)
                && !placed.is_disjoint(&other.placed())
                && !view.other_blocks_of(other)
            {
                return Err(Error::Argument {
                    argument: other.argument,
                    problem: format!(
                        "{} are views of one memory, and may have elements in common",
                        view.and(other)
                    ),
                });
            }
        }
    }
    let mut storages: Vec<Storage<'a>> = Vec::new();
    for (view, written) in views {
        match storages.last_mut() {
            Some(last) if last.key == view.storage => last.written |= written,
            _ => storages.push(Storage {
                tensor: view.tensor,
                key: view.storage,
                written,
            }),
        }
    }
    Ok(storages)
}

impl End<'_> {
    /// The layers by address.
    fn raw(&self, memory: &[Memory]) -> Result<Vec<RawLayer>> {
        let place = |view: &View<'_>| {
            if view.is_empty() {
                return Ok((std::ptr::dangling_mut(), 0));
            }
            let found = memory.binary_search_by_key(&view.storage, |memory| memory.key);
            let memory = &memory[found.expect("every storage has been lent")];
            if memory.element != view.layout.element() {
                return Err(Error::Argument {
                    argument: view.argument,
                    problem: format!(
                        "layer {}: {} lie in {}",
                        view.layer, view.part, memory.element
                    ),
                });
            }
            // A view that begins behind its memory, if there is one, is refused for its length.
            let address = memory.address.cast::<u8>();
            let address = address.wrapping_add(view.start.wrapping_mul(memory.element.size()));
            Ok((address.cast(), memory.len.saturating_sub(view.start)))
        };
        let layers = self.layers.iter().map(|(keys, values)| {
            let (keys, keys_len) = place(keys)?;
            let values = values.as_ref().map(place).transpose()?;
            let (values, values_len) = values.unwrap_or((std::ptr::null_mut(), 0));
            Ok(RawLayer {
                keys,
                keys_len,
                values,
                values_len,
            })
        });
        layers.collect()
    }
}
