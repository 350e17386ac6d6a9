//! The buffers of one layer, as an engine hands them over.

use crate::{Error, KeyLayout, Result};

/// A part of a [`wgpu::Buffer`]: made from the buffer, from [`wgpu::Buffer::slice`], or from a
/// [`wgpu::BufferBinding`]. Offset and size in bytes.
///
/// Unlike what binds to a shader directly, it may begin at any multiple of the element's size and be larger
/// than the device's largest binding.
#[derive(Clone, Copy, Debug)]
pub struct WgpuSlice<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) offset: u64,
    /// `None`: to the end of the buffer.
    pub(super) size: Option<u64>,
}

impl<'a> From<&'a wgpu::Buffer> for WgpuSlice<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        WgpuSlice {
            buffer,
            offset: 0,
            size: None,
        }
    }
}

impl<'a> From<wgpu::BufferSlice<'a>> for WgpuSlice<'a> {
    fn from(slice: wgpu::BufferSlice<'a>) -> Self {
        WgpuSlice {
            buffer: slice.buffer(),
            offset: slice.offset(),
            size: Some(slice.size()),
        }
    }
}

impl<'a> From<wgpu::BufferBinding<'a>> for WgpuSlice<'a> {
    fn from(binding: wgpu::BufferBinding<'a>) -> Self {
        WgpuSlice {
            buffer: binding.buffer,
            offset: binding.offset,
            size: binding.size.map(|size| size.get()),
        }
    }
}

impl PartialEq for WgpuSlice<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.buffer == other.buffer && self.offset == other.offset && self.end() == other.end()
    }
}

impl WgpuSlice<'_> {
    fn end(&self) -> u64 {
        self.size
            .map_or(self.buffer.size(), |size| self.offset.saturating_add(size))
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer && self.offset < other.end() && other.offset < self.end()
    }

    /// Its length in elements, if a kernel can work on it.
    pub(super) fn elements(&self, layout: &KeyLayout<'_>, name: &str) -> Result<usize> {
        let refuse = |problem: String| {
            Err(Error::Argument {
                argument: "layers",
                problem: format!("{name}: {problem}"),
            })
        };
        let size = layout.element().size() as u64;
        let (end, whole) = (self.end(), self.buffer.size());
        if !self.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return refuse("the buffer was made without `BufferUsages::STORAGE`".into());
        }
        if end > whole || self.offset > end {
            return refuse(format!(
                "bytes {}..{end} are not inside the buffer's {whole}",
                self.offset
            ));
        }
        if !self.offset.is_multiple_of(size) {
            return refuse(format!(
                "offset {} is no multiple of the {size} bytes of {}",
                self.offset,
                layout.element()
            ));
        }
        // A binding is whole words, so a half-word at the end of the buffer cannot be reached.
        let bindable = end.min(whole - whole % 4);
        Ok(usize::try_from(bindable.saturating_sub(self.offset) / size).unwrap_or(usize::MAX))
    }
}

/// The keys and values of one layer on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct WgpuLayer<'a> {
    pub(super) keys: WgpuSlice<'a>,
    pub(super) values: Option<WgpuSlice<'a>>,
}

impl<'a> WgpuLayer<'a> {
    /// Keys and values in a buffer each, or in two parts of one.
    pub fn new(keys: impl Into<WgpuSlice<'a>>, values: impl Into<WgpuSlice<'a>>) -> Self {
        WgpuLayer {
            keys: keys.into(),
            values: Some(values.into()),
        }
    }

    /// Keys alone: for `rotate`, and for caches that have no values, as in MLA.
    pub fn keys_only(keys: impl Into<WgpuSlice<'a>>) -> Self {
        WgpuLayer {
            keys: keys.into(),
            values: None,
        }
    }

    /// Keys and values in one place, told apart by their layouts.
    pub fn packed(both: impl Into<WgpuSlice<'a>>) -> Self {
        let both = both.into();
        WgpuLayer {
            keys: both,
            values: Some(both),
        }
    }

    pub(super) fn is_packed(&self) -> bool {
        self.values.is_some_and(|values| values == self.keys)
    }
}
