//! Tensors on NVIDIA GPUs: candle's device, stream and memory, this crate's kernels.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};

use super::lend::{Lender, unknown};
use super::{Ends, Verb};
use crate::{
    CacheLayout, Cuda, CudaRawLayer, CudaWorkspace, Element, Error, RawLayer, Result, Rotations,
};

/// One backend for each context that tensors have been in.
#[derive(Debug, Default)]
pub(super) struct Backends(Mutex<Vec<Arc<Cuda>>>);

impl Backends {
    fn on(&self, stream: &CudaStream) -> Result<Arc<Cuda>> {
        let context = stream.context();
        let mut backends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&Arc<Cuda>| {
            let known = known.context();
            known.is_some_and(|known| known.cu_ctx() == context.cu_ctx())
        };
        if let Some(known) = backends.iter().find(same) {
            return Ok(known.clone());
        }
        let opened = Arc::new(Cuda::new(context)?);
        backends.push(opened.clone());
        Ok(opened)
    }

    /// A verb in place.
    ///
    /// # Safety
    /// As [`Cuda::rotate_raw`], in the device's own stream.
    pub(super) unsafe fn in_place(
        &self,
        device: &CudaDevice,
        verb: Verb,
        rotations: &Rotations,
        (layout, layers): Ends<'_>,
    ) -> Result<()> {
        let layers = addresses(layers);
        self.run(
            device,
            rotations,
            &[layout],
            layers.len(),
            |cuda, stream, workspace| {
                let stream = stream.cu_stream();
                match verb {
                    // SAFETY: passed on; the workspace is `run`'s.
                    Verb::Rotate => unsafe {
                        cuda.rotate_raw(stream, rotations, layout, &layers, workspace)
                    },
                    // SAFETY: likewise.
                    Verb::Splice => unsafe {
                        cuda.splice_raw(stream, rotations, layout, &layers, workspace)
                    },
                }
            },
        )
    }

    /// A copy.
    ///
    /// # Safety
    /// As [`Cuda::rotate_raw`], in the device's own stream.
    pub(super) unsafe fn copy(
        &self,
        device: &CudaDevice,
        rotations: &Rotations,
        (src_layout, src): Ends<'_>,
        (dst_layout, dst): Ends<'_>,
    ) -> Result<()> {
        let (src, dst) = (addresses(src), addresses(dst));
        let layouts = [src_layout, dst_layout];
        self.run(
            device,
            rotations,
            &layouts,
            src.len(),
            |cuda, stream, workspace| {
                let (src, dst) = ((src_layout, &*src), (dst_layout, &*dst));
                // SAFETY: passed on; the workspace is `run`'s.
                unsafe { cuda.copy_raw(stream.cu_stream(), rotations, src, dst, workspace) }
            },
        )
    }

    /// Launches, with a workspace where one is needed.
    fn run(
        &self,
        device: &CudaDevice,
        rotations: &Rotations,
        layouts: &[&CacheLayout<'_>],
        layers: usize,
        launch: impl FnOnce(&Cuda, &CudaStream, CudaWorkspace) -> Result<()>,
    ) -> Result<()> {
        let stream = device.cuda_stream();
        let cuda = self.on(&stream)?;
        let len = cuda.workspace_len(rotations, layouts, layers);
        if len == 0 {
            return launch(&cuda, &stream, CudaWorkspace::NONE);
        }
        // SAFETY: the call writes what it reads of it.
        let memory = unsafe { device.alloc::<u8>(len) };
        let mut memory = memory.map_err(|error| Error::OutOfMemory(error.to_string()))?;
        let (address, _order) = memory.device_ptr_mut(&stream);
        // It is given back in this stream, behind the launch.
        launch(&cuda, &stream, CudaWorkspace { address, len })
    }
}

/// Layers as the CUDA backend has them.
fn addresses(layers: &[RawLayer]) -> Vec<CudaRawLayer> {
    let layers = layers.iter().map(|layer| CudaRawLayer {
        keys: layer.keys.addr() as u64,
        keys_len: layer.keys_len,
        values: layer.values.addr() as u64,
        values_len: layer.values_len,
    });
    layers.collect()
}

/// A pointer that carries a device address.
fn carrier(address: u64) -> *const u8 {
    std::ptr::without_provenance(address as usize)
}

impl Lender<'_> {
    /// Goes on with device memory that will be written.
    pub(super) fn write_device(&self, memory: &mut CudaStorage) -> candle_core::Result<()> {
        let stream = memory.device.cuda_stream();
        match &mut memory.slice {
            CudaStorageSlice::F32(slice) => self.write_slice(slice, &stream),
            CudaStorageSlice::F16(slice) => self.write_slice(slice, &stream),
            CudaStorageSlice::BF16(slice) => self.write_slice(slice, &stream),
            _ => Err(unknown().into()),
        }
    }

    /// Goes on with device memory that will be read.
    pub(super) fn read_device(&self, memory: &CudaStorage) -> candle_core::Result<()> {
        let stream = memory.device.cuda_stream();
        match &memory.slice {
            CudaStorageSlice::F32(slice) => self.read_slice(slice, &stream),
            CudaStorageSlice::F16(slice) => self.read_slice(slice, &stream),
            CudaStorageSlice::BF16(slice) => self.read_slice(slice, &stream),
            _ => Err(unknown().into()),
        }
    }

    // `cudarc`'s guard orders streams by events, and is held until the call has been launched.

    fn write_slice<T: Element>(
        &self,
        slice: &mut CudaSlice<T>,
        stream: &CudaStream,
    ) -> candle_core::Result<()> {
        let len = slice.len();
        let (address, _order) = slice.device_ptr_mut(stream);
        self.take(T::TYPE, carrier(address), len);
        self.next()
    }

    fn read_slice<T: Element>(
        &self,
        slice: &CudaSlice<T>,
        stream: &CudaStream,
    ) -> candle_core::Result<()> {
        let (address, _order) = slice.device_ptr(stream);
        self.take(T::TYPE, carrier(address), slice.len());
        self.next()
    }
}
