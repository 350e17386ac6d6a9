//! A checked call on the backend of its device.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pie_rope::{CacheLayout, Cpu, Cuda, CudaRawLayer, CudaWorkspace, RawLayer, Rotations};
use pyo3::prelude::*;

use crate::cache::Cache;
use crate::call::Call;
use crate::dlpack::Device;
use crate::errors::raise;

/// What is done to a cache in place, or from one to another.
#[derive(Clone, Copy)]
pub(crate) enum Verb {
    Rotate,
    Splice,
    Copy,
}

/// One end of a call: how layers lie, and where.
struct End<'a> {
    layout: CacheLayout<'a>,
    layers: Vec<RawLayer>,
}

impl<'a> End<'a> {
    fn new(cache: &'a Cache<'_>) -> Self {
        let layers = cache.layers();
        let layout = cache.layout();
        let layers = layers.map(|[(keys, keys_len), (values, values_len)]| RawLayer {
            keys: keys as *mut c_void,
            keys_len,
            values: match &layout.values {
                // torch's tensors of no elements are at null, which would mean that there are no values.
                Some(_) if values == 0 => std::ptr::dangling_mut::<u64>().cast(),
                _ => values as *mut c_void,
            },
            values_len,
        });
        let layers = layers.collect();
        End { layout, layers }
    }
}

/// Runs a verb from one cache to another, or in one that is both.
pub(crate) fn run(
    call: &Call<'_>,
    rotations: &Rotations,
    src: &Cache<'_>,
    dst: &Cache<'_>,
    verb: Verb,
) -> PyResult<()> {
    let (src, dst) = (End::new(src), End::new(dst));
    match call.device {
        Device::Cpu => on_cpu(call.py, rotations, Ends(src, dst), verb),
        Device::Cuda(ordinal) => on_cuda(call, ordinal, rotations, &src, &dst, verb),
    }
}

/// Both ends, for a thread of Python that lets the others run.
struct Ends<'a>(End<'a>, End<'a>);

// SAFETY: addresses alone; `on_cpu`, which reads them on the same thread, says what they are valid for.
unsafe impl Send for Ends<'_> {}

fn on_cpu(py: Python<'_>, rotations: &Rotations, ends: Ends<'_>, verb: Verb) -> PyResult<()> {
    let cpu = cpu()?;
    let work = move || {
        // All of it, not its fields: it is what may be sent.
        let Ends(src, dst) = { ends };
        // SAFETY: the caches that the ends are of are borrowed for longer than this call, so their memory is there, as
        // long as `Borrowed::reach` has said by shape and strides; `check_apart` has found no element in two tensors.
        // That no other thread of Python uses them meanwhile is the caller's to see to, as with any operation of torch
        // or numpy, which let other threads run as well.
        unsafe {
            match verb {
                Verb::Rotate => cpu.rotate_raw(rotations, &src.layout, &src.layers),
                Verb::Splice => cpu.splice_raw(rotations, &src.layout, &src.layers),
                Verb::Copy => {
                    let (src, dst) = ((&src.layout, &*src.layers), (&dst.layout, &*dst.layers));
                    cpu.copy_raw(rotations, src, dst)
                }
            }
        }
    };
    py.detach(work).map_err(raise)
}

fn on_cuda(
    call: &Call<'_>,
    ordinal: i32,
    rotations: &Rotations,
    src: &End<'_>,
    dst: &End<'_>,
    verb: Verb,
) -> PyResult<()> {
    let cuda = cuda(ordinal)?;
    let device = |end: &End<'_>| {
        let layers = end.layers.iter().map(|layer| CudaRawLayer {
            keys: layer.keys.addr() as u64,
            keys_len: layer.keys_len,
            values: layer.values.addr() as u64,
            values_len: layer.values_len,
        });
        layers.collect::<Vec<_>>()
    };
    let (from, to) = (device(src), device(dst));
    let needed = cuda.workspace_len(rotations, &[&src.layout, &dst.layout], from.len());
    let space = call.workspace(needed)?;
    let space = match &space {
        Some(tensor) => CudaWorkspace {
            address: tensor.address as u64,
            len: tensor.bytes("workspace")?,
        },
        None => CudaWorkspace::NONE,
    };
    let stream = (call.stream as *mut c_void).cast();
    // SAFETY: as in `on_cpu` for the memory, the workspace's among it, which the tensors' libraries keep until what is
    // in the stream has run. The stream is torch's, or what the caller of Python says, of the device's primary context,
    // which `cuda` has opened; `Borrow` has told the tensors' libraries of it.
    unsafe {
        match verb {
            Verb::Rotate => cuda.rotate_raw(stream, rotations, &src.layout, &from, space),
            Verb::Splice => cuda.splice_raw(stream, rotations, &src.layout, &from, space),
            Verb::Copy => {
                let (src, dst) = ((&src.layout, &*from), (&dst.layout, &*to));
                cuda.copy_raw(stream, rotations, src, dst, space)
            }
        }
    }
    .map_err(raise)
}

/// This process's CPU backend. Threads do not survive a fork, which is how Python's `multiprocessing` makes processes:
/// a child has a backend of its own.
fn cpu() -> PyResult<&'static Cpu> {
    struct Backend {
        process: u32,
        cpu: Cpu,
    }
    // Not behind a lock, which another thread may hold when the process forks. What is replaced is never freed.
    static BACKEND: AtomicPtr<Backend> = AtomicPtr::new(std::ptr::null_mut());
    let process = std::process::id();
    // SAFETY: this function alone stores to it: null, or what it has leaked, which is valid for ever.
    let parent = match unsafe { BACKEND.load(Ordering::Acquire).as_ref() } {
        Some(backend) if backend.process == process => return Ok(&backend.cpu),
        other => other,
    };
    let cpu = match parent {
        // All cores, by the one pool that whoever uses rayon in this process shares.
        None => Cpu::new(),
        Some(parent) => Cpu::with_threads(parent.cpu.threads()).map_err(raise)?,
    };
    let made: &'static mut Backend = Box::leak(Box::new(Backend { process, cpu }));
    BACKEND.store(made, Ordering::Release);
    Ok(&made.cpu)
}

/// The backend of a GPU's primary context, which torch and most others use. One for each: kernels stay loaded.
fn cuda(ordinal: i32) -> PyResult<Arc<Cuda>> {
    static OPEN: OnceLock<Mutex<HashMap<i32, Arc<Cuda>>>> = OnceLock::new();
    let mut open = OPEN
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(cuda) = open.get(&ordinal) {
        return Ok(cuda.clone());
    }
    let cuda = Arc::new(Cuda::open(usize::try_from(ordinal).unwrap_or(0)).map_err(raise)?);
    open.insert(ordinal, cuda.clone());
    Ok(cuda)
}
