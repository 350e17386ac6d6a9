//! The buffers of one layer, as a caller hands them over.

use std::ffi::c_void;

use crate::Element;
use crate::check::Buffers;

/// The keys and values of one layer, to be worked on in place.
#[derive(Debug)]
pub struct Layer<'a, T> {
    keys: &'a mut [T],
    values: Values<'a, T>,
}

#[derive(Debug)]
enum Values<'a, T> {
    None,
    Own(&'a mut [T]),
    Packed,
}

impl<'a, T: Element> Layer<'a, T> {
    /// Keys and values in a buffer each.
    pub fn new(keys: &'a mut [T], values: &'a mut [T]) -> Self {
        Layer {
            keys,
            values: Values::Own(values),
        }
    }

    /// Keys alone: for `rotate`, and for caches that have no values, as in MLA.
    pub fn keys_only(keys: &'a mut [T]) -> Self {
        Layer {
            keys,
            values: Values::None,
        }
    }

    /// Keys and values in one buffer, told apart by their layouts.
    pub fn packed(buffer: &'a mut [T]) -> Self {
        Layer {
            keys: buffer,
            values: Values::Packed,
        }
    }

    pub(super) fn raw(&mut self) -> RawLayer {
        let keys = self.keys.as_mut_ptr().cast();
        let keys_len = self.keys.len();
        let (values, values_len) = match &mut self.values {
            Values::None => (std::ptr::null_mut(), 0),
            Values::Own(values) => (values.as_mut_ptr().cast(), values.len()),
            Values::Packed => (keys, keys_len),
        };
        RawLayer {
            keys,
            keys_len,
            values,
            values_len,
        }
    }
}

/// The keys and values of one layer, to copy from.
#[derive(Clone, Copy, Debug)]
pub struct LayerRef<'a, T> {
    /// The keys, or keys and values together.
    pub keys: &'a [T],
    /// The values, if there are any; the same slice as the keys where one buffer holds both.
    pub values: Option<&'a [T]>,
}

impl<T: Element> LayerRef<'_, T> {
    pub(super) fn raw(&self) -> RawLayer {
        let (values, values_len) = match self.values {
            None => (std::ptr::null_mut(), 0),
            Some(values) => (values.as_ptr().cast_mut().cast(), values.len()),
        };
        RawLayer {
            keys: self.keys.as_ptr().cast_mut().cast(),
            keys_len: self.keys.len(),
            values,
            values_len,
        }
    }
}

/// The buffers of one layer by address, for engines that do not own them as slices.
///
/// Addresses need no more alignment than the element itself.
#[derive(Clone, Copy, Debug)]
pub struct RawLayer {
    /// Start of the key buffer.
    pub keys: *mut c_void,
    /// Its length in elements.
    pub keys_len: usize,
    /// Start of the value buffer: null if there are none, equal to `keys` if one buffer holds both.
    pub values: *mut c_void,
    /// Its length in elements.
    pub values_len: usize,
}

impl RawLayer {
    pub(super) fn buffers(&self) -> Buffers {
        Buffers {
            keys: self.keys_len,
            values: (!self.values.is_null()).then_some(self.values_len),
            // Empty slices may share an address without sharing memory.
            packed: self.keys == self.values && self.keys_len > 0,
        }
    }
}
