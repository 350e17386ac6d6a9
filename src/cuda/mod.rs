//! The CUDA backend: the three verbs as hand-written kernels (`kernels/*.cu`), one launch a call.

mod abi;
mod call;
mod error;
mod grid;
mod layer;
mod modules;
mod raw;

use std::sync::{Arc, Mutex};

pub use layer::{CudaLayer, CudaLayerRef, CudaRawLayer, CudaWorkspace};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtrMut, result, sys};

use crate::{CacheLayout, Element, ElementType, Error, Result, Rotations};
use call::Builder;
use grid::Device;
use layer::{Source, Values};
use modules::Modules;

/// Turns and moves cached rows in the memory of an NVIDIA GPU, by one kernel in the engine's own stream.
///
/// ```no_run
/// use pie_rope::{Cuda, CudaLayer, Edit, ElementType, KeyLayout, Plan, Rope, Rotations};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Once: on the engine's own context (`Cuda::new`), or on a device's primary one.
/// let gpu = Cuda::open(0)?;
/// let stream = gpu.context().expect("it was opened here").default_stream();
///
/// // One layer, `[batch, heads, seq, dim]`.
/// let layout = KeyLayout::bhsd(ElementType::F32, [1, 8, 4096, 128]);
/// let mut keys = stream.alloc_zeros::<f32>(8 * 4096 * 128)?;
/// let mut values = stream.alloc_zeros::<f32>(8 * 4096 * 128)?;
///
/// // Once per edit: three tokens are inserted before token 4.
/// let plan = Plan::from_edits(1000, &[Edit::insert(4, 3)])?;
/// let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 128)?)?;
/// gpu.splice(&stream, &rotations, layout, &mut [CudaLayer::new(&mut keys, &mut values)], None)?;
/// # Ok(())
/// # }
/// ```
///
/// # What a verb does
///
/// As on the [`Cpu`](crate::Cpu): [`rotate`](Cuda::rotate) turns keys where they lie, [`splice`](Cuda::splice)
/// moves rows inside their buffer and turns keys on the way, [`copy`](Cuda::copy) and
/// [`copy_within`](Cuda::copy_within) bring rows to other places.
///
/// A verb launches one kernel for all layers and all spans, and returns. It allocates nothing on the device, copies
/// nothing to it and waits for nothing: layer addresses, spans and tables of angles travel in the launch's
/// parameters. It may be called while the stream captures a graph, after [`prepare`](Cuda::prepare), and the graph may
/// be launched again and again, also when this backend is no more. While it captures, `cudarc`'s slices must not be
/// ordered by events (`CudaContext::disable_event_tracking`), which a graph cannot wait for; addresses are not.
///
/// # Workspace
///
/// Parameters hold 32 KB. A call that needs more (thousands of spans, an angle for every row, a block table of
/// thousands of pages) takes a workspace in device memory: [`workspace_len`](Cuda::workspace_len) says how long.
/// Small kernels, whose parameters carry the bytes, fill it in the same stream, so that this too waits for nothing
/// and can be captured. It may be used by the next call on the same stream; calls on several streams need one each.
///
/// # Three doors
///
/// - These verbs take `cudarc`'s slices, whose element type and length are checked, and whose events order streams.
/// - [`rotate_raw`](Cuda::rotate_raw) and its like take device addresses and a `CUstream`, for engines in C++ or
///   Python, and for those in Rust with another `cudarc`; layouts are checked against lengths.
/// - [`CudaRawLayer::unchecked`] leaves the lengths out.
///
/// # Exactness
///
/// The bits are the CPU backend's: one f32 product and one fused multiply-add on the table's f32 values, rounded
/// once, to nearest even, to the stored type, NaN included.
///
/// # Errors
///
/// All verbs check all of their arguments before they launch: [`Error::Layout`] and [`Error::Argument`] as on the
/// CPU, [`Error::Limit`] where numbers do not fit the kernels. What the driver says comes as
/// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::NoAdapter`] or [`Error::Device`]; without a driver,
/// [`open`](Cuda::open) returns an error. A kernel that fails shows at the engine's next synchronisation, as CUDA
/// has it.
#[derive(Debug)]
pub struct Cuda {
    context: Handle,
    /// Keeps the context alive, if it is `cudarc`'s.
    owner: Option<Arc<CudaContext>>,
    modules: Modules,
    device: Device,
    builder: Mutex<Builder>,
}

/// A context's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handle(sys::CUcontext);

// SAFETY: the driver lets every thread use a context.
unsafe impl Send for Handle {}
// SAFETY: at the same time, too.
unsafe impl Sync for Handle {}

impl Cuda {
    /// On the primary context of device `ordinal`, which most engines use as well.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if there is no CUDA driver or no such device, [`Error::Limit`] if the device is older
    /// than compute capability 7.5.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        check_driver()?;
        Cuda::new(&CudaContext::new(ordinal)?)
    }

    /// On the engine's own context.
    ///
    /// # Errors
    /// [`Error::Limit`] if the device is older than compute capability 7.5; [`Error::Device`] and its like as the
    /// driver reports them.
    pub fn new(context: &Arc<CudaContext>) -> Result<Cuda> {
        // SAFETY: `owner`, set below, keeps the context alive for as long as this backend is.
        let mut cuda = unsafe { Cuda::on_context(context.cu_ctx()) }?;
        cuda.owner = Some(context.clone());
        Ok(cuda)
    }

    /// On any context by its handle, for engines that do not have it from this `cudarc`.
    ///
    /// # Safety
    /// The context is valid for as long as this backend is. It is neither retained nor destroyed.
    ///
    /// # Errors
    /// As [`new`](Cuda::new); also [`Error::NoAdapter`] if there is no CUDA driver.
    pub unsafe fn on_context(context: sys::CUcontext) -> Result<Cuda> {
        check_driver()?;
        let context = Handle(context);
        let (capability, multiprocessors) = within(context, || {
            use sys::CUdevice_attribute_enum as Attribute;
            let mut device = 0;
            // SAFETY: a context is current, and writes to a local.
            unsafe { sys::cuCtxGetDevice(&mut device) }.result()?;
            // SAFETY: the device is the context's.
            let read = |attribute| unsafe { result::device::get_attribute(device, attribute) };
            let major = read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let multiprocessors = read(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            Ok(((10 * major + minor) as u32, multiprocessors as u32))
        })?;
        modules::check_capability(capability)?;
        Ok(Cuda {
            context,
            owner: None,
            modules: Modules::new(capability),
            device: Device {
                multiprocessors,
                threads: grid::THREADS,
            },
            builder: Mutex::default(),
        })
    }

    /// Loads the kernels for an element type, which the first call would do else. The driver compiles them then, and
    /// keeps the outcome on disk if it can. Needed before the first call that a stream captures.
    ///
    /// Loaded kernels stay as long as the context: make one backend for each.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver is older than CUDA 12.1.
    pub fn prepare(&self, element: ElementType) -> Result<()> {
        within(self.context, || self.modules.prepare(element))
    }

    /// Blocks of at most `threads`: a power of two from 32 to 256, which is the default. For tests and measurements.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is none of those.
    pub fn with_blocks_of(mut self, threads: u32) -> Result<Cuda> {
        if !(grid::WARP..=grid::THREADS).contains(&threads) || !threads.is_power_of_two() {
            return Err(Error::Argument {
                argument: "threads",
                problem: format!("{threads} is none of 32, 64, 128, 256"),
            });
        }
        self.device.threads = threads;
        Ok(self)
    }

    /// The context that it was made with, or opened; `None` if it has a handle alone.
    pub fn context(&self) -> Option<&Arc<CudaContext>> {
        self.owner.as_ref()
    }

    /// Turns keys where they lie: row `src` of every span, in every layer. Values are not looked at.
    ///
    /// # Errors
    /// See [`Cuda`].
    pub fn rotate<'t, T: Element>(
        &self,
        stream: &CudaStream,
        rotations: &Rotations,
        layout: impl Into<CacheLayout<'t>>,
        layers: &mut [CudaLayer<'_, T>],
        workspace: Option<&mut CudaSlice<u8>>,
    ) -> Result<()> {
        let layout = self.typed::<T>("layout", layout)?;
        self.with(
            stream,
            ("layers", layers),
            workspace,
            |layers, workspace| {
                // SAFETY: `with` gives addresses of slices, valid for their lengths, that nobody else has.
                unsafe {
                    self.rotate_raw(stream.cu_stream(), rotations, &layout, layers, workspace)
                }
            },
        )
    }

    /// Moves rows inside their buffers and turns keys on the way. Safe for overlapping moves in both directions
    /// at once.
    ///
    /// # Errors
    /// See [`Cuda`].
    pub fn splice<'t, T: Element>(
        &self,
        stream: &CudaStream,
        rotations: &Rotations,
        layout: impl Into<CacheLayout<'t>>,
        layers: &mut [CudaLayer<'_, T>],
        workspace: Option<&mut CudaSlice<u8>>,
    ) -> Result<()> {
        let layout = self.typed::<T>("layout", layout)?;
        self.with(
            stream,
            ("layers", layers),
            workspace,
            |layers, workspace| {
                // SAFETY: as in `rotate`, by `with`.
                unsafe {
                    self.splice_raw(stream.cu_stream(), rotations, &layout, layers, workspace)
                }
            },
        )
    }

    /// Copies every row that the plan keeps to other pages, or another part, of the same buffers, and turns keys
    /// on the way. To leave out a prefix whose pages both sequences share, pass [`Rotations::starting_at`].
    ///
    /// # Errors
    /// See [`Cuda`]; also if a row would be copied into a block that is copied from.
    pub fn copy_within<'s, 'd, T: Element>(
        &self,
        stream: &CudaStream,
        rotations: &Rotations,
        src_layout: impl Into<CacheLayout<'s>>,
        dst_layout: impl Into<CacheLayout<'d>>,
        layers: &mut [CudaLayer<'_, T>],
        workspace: Option<&mut CudaSlice<u8>>,
    ) -> Result<()> {
        let src_layout = self.typed::<T>("src_layout", src_layout)?;
        let dst_layout = self.typed::<T>("dst_layout", dst_layout)?;
        self.with(
            stream,
            ("layers", layers),
            workspace,
            |layers, workspace| {
                let (src, dst) = ((&src_layout, layers), (&dst_layout, layers));
                // SAFETY: as in `rotate`, by `with`.
                unsafe { self.copy_raw(stream.cu_stream(), rotations, src, dst, workspace) }
            },
        )
    }

    /// Copies every row that the plan keeps to another buffer and turns keys on the way.
    ///
    /// # Errors
    /// See [`Cuda`].
    #[expect(clippy::too_many_arguments, reason = "two ends, each with its layout")]
    pub fn copy<'a, 's, 'd, T: Element>(
        &self,
        stream: &'a CudaStream,
        rotations: &Rotations,
        src_layout: impl Into<CacheLayout<'s>>,
        src: &[CudaLayerRef<'a, T>],
        dst_layout: impl Into<CacheLayout<'d>>,
        dst: &mut [CudaLayer<'_, T>],
        workspace: Option<&mut CudaSlice<u8>>,
    ) -> Result<()> {
        let src_layout = self.typed::<T>("src_layout", src_layout)?;
        let dst_layout = self.typed::<T>("dst_layout", dst_layout)?;
        for layer in src {
            let values = layer.values.into_iter();
            [layer.keys]
                .into_iter()
                .chain(values)
                .try_for_each(|slice| self.check_context("src", slice.stream()))?;
        }
        let mut guards = Vec::new();
        let from: Vec<_> = src
            .iter()
            .map(|layer| {
                let mut address = |slice: &'a dyn Source<T>| {
                    let (address, guard) = slice.device_ptr(stream);
                    guards.push(guard);
                    (address, slice.len())
                };
                let (keys, keys_len) = address(layer.keys);
                let (values, values_len) = layer.values.map_or((0, 0), address);
                CudaRawLayer {
                    keys,
                    keys_len,
                    values,
                    values_len,
                }
            })
            .collect();
        self.with(stream, ("dst", dst), workspace, |to, workspace| {
            let (src, dst) = ((&src_layout, from.as_slice()), (&dst_layout, to));
            // SAFETY: as in `rotate`; a `&` source cannot overlap a `&mut` destination.
            unsafe { self.copy_raw(stream.cu_stream(), rotations, src, dst, workspace) }
        })
    }
}

impl Cuda {
    /// The layout, if it is of `T`s.
    fn typed<'t, T: Element>(
        &self,
        argument: &'static str,
        layout: impl Into<CacheLayout<'t>>,
    ) -> Result<CacheLayout<'t>> {
        let layout = layout.into();
        if layout.keys.element() != T::TYPE {
            return Err(Error::Argument {
                argument,
                problem: format!(
                    "it is of {}, the layers are of {}",
                    layout.keys.element(),
                    T::TYPE
                ),
            });
        }
        Ok(layout)
    }

    /// Refuses what belongs to another context than the kernels do.
    fn check_context(&self, argument: &'static str, stream: &CudaStream) -> Result<()> {
        if stream.context().cu_ctx() != self.context.0 {
            return Err(Error::Argument {
                argument,
                problem: "it belongs to another CUDA context".into(),
            });
        }
        Ok(())
    }

    /// Refuses a stream that captures while slices wait for events from before, which would end its capture.
    fn check_capture(&self, stream: &CudaStream) -> Result<()> {
        let waits = stream.context().is_managing_stream_synchronization();
        let status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        if waits && stream.capture_status()? != status {
            return Err(Error::Argument {
                argument: "stream",
                problem: "it captures, and cannot wait for the events of slices: call \
                          `CudaContext::disable_event_tracking` before, or a verb that takes addresses"
                    .into(),
            });
        }
        Ok(())
    }

    /// Runs a call on the addresses of slices. `cudarc`'s guards, which order streams by events, are held until the
    /// call has been launched.
    fn with<T: Element>(
        &self,
        stream: &CudaStream,
        (argument, layers): (&'static str, &mut [CudaLayer<'_, T>]),
        workspace: Option<&mut CudaSlice<u8>>,
        call: impl FnOnce(&[CudaRawLayer], CudaWorkspace) -> Result<()>,
    ) -> Result<()> {
        self.check_context("stream", stream)?;
        self.check_capture(stream)?;
        if let Some(workspace) = &workspace {
            self.check_context("workspace", workspace.stream())?;
        }
        let mut raw = Vec::with_capacity(layers.len());
        let mut guards = Vec::with_capacity(2 * layers.len() + 1);
        for layer in layers {
            self.check_context(argument, layer.keys.stream())?;
            let keys_len = layer.keys.len();
            let (keys, guard) = layer.keys.device_ptr_mut(stream);
            guards.push(guard);
            let (values, values_len) = match &mut layer.values {
                Values::None => (0, 0),
                Values::Packed => (keys, keys_len),
                Values::Own(values) => {
                    self.check_context(argument, values.stream())?;
                    let len = values.len();
                    let (values, guard) = values.device_ptr_mut(stream);
                    guards.push(guard);
                    (values, len)
                }
            };
            raw.push(CudaRawLayer {
                keys,
                keys_len,
                values,
                values_len,
            });
        }
        let workspace = workspace.map_or(CudaWorkspace::NONE, |workspace| {
            let len = workspace.len();
            let (address, guard) = workspace.device_ptr_mut(stream);
            guards.push(guard);
            CudaWorkspace { address, len }
        });
        // A wait for an event that failed is noted there, and nowhere else.
        stream.context().check_err()?;
        call(&raw, workspace)
    }
}

/// Runs `call` with a context current on this thread, and leaves the one that was current before.
fn within<T>(context: Handle, call: impl FnOnce() -> Result<T>) -> Result<T> {
    if result::ctx::get_current()? == Some(context.0) {
        return call();
    }
    // SAFETY: the context is valid: `owner` keeps it so, or who called `on_context` promised it.
    unsafe { sys::cuCtxPushCurrent_v2(context.0) }.result()?;
    let _pushed = Pushed;
    call()
}

/// A context that is current until this is dropped.
struct Pushed;

impl Drop for Pushed {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: what has been pushed, into a local. It fails only where a context has been destroyed by then.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) }.result();
    }
}

/// Whether there is a CUDA driver. `cudarc` panics where it does not find one.
pub(crate) fn check_driver() -> Result<()> {
    const NAMES: &[&str] = if cfg!(windows) {
        &["nvcuda.dll"]
    } else {
        &["libcuda.so.1", "libcuda.so"]
    };
    // SAFETY: the driver's library runs nothing of its own when it is loaded but its own set-up.
    let found = NAMES
        .iter()
        .any(|name| unsafe { libloading::Library::new(*name) }.is_ok());
    if !found {
        return Err(Error::NoAdapter(format!(
            "{} is not there: is an NVIDIA driver installed?",
            NAMES[0]
        )));
    }
    Ok(())
}
