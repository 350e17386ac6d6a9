//! Where a call runs: its device, its stream, and what it needs of torch.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::cache::{device_of, layers};
use crate::dlpack::{Borrow, Borrowed, Device};

/// Where a call runs.
pub(crate) struct Call<'py> {
    pub(crate) py: Python<'py>,
    pub(crate) device: Device,
    /// The CUDA stream.
    pub(crate) stream: usize,
    /// torch, if the stream is its current one: the tensors are ready there, and more memory can be had of it.
    torch: Option<Bound<'py, PyModule>>,
    /// What was given for calls whose parameters do not fit a launch.
    workspace: Option<Bound<'py, PyAny>>,
    pub(crate) borrow: Borrow<'py>,
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
    pub(crate) fn new(
        name: &str,
        tensors: &Bound<'py, PyAny>,
        stream: Option<&Bound<'py, PyAny>>,
        workspace: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let py = tensors.py();
        let device = device_of(name, tensors)?;
        let Device::Cuda(ordinal) = device else {
            for (name, given) in [("stream", stream), ("workspace", workspace)] {
                if given.is_some() {
                    let text = format!("{name}: the tensors are on the CPU");
                    return Err(PyValueError::new_err(text));
                }
            }
            let borrow = Borrow::new(py, device, None)?;
            return Ok(Call {
                py,
                device,
                stream: 0,
                torch: None,
                workspace: None,
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
            workspace: workspace.cloned(),
            borrow,
            _current: guard,
        })
    }

    /// The workspace that was given, or one of torch's memory, which lives on in the stream for as long as it is used.
    pub(crate) fn workspace(&self, needed: usize) -> PyResult<Option<Borrowed<'py>>> {
        let tensor = match (&self.workspace, &self.torch, self.device) {
            (Some(given), ..) => given.clone(),
            (None, ..) if needed == 0 => return Ok(None),
            (None, Some(torch), Device::Cuda(ordinal)) => {
                let device = torch.call_method1("device", ("cuda", ordinal))?;
                torch.call_method1("empty", (needed, torch.getattr("uint8")?, device))?
            }
            (None, ..) => {
                return Err(PyValueError::new_err(format!(
                    "workspace: this call needs {needed} bytes of it, as its stream is not torch's current one"
                )));
            }
        };
        Borrowed::new("workspace", &tensor, true, &self.borrow).map(Some)
    }
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
