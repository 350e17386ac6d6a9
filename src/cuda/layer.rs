//! The buffers of one layer, as a caller hands them over.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use crate::Element;
use crate::check::Buffers;

/// What may be copied from: `cudarc`'s own slices and views. Its trait is open to others, whose addresses need not be
/// what they say.
pub trait Source<T>: DevicePtr<T> {}
impl<T> Source<T> for CudaSlice<T> {}
impl<T> Source<T> for CudaView<'_, T> {}
impl<T> Source<T> for CudaViewMut<'_, T> {}

/// What may be worked on.
pub trait Target<T>: DevicePtrMut<T> {}
impl<T> Target<T> for CudaSlice<T> {}
impl<T> Target<T> for CudaViewMut<'_, T> {}

/// The keys and values of one layer in device memory, to be worked on in place: `CudaSlice`s, or `CudaViewMut`s of
/// them.
pub struct CudaLayer<'a, T> {
    pub(super) keys: &'a mut dyn Target<T>,
    pub(super) values: Values<'a, T>,
}

pub(super) enum Values<'a, T> {
    None,
    Own(&'a mut dyn Target<T>),
    Packed,
}

impl<'a, T: Element> CudaLayer<'a, T> {
    /// Keys and values in a buffer each.
    pub fn new(keys: &'a mut impl Target<T>, values: &'a mut impl Target<T>) -> Self {
        CudaLayer {
            keys,
            values: Values::Own(values),
        }
    }

    /// Keys alone: for `rotate`, and for caches that have no values, as in MLA.
    pub fn keys_only(keys: &'a mut impl Target<T>) -> Self {
        CudaLayer {
            keys,
            values: Values::None,
        }
    }

    /// Keys and values in one buffer, told apart by their layouts.
    pub fn packed(buffer: &'a mut impl Target<T>) -> Self {
        CudaLayer {
            keys: buffer,
            values: Values::Packed,
        }
    }
}

/// The keys and values of one layer in device memory, to copy from: `CudaSlice`s, or views of them.
#[derive(Clone, Copy)]
pub struct CudaLayerRef<'a, T> {
    /// The keys, or keys and values together.
    pub keys: &'a dyn Source<T>,
    /// The values, if there are any; the same slice as the keys where one buffer holds both.
    pub values: Option<&'a dyn Source<T>>,
}

/// The buffers of one layer by device address, for engines that do not own them as slices of this `cudarc`.
///
/// Addresses need no more alignment than the element itself; at 16 bytes, with strides to match, kernels are at
/// their fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaRawLayer {
    /// Start of the key buffer: a `CUdeviceptr`.
    pub keys: u64,
    /// Its length in elements.
    pub keys_len: usize,
    /// Start of the value buffer: 0 if there are none, equal to `keys` if one buffer holds both.
    pub values: u64,
    /// Its length in elements.
    pub values_len: usize,
}

impl CudaRawLayer {
    /// Buffers of lengths that the caller vouches for: layouts are then not checked against them.
    pub fn unchecked(keys: u64, values: Option<u64>) -> CudaRawLayer {
        CudaRawLayer {
            keys,
            keys_len: usize::MAX,
            values: values.unwrap_or(0),
            values_len: usize::MAX,
        }
    }

    pub(super) fn buffers(&self) -> Buffers {
        Buffers {
            keys: self.keys_len,
            values: (self.values != 0).then_some(self.values_len),
            // Empty slices may share an address without sharing memory.
            packed: self.keys == self.values && self.keys_len > 0,
        }
    }
}

/// Device memory for calls whose parameters do not fit a launch: see [`Cuda`](super::Cuda#workspace).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaWorkspace {
    /// Its address, a multiple of 16; 0 if there is none.
    pub address: u64,
    /// Its length in bytes.
    pub len: usize,
}

impl CudaWorkspace {
    /// None: for calls that fit.
    pub const NONE: CudaWorkspace = CudaWorkspace { address: 0, len: 0 };
}
