//! How a verb comes to the memory of several tensors at once.
//!
//! Candle lends one tensor's memory at a time, to an in-place operation. This one takes the next tensor's from inside
//! the first's, and so on, and has them all when it runs the verb.

use std::cell::RefCell;
use std::ffi::c_void;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor};

use crate::{ElementType, Error, Result};

/// Memory that is to be lent.
pub(super) struct Storage<'a> {
    /// One of the tensors that lie in it.
    pub(super) tensor: &'a Tensor,
    /// The same number for all of them.
    pub(super) key: usize,
    /// Else it is only read.
    pub(super) written: bool,
}

/// Memory that is lent.
pub(super) struct Memory {
    pub(super) key: usize,
    pub(super) element: ElementType,
    /// Its start: on a GPU, a device address, which is a pointer to nothing here.
    pub(super) address: *mut c_void,
    /// In elements.
    pub(super) len: usize,
}

/// What may be lent on the caller's stack, one inside the other: a level takes 3 KB of it where nothing is optimised,
/// and a thread of Rust's has 2 MB.
const LEVELS: usize = 128;
/// The stack that a level is given where there are more.
const LEVEL: usize = 16 << 10;

/// Runs `work` while candle lends all `storages`, which are in increasing order of their keys: candle's in-place
/// operations lock several in this order, too, so none waits for another in a circle. `work` finds them in that order.
pub(super) fn lend(
    storages: &[Storage<'_>],
    work: &(dyn Fn(&[Memory]) -> Result<()> + Sync),
) -> candle_core::Result<()> {
    let lent = || {
        let lender = Lender {
            storages,
            memory: RefCell::new(Vec::with_capacity(storages.len())),
            work,
        };
        lender.next()
    };
    if storages.len() <= LEVELS {
        return lent();
    }
    let stack = LEVEL.saturating_mul(storages.len());
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(stack);
        let thread = thread
            .spawn_scoped(scope, lent)
            .map_err(|error| Error::Argument {
                argument: "layers",
                problem: format!(
                    "no thread can be had to lock {} tensors: {error}",
                    storages.len()
                ),
            })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A device that there are no kernels for, at least in this build.
pub(super) fn unsupported(device: &Device) -> Error {
    Error::Argument {
        argument: "layers",
        problem: match device {
            Device::Cuda(_) => {
                "they are on a CUDA device, which takes the feature `candle-cuda`".into()
            }
            other => format!("they are on {:?}, which has no kernels", other.location()),
        },
    }
}

pub(super) struct Lender<'a> {
    storages: &'a [Storage<'a>],
    /// What has been lent so far.
    memory: RefCell<Vec<Memory>>,
    work: &'a dyn Fn(&[Memory]) -> Result<()>,
}

impl Lender<'_> {
    /// Takes one more, or, with all of them, does the work.
    pub(super) fn next(&self) -> candle_core::Result<()> {
        let lent = self.memory.borrow().len();
        let Some(storage) = self.storages.get(lent) else {
            return Ok((self.work)(&self.memory.borrow())?);
        };
        if storage.written {
            return storage.tensor.inplace_op1(self);
        }
        let (guard, _) = storage.tensor.storage_and_layout();
        match &*guard {
            candle_core::Storage::Cpu(memory) => match memory {
                CpuStorage::F32(data) => self.take(ElementType::F32, data.as_ptr(), data.len()),
                CpuStorage::F16(data) => self.take(ElementType::F16, data.as_ptr(), data.len()),
                CpuStorage::BF16(data) => self.take(ElementType::BF16, data.as_ptr(), data.len()),
                _ => return Err(unknown().into()),
            },
            #[cfg(feature = "candle-cuda")]
            candle_core::Storage::Cuda(memory) => return self.read_device(memory),
            _ => return Err(unsupported(storage.tensor.device()).into()),
        }
        // The guard is held until all is done.
        self.next()
    }

    /// Notes what has been lent.
    pub(super) fn take<T>(&self, element: ElementType, address: *const T, len: usize) {
        let mut memory = self.memory.borrow_mut();
        let key = self.storages[memory.len()].key;
        memory.push(Memory {
            key,
            element,
            // What is only read is not written through this.
            address: address.cast_mut().cast(),
            len,
        });
    }
}

/// Memory of a type that no view has passed for.
pub(super) fn unknown() -> Error {
    Error::Argument {
        argument: "layers",
        problem: "their memory is not of f32, f16 or bf16".into(),
    }
}

impl InplaceOp1 for Lender<'_> {
    fn name(&self) -> &'static str {
        "pie-rope"
    }

    /// `_one` is the layout of one of the tensors in this memory: each has its own in the call.
    fn cpu_fwd(&self, memory: &mut CpuStorage, _one: &Layout) -> candle_core::Result<()> {
        match memory {
            CpuStorage::F32(data) => self.take(ElementType::F32, data.as_mut_ptr(), data.len()),
            CpuStorage::F16(data) => self.take(ElementType::F16, data.as_mut_ptr(), data.len()),
            CpuStorage::BF16(data) => self.take(ElementType::BF16, data.as_mut_ptr(), data.len()),
            _ => return Err(unknown().into()),
        }
        self.next()
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        memory: &mut candle_core::CudaStorage,
        _one: &Layout,
    ) -> candle_core::Result<()> {
        self.write_device(memory)
    }
}
