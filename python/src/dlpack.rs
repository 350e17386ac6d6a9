//! DLPack: how a tensor says where it lies, <https://dmlc.github.io/dlpack/latest/c_api.html>.
//!
//! A tensor is borrowed, not taken: its capsule is held for as long as the memory is used, and frees the tensor's
//! record itself when it goes.

use std::ffi::c_void;

use pie_rope::ElementType;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

/// `kDLCPU`.
const CPU: i32 = 1;
/// `kDLCUDA`.
const CUDA: i32 = 2;
/// `kDLCUDAHost`: memory of the host that a GPU can reach.
const CUDA_HOST: i32 = 3;
/// `kDLCUDAManaged`: memory that moves to where it is used.
const CUDA_MANAGED: i32 = 13;
/// The address of what is empty: not null, and aligned for any element.
const EMPTY: usize = 16;
/// Bit 0 of a versioned record's flags.
const READ_ONLY: u64 = 1;

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    dimensions: i32,
    kind: Kind,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensorVersioned`, up to what is read of it.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    manager: *mut c_void,
    deleter: *mut c_void,
    flags: u64,
    tensor: Tensor,
}

/// Where a tensor's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Where the processor reads and writes.
    Cpu,
    /// On an NVIDIA GPU, by its number.
    Cuda(i32),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => write!(f, "the CPU"),
            Device::Cuda(ordinal) => write!(f, "CUDA device {ordinal}"),
        }
    }
}

/// A tensor as it lies, and what keeps it there.
pub(crate) struct Borrowed<'py> {
    pub(crate) device: Device,
    pub(crate) address: usize,
    pub(crate) shape: Vec<usize>,
    /// In elements, none negative.
    pub(crate) strides: Vec<usize>,
    kind: Kind,
    _capsule: Bound<'py, PyCapsule>,
}

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kind {
    code: u8,
    bits: u8,
    lanes: u16,
}

impl<'py> Borrowed<'py> {
    /// Borrows what `tensor` is. `name` is how messages call it; `writes`: whether it has to be writable.
    pub(crate) fn new(
        name: &str,
        tensor: &Bound<'py, PyAny>,
        writes: bool,
        how: &Borrow<'py>,
    ) -> PyResult<Self> {
        let py = tensor.py();
        // By name, as this is asked for every tensor, and neither library need be there.
        let class = tensor.get_type().name()?;
        let (numpy, torch) = (class == "ndarray" || class == "memmap", class == "Tensor");
        // numpy has no bfloat16 of its own, and does not export that of ml_dtypes: its bits are borrowed.
        let bfloat16 = numpy && {
            let dtype = tensor.getattr(intern!(py, "dtype"))?;
            dtype.getattr(intern!(py, "name"))?.eq("bfloat16")?
        };
        // torch exports the memory of such a view as if its sign were the numbers'.
        if torch && tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
            let text =
                format!("{name}: it is a view with negated numbers; `resolve_neg` makes them real");
            return Err(PyValueError::new_err(text));
        }
        let bits = if bfloat16 {
            Some(tensor.call_method1("view", ("uint16",))?)
        } else {
            None
        };
        let capsule = how.export(name, bits.as_ref().unwrap_or(tensor))?;
        let versioned = capsule.is_valid_checked(Some(c"dltensor_versioned"));
        let tensor: *const Tensor = if versioned {
            let record: *const Versioned = capsule
                .pointer_checked(Some(c"dltensor_versioned"))?
                .as_ptr()
                .cast();
            // SAFETY: by DLPack's rules, to which the library keeps that made it, a capsule of this name holds such a
            // record for as long as it lives; the major version comes first in every version.
            let major = unsafe { (*record).major };
            if major != 1 {
                return Err(PyTypeError::new_err(format!(
                    "{name}: its DLPack is of version {major}, this reads 1"
                )));
            }
            // SAFETY: as above; it is of version 1, checked just now, so it is laid out as declared here.
            let flags = unsafe { (*record).flags };
            if writes && flags & READ_ONLY != 0 {
                return Err(PyValueError::new_err(format!(
                    "{name}: the tensor is read-only"
                )));
            }
            // SAFETY: as above; the field lies inside the record.
            unsafe { &raw const (*record).tensor }
        } else {
            // `DLManagedTensor` begins with the tensor.
            capsule.pointer_checked(Some(c"dltensor"))?.as_ptr().cast()
        };
        // SAFETY: the library whose capsule this is vouches, by DLPack's rules, for the record and for its strides and
        // shape of as many entries as it has dimensions, for as long as the capsule lives, which the result holds.
        let mut borrowed = unsafe { read(name, tensor, capsule.clone()) }?;
        how.check(name, borrowed.device)?;
        if bfloat16 {
            borrowed.kind = Kind {
                code: 4,
                bits: 16,
                lanes: 1,
            };
        }
        Ok(borrowed)
    }

    /// The type of its elements, if the kernels know it.
    pub(crate) fn element(&self, name: &str) -> PyResult<ElementType> {
        let element = match self.kind {
            Kind {
                code: 2,
                bits: 32,
                lanes: 1,
            } => ElementType::F32,
            Kind {
                code: 2,
                bits: 16,
                lanes: 1,
            } => ElementType::F16,
            Kind {
                code: 4,
                bits: 16,
                lanes: 1,
            } => ElementType::BF16,
            other => {
                return Err(PyTypeError::new_err(format!(
                    "{name}: elements must be float32, float16 or bfloat16; these are {other}"
                )));
            }
        };
        if !self.address.is_multiple_of(element.size()) {
            return Err(PyValueError::new_err(format!(
                "{name}: its address is no multiple of its element's size"
            )));
        }
        Ok(element)
    }

    /// Bytes of a tensor, which must have no gaps.
    pub(crate) fn bytes(&self, name: &str) -> PyResult<usize> {
        let elements = self.shape.iter().product::<usize>();
        if elements != self.reach() {
            let text = format!("{name}: its elements must lie one behind the other");
            return Err(PyValueError::new_err(text));
        }
        Ok(elements * usize::from(self.kind.bits) * usize::from(self.kind.lanes) / 8)
    }

    /// Elements from the first to just past the last one.
    pub(crate) fn reach(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        // The tensor exists, so its extent fits.
        1 + self
            .shape
            .iter()
            .zip(&self.strides)
            .map(|(len, stride)| (len - 1) * stride)
            .sum::<usize>()
    }
}

/// Where `tensor` is, without borrowing it.
pub(crate) fn device(name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Device> {
    if !tensor.hasattr("__dlpack_device__")? {
        return Err(PyTypeError::new_err(format!(
            "{name}: {} is no tensor (it has no `__dlpack__`)",
            tensor.get_type().name()?
        )));
    }
    // An enum of integers in some libraries, integers in others.
    let place_of = tensor.call_method0("__dlpack_device__").map_err(|error| {
        // torch has no number for some devices.
        let refused = PyValueError::new_err(format!("{name}: {}", error.value(tensor.py())));
        refused.set_cause(tensor.py(), Some(error));
        refused
    })?;
    let (kind, id): (Bound<'_, PyAny>, Bound<'_, PyAny>) = place_of.extract()?;
    place(
        name,
        kind.call_method0("__index__")?.extract()?,
        id.call_method0("__index__")?.extract()?,
    )
}

fn place(name: &str, kind: i32, id: i32) -> PyResult<Device> {
    match kind {
        CPU | CUDA_HOST => Ok(Device::Cpu),
        CUDA | CUDA_MANAGED => Ok(Device::Cuda(id)),
        other => Err(PyTypeError::new_err(format!(
            "{name}: it must be on the CPU or on CUDA; it is on DLPack's device type {other}"
        ))),
    }
}

/// How the tensors of a call are borrowed: on one device, for use in one stream.
pub(crate) struct Borrow<'py> {
    device: Device,
    /// What `__dlpack__` is called with: as of DLPack 1, which says what is read-only, and for libraries before it.
    arguments: Bound<'py, PyDict>,
    old_arguments: Bound<'py, PyDict>,
}

impl<'py> Borrow<'py> {
    /// `stream`: as DLPack counts, for tensors of CUDA.
    pub(crate) fn new(py: Python<'py>, device: Device, stream: Option<i64>) -> PyResult<Self> {
        let arguments = PyDict::new(py);
        if let Some(stream) = stream {
            arguments.set_item("stream", stream)?;
        }
        let old_arguments = arguments.copy()?;
        arguments.set_item("max_version", (1, 0))?;
        Ok(Borrow {
            device,
            arguments,
            old_arguments,
        })
    }

    /// The capsule of a tensor.
    fn export(&self, name: &str, tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyCapsule>> {
        let py = tensor.py();
        let export = |arguments: &Bound<'py, PyDict>| {
            tensor.call_method(intern!(py, "__dlpack__"), (), Some(arguments))
        };
        let capsule = match export(&self.arguments) {
            Err(error) if error.is_instance_of::<PyTypeError>(py) => export(&self.old_arguments),
            other => other,
        };
        match capsule {
            Ok(capsule) => Ok(capsule.cast_into()?),
            Err(error) => {
                // A library may refuse a stream of another device's.
                self.check(name, device(name, tensor)?)?;
                // Why else it does not export it (it requires a gradient, is sparse, is read-only) is its own to say.
                let refused = PyValueError::new_err(format!("{name}: {}", error.value(py)));
                refused.set_cause(py, Some(error));
                Err(refused)
            }
        }
    }

    fn check(&self, name: &str, device: Device) -> PyResult<()> {
        if device == self.device {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "{name}: tensors must all be on one device; there are some on {} and some on {device}",
            self.device
        )))
    }
}

/// Reads a record.
///
/// # Safety
/// `tensor` is a valid record, with `dimensions` entries in `shape` and, unless null, in `strides`; `capsule` keeps it.
unsafe fn read<'py>(
    name: &str,
    tensor: *const Tensor,
    capsule: Bound<'py, PyCapsule>,
) -> PyResult<Borrowed<'py>> {
    // SAFETY: the caller vouches for the record.
    let tensor = unsafe { &*tensor };
    let dimensions = usize::try_from(tensor.dimensions).unwrap_or(0);
    let list = |start: *const i64| {
        if dimensions == 0 || start.is_null() {
            &[][..]
        } else {
            // SAFETY: the caller vouches for so many entries.
            unsafe { std::slice::from_raw_parts(start, dimensions) }
        }
    };
    let shape: Vec<usize> = list(tensor.shape).iter().map(|&len| len as usize).collect();
    // An empty tensor has no elements that strides could lead to: libraries put anything there.
    let strides: Vec<usize> = if tensor.strides.is_null() || shape.contains(&0) {
        // No strides: dense, the last dimension fastest.
        let mut strides = vec![1; dimensions];
        for dimension in (1..dimensions).rev() {
            strides[dimension - 1] = strides[dimension] * shape[dimension].max(1);
        }
        strides
    } else {
        let strides = list(tensor.strides).iter().zip(&shape);
        let strides = strides.map(|(&stride, &len)| match usize::try_from(stride) {
            Ok(stride) => Ok(stride),
            // Nobody steps along an axis of one.
            Err(_) if len <= 1 => Ok(0),
            Err(_) => Err(PyValueError::new_err(format!(
                "{name}: it has a negative stride, {stride}"
            ))),
        });
        strides.collect::<PyResult<_>>()?
    };
    if tensor.data.is_null() && !shape.contains(&0) {
        // A fake tensor, or one whose memory has been given back.
        let text = format!("{name}: it has no memory");
        return Err(PyValueError::new_err(text));
    }
    Ok(Borrowed {
        device: place(name, tensor.device_type, tensor.device_id)?,
        // Null where there are no elements, which would say that there are no values: any other address does.
        address: if tensor.data.is_null() {
            EMPTY
        } else {
            tensor.data as usize + tensor.byte_offset as usize
        },
        shape,
        strides,
        kind: tensor.kind,
        _capsule: capsule,
    })
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Kind { code, bits, lanes } = *self;
        match code {
            0 => write!(f, "int{bits}"),
            1 => write!(f, "uint{bits}"),
            2 => write!(f, "float{bits}"),
            4 => write!(f, "bfloat{bits}"),
            5 => write!(f, "complex{bits}"),
            6 => write!(f, "bool"),
            _ => write!(f, "of DLPack's type {code}, {bits} bits"),
        }?;
        if lanes == 1 {
            Ok(())
        } else {
            write!(f, " in {lanes} lanes")
        }
    }
}
