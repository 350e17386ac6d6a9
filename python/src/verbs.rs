//! The three verbs, on whatever device the tensors are.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pie_rope::{CacheLayout, Cpu, Cuda, CudaRawLayer, CudaWorkspace, RawLayer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::cache::{Tensors, check_apart, device_of, layers};
use crate::dlpack::{Borrow, Borrowed, Device};
use crate::errors::raise;
use crate::numbers::table;
use crate::rope::Rotations;

/// Turn keys where they lie: row ``src`` of every span, in every layer.
///
/// See the module's documentation for tensors, layouts, block tables, streams and workspaces.
#[pyfunction]
#[pyo3(signature = (rotations, keys, *, layout="bhsd", block_table=None, stream=None, workspace=None))]
pub(crate) fn rotate(
    rotations: &Rotations,
    keys: &Bound<'_, PyAny>,
    layout: &str,
    block_table: Option<&Bound<'_, PyAny>>,
    stream: Option<&Bound<'_, PyAny>>,
    workspace: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let table = table("block_table", block_table)?;
    let call = Call::new("keys", keys, stream)?;
    let cache = Cache::borrow(
        &call,
        ("keys", keys),
        ("values", None),
        (layout, layout),
        true,
    )?;
    check_apart(&cache.parts(), &[])?;
    call.run(
        rotations,
        &cache,
        &cache,
        table.as_deref(),
        table.as_deref(),
        Verb::Rotate,
        workspace,
    )
}

/// Move rows inside their buffers and turn keys on the way; values move along.
///
/// See the module's documentation for tensors, layouts, block tables, streams and workspaces.
#[pyfunction]
#[pyo3(signature = (
    rotations, keys, values=None, *, layout="bhsd", values_layout=None, block_table=None, stream=None, workspace=None
))]
#[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn splice(
    rotations: &Rotations,
    keys: &Bound<'_, PyAny>,
    values: Option<&Bound<'_, PyAny>>,
    layout: &str,
    values_layout: Option<&str>,
    block_table: Option<&Bound<'_, PyAny>>,
    stream: Option<&Bound<'_, PyAny>>,
    workspace: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let table = table("block_table", block_table)?;
    let call = Call::new("keys", keys, stream)?;
    let layouts = (layout, values_layout.unwrap_or(layout));
    let cache = Cache::borrow(&call, ("keys", keys), ("values", values), layouts, true)?;
    check_apart(&cache.parts(), &[])?;
    call.run(
        rotations,
        &cache,
        &cache,
        table.as_deref(),
        table.as_deref(),
        Verb::Splice,
        workspace,
    )
}

/// Copy every row that the plan keeps to other tensors, or to other pages of the same ones, and turn keys on the way.
///
/// See the module's documentation for tensors, layouts, block tables, streams and workspaces.
#[pyfunction]
#[pyo3(signature = (
    rotations, src_keys, dst_keys, src_values=None, dst_values=None, *, layout="bhsd", values_layout=None,
    dst_layout=None, dst_values_layout=None, block_table=None, dst_block_table=None, stream=None, workspace=None
))]
#[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn copy(
    rotations: &Rotations,
    src_keys: &Bound<'_, PyAny>,
    dst_keys: &Bound<'_, PyAny>,
    src_values: Option<&Bound<'_, PyAny>>,
    dst_values: Option<&Bound<'_, PyAny>>,
    layout: &str,
    values_layout: Option<&str>,
    dst_layout: Option<&str>,
    dst_values_layout: Option<&str>,
    block_table: Option<&Bound<'_, PyAny>>,
    dst_block_table: Option<&Bound<'_, PyAny>>,
    stream: Option<&Bound<'_, PyAny>>,
    workspace: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (from, to) = (
        table("block_table", block_table)?,
        table("dst_block_table", dst_block_table)?,
    );
    let call = Call::new("src_keys", src_keys, stream)?;
    let values_layout = values_layout.unwrap_or(layout);
    let dst_values_layout = dst_values_layout.or(dst_layout).unwrap_or(values_layout);
    let (src, dst) = (
        (layout, values_layout),
        (dst_layout.unwrap_or(layout), dst_values_layout),
    );
    let src = Cache::borrow(
        &call,
        ("src_keys", src_keys),
        ("src_values", src_values),
        src,
        false,
    )?;
    let dst = Cache::borrow(
        &call,
        ("dst_keys", dst_keys),
        ("dst_values", dst_values),
        dst,
        true,
    )?;
    check_apart(&dst.parts(), &src.parts())?;
    call.run(
        rotations,
        &src,
        &dst,
        from.as_deref(),
        to.as_deref(),
        Verb::Copy,
        workspace,
    )
}

/// Raise what a verb would raise for these tensors, whatever the plan, and do nothing.
#[pyfunction]
#[pyo3(signature = (keys, values=None, *, layout="bhsd", values_layout=None))]
pub(crate) fn check(
    keys: &Bound<'_, PyAny>,
    values: Option<&Bound<'_, PyAny>>,
    layout: &str,
    values_layout: Option<&str>,
) -> PyResult<()> {
    let call = Call::new("keys", keys, None)?;
    let layouts = (layout, values_layout.unwrap_or(layout));
    let cache = Cache::borrow(&call, ("keys", keys), ("values", values), layouts, true)?;
    check_apart(&cache.parts(), &[])?;
    for part in cache.parts() {
        for (_, len) in part.buffers() {
            part.layout.check(len).map_err(raise)?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Verb {
    Rotate,
    Splice,
    Copy,
}

/// Keys and values of every layer.
struct Cache<'py> {
    keys: Tensors<'py>,
    values: Option<Tensors<'py>>,
}

type Named<'a, T> = (&'static str, T);

impl<'py> Cache<'py> {
    fn borrow(
        call: &Call<'py>,
        keys: Named<'_, &Bound<'py, PyAny>>,
        values: Named<'_, Option<&Bound<'py, PyAny>>>,
        (keys_layout, values_layout): (&str, &str),
        writes: bool,
    ) -> PyResult<Self> {
        let how = &call.borrow;
        let (name, given) = keys;
        let keys = Tensors::borrow(name, given, keys_layout, writes, how)?;
        let (name, given) = values;
        let values = match given {
            Some(given) => Some(Tensors::borrow(name, given, values_layout, writes, how)?),
            None => None,
        };
        let cache = Cache { keys, values };
        if let Some(values) = &cache.values
            && values.buffers().len() != cache.keys.buffers().len()
        {
            let (keys, values) = (cache.keys.buffers().len(), values.buffers().len());
            return Err(PyValueError::new_err(format!(
                "values: {values} layers, but keys: {keys}"
            )));
        }
        if let Some(values) = &cache.values
            && values.layout.batch() != cache.keys.layout.batch()
        {
            let (keys, values) = (cache.keys.layout.batch(), values.layout.batch());
            return Err(PyValueError::new_err(format!(
                "values: a batch of {values}, but keys: of {keys}"
            )));
        }
        Ok(cache)
    }

    fn parts(&self) -> Vec<&Tensors<'py>> {
        [Some(&self.keys), self.values.as_ref()]
            .into_iter()
            .flatten()
            .collect()
    }

    fn layout<'t>(&self, table: Option<&'t [u32]>) -> CacheLayout<'t> {
        let values = self.values.as_ref().map(|values| values.layout);
        let layout = CacheLayout {
            keys: self.keys.layout,
            values,
        };
        match table {
            Some(table) => layout.with_table(table),
            None => layout,
        }
    }

    /// Keys and values, address and length in elements, of every layer.
    fn layers(&self) -> Vec<[(usize, usize); 2]> {
        let keys = self.keys.buffers();
        match &self.values {
            Some(values) => keys
                .zip(values.buffers())
                .map(|(keys, values)| [keys, values])
                .collect(),
            None => keys.map(|keys| [keys, (0, 0)]).collect(),
        }
    }
}

/// Where a call runs.
struct Call<'py> {
    py: Python<'py>,
    device: Device,
    /// The CUDA stream.
    stream: usize,
    /// torch, if the stream is its current one: the tensors are ready there, and more memory can be had of it.
    torch: Option<Bound<'py, PyModule>>,
    borrow: Borrow<'py>,
    /// torch exports tensors of its current device alone.
    _current: Option<Current<'py>>,
}

/// A device of torch's that is the current one until this is dropped.
struct Current<'py>(Bound<'py, PyAny>);

impl<'py> Current<'py> {
    fn new(torch: &Bound<'py, PyModule>, ordinal: i32) -> PyResult<Self> {
        let device = torch.getattr("cuda")?.call_method1("device", (ordinal,))?;
        device.call_method0("__enter__")?;
        Ok(Current(device))
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let py = self.0.py();
        // It puts back the device that was current before, and there is nobody to tell if it cannot.
        let _ = self
            .0
            .call_method1("__exit__", (py.None(), py.None(), py.None()));
    }
}

impl<'py> Call<'py> {
    /// Where `tensors` are; on CUDA in `stream`, or where torch would run now.
    fn new(
        name: &str,
        tensors: &Bound<'py, PyAny>,
        stream: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let py = tensors.py();
        let device = device_of(name, tensors)?;
        let Device::Cuda(ordinal) = device else {
            if stream.is_some() {
                return Err(PyValueError::new_err("stream: the tensors are on the CPU"));
            }
            let borrow = Borrow::new(py, device, None)?;
            return Ok(Call {
                py,
                device,
                stream: 0,
                torch: None,
                borrow,
                _current: None,
            });
        };
        let stream = stream.map(handle).transpose()?;
        let torch = torch_of(&layers(tensors)?[0])?;
        let guard = match &torch {
            Some(torch) => Some(Current::new(torch, ordinal)?),
            None => None,
        };
        let current = match &torch {
            Some(torch) => {
                let current = torch
                    .getattr("cuda")?
                    .call_method1("current_stream", (ordinal,))?;
                Some(handle(&current)?)
            }
            None => None,
        };
        let stream = stream.or(current).unwrap_or(0);
        let torch = torch.filter(|_| current == Some(stream));
        // DLPack counts the legacy default stream as 1; with -1 nothing is ordered.
        let ordered = if torch.is_some() {
            -1
        } else {
            stream.max(1) as i64
        };
        let borrow = Borrow::new(py, device, Some(ordered))?;
        Ok(Call {
            py,
            device,
            stream,
            torch,
            borrow,
            _current: guard,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "two ends, each with its table")]
    fn run(
        &self,
        rotations: &Rotations,
        src: &Cache<'_>,
        dst: &Cache<'_>,
        src_table: Option<&[u32]>,
        dst_table: Option<&[u32]>,
        verb: Verb,
        workspace: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let layouts = (src.layout(src_table), dst.layout(dst_table));
        let layers = (src.layers(), dst.layers());
        match self.device {
            Device::Cpu => on_cpu(self.py, rotations, &layouts, &layers, verb),
            Device::Cuda(ordinal) => {
                self.on_cuda(ordinal, rotations, &layouts, &layers, verb, workspace)
            }
        }
    }

    fn on_cuda(
        &self,
        ordinal: i32,
        rotations: &Rotations,
        layouts: &(CacheLayout<'_>, CacheLayout<'_>),
        layers: &(Layers, Layers),
        verb: Verb,
        workspace: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let cuda = cuda(ordinal)?;
        let raw = |layers: &Layers| {
            let layer =
                |&[(keys, keys_len), (values, values_len)]: &[(usize, usize); 2]| CudaRawLayer {
                    keys: keys as u64,
                    keys_len,
                    values: values as u64,
                    values_len,
                };
            layers.iter().map(layer).collect::<Vec<_>>()
        };
        let (src, dst) = (raw(&layers.0), raw(&layers.1));
        let needed = cuda.workspace_len(&rotations.0, &[&layouts.0, &layouts.1], src.len());
        let space = self.workspace(needed, workspace)?;
        let stream = self.stream as *mut c_void;
        let space = match &space {
            Some(tensor) => CudaWorkspace {
                address: tensor.address as u64,
                len: tensor.bytes(),
            },
            None => CudaWorkspace::NONE,
        };
        // SAFETY: the tensors are borrowed, so their memory is there; the lengths are what shapes and strides reach;
        // `check_apart` has found no element in two of them. The stream is the caller's or torch's, of the primary
        // context, and the tensors' libraries have been told of it.
        unsafe {
            match verb {
                Verb::Rotate => {
                    cuda.rotate_raw(stream.cast(), &rotations.0, &layouts.0, &src, space)
                }
                Verb::Splice => {
                    cuda.splice_raw(stream.cast(), &rotations.0, &layouts.0, &src, space)
                }
                Verb::Copy => cuda.copy_raw(
                    stream.cast(),
                    &rotations.0,
                    (&layouts.0, &src),
                    (&layouts.1, &dst),
                    space,
                ),
            }
        }
        .map_err(raise)
    }

    /// The workspace that was given, or one of torch's memory, which lives on in the stream for as long as it is used.
    fn workspace(
        &self,
        needed: usize,
        given: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Borrowed<'py>>> {
        let tensor = match (given, &self.torch) {
            (Some(given), _) => given.clone(),
            (None, _) if needed == 0 => return Ok(None),
            (None, Some(torch)) => {
                let Device::Cuda(ordinal) = self.device else {
                    return Ok(None);
                };
                let device = torch.call_method1("device", ("cuda", ordinal))?;
                torch.call_method1("empty", (needed, torch.getattr("uint8")?, device))?
            }
            (None, _) => {
                return Err(PyValueError::new_err(format!(
                    "workspace: this call needs {needed} bytes of it, and a stream that is not torch's current one"
                )));
            }
        };
        let borrowed = Borrowed::new("workspace", &tensor, true, &self.borrow)?;
        Ok(Some(borrowed))
    }
}

type Layers = Vec<[(usize, usize); 2]>;

fn on_cpu(
    py: Python<'_>,
    rotations: &Rotations,
    layouts: &(CacheLayout<'_>, CacheLayout<'_>),
    layers: &(Layers, Layers),
    verb: Verb,
) -> PyResult<()> {
    let rotations = &rotations.0;
    let cpu = cpu()?;
    let work = || {
        let raw = |layers: &Layers| {
            let layer =
                |&[(keys, keys_len), (values, values_len)]: &[(usize, usize); 2]| RawLayer {
                    keys: keys as *mut c_void,
                    keys_len,
                    values: values as *mut c_void,
                    values_len,
                };
            layers.iter().map(layer).collect::<Vec<_>>()
        };
        let (src, dst) = (raw(&layers.0), raw(&layers.1));
        // SAFETY: the tensors are borrowed, so their memory is there; the lengths are what shapes and strides reach;
        // `check_apart` has found no element in two of them. That no other thread of Python uses them meanwhile is the
        // caller's to see to, as with any operation of torch or numpy, which let other threads run as well.
        unsafe {
            match verb {
                Verb::Rotate => cpu.rotate_raw(rotations, &layouts.0, &src),
                Verb::Splice => cpu.splice_raw(rotations, &layouts.0, &src),
                Verb::Copy => cpu.copy_raw(rotations, (&layouts.0, &src), (&layouts.1, &dst)),
            }
        }
    };
    py.detach(work).map_err(raise)
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
    // SAFETY: null, or a backend that was leaked below.
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

/// torch, if this is a tensor of it.
fn torch_of<'py>(tensor: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyModule>>> {
    let py = tensor.py();
    // Who has a tensor of torch has imported it.
    let modules = py.import("sys")?.getattr("modules")?;
    let Ok(torch) = modules.get_item("torch") else {
        return Ok(None);
    };
    let torch = torch.cast_into::<PyModule>()?;
    Ok(tensor
        .is_instance(&torch.getattr("Tensor")?)?
        .then_some(torch))
}

/// The handle of a stream: an integer, or an object of torch, cupy or cuda.core.
fn handle(stream: &Bound<'_, PyAny>) -> PyResult<usize> {
    if let Ok(handle) = stream.extract() {
        return Ok(handle);
    }
    for attribute in ["cuda_stream", "ptr", "handle"] {
        if let Ok(handle) = stream.getattr(attribute) {
            return handle.call_method0("__int__")?.extract();
        }
    }
    Err(PyTypeError::new_err(
        "stream: it must be an integer, or a stream of torch, cupy or cuda.core",
    ))
}
