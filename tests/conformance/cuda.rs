//! The CUDA backend under test: buffers go to the device, a verb is launched by address, buffers come back.

use std::sync::Arc;

use pie_rope::cudarc::driver::{CudaStream, DevicePtrMut};
use pie_rope::{CacheLayout, Cuda, CudaRawLayer, CudaWorkspace, Error, Result};

use crate::backend::{Backend, Call, Candidate, Layers};
use crate::buffer::{Buffer, GUARD};
use crate::case::Verb;

struct Gpu {
    /// As it is, and with blocks so small that rows take many of them, or many tiles of one.
    cudas: [Cuda; 2],
    stream: Arc<CudaStream>,
}

/// The first device, if there is one: or the emulator, which `scripts/emulator` puts in its place.
pub fn candidate() -> Candidate {
    let open = || -> Result<Gpu> {
        let cudas = [Cuda::open(0)?, Cuda::open(0)?.with_blocks_of(32)?];
        let context = cudas[0].context().expect("opened here");
        let stream = context.new_stream()?;
        Ok(Gpu { cudas, stream })
    };
    Candidate {
        name: "cuda".into(),
        takes: |_| true,
        backend: open()
            .map(|gpu| Box::new(gpu) as Box<dyn Backend>)
            .map_err(|error| error.to_string()),
    }
}

/// Appends a host buffer, guards included; returns where the elements are.
fn add(bytes: &mut Vec<u8>, buffer: &Buffer) -> usize {
    let start = bytes.len().next_multiple_of(256);
    bytes.resize(start, 0xa5);
    bytes.extend_from_slice(buffer.bytes());
    start + GUARD
}

/// Appends some layers' buffers; returns the layers by offset instead of by address.
fn add_layers(bytes: &mut Vec<u8>, layers: &[Layers], packed: bool) -> Vec<CudaRawLayer> {
    let mut added = Vec::new();
    for layer in layers {
        let (keys, keys_len) = (add(bytes, &layer.keys) as u64, layer.keys.len());
        let (values, values_len) = match &layer.values {
            Some(values) => (add(bytes, values) as u64, values.len()),
            None if packed => (keys, keys_len),
            None => (0, 0),
        };
        added.push(CudaRawLayer {
            keys,
            keys_len,
            values,
            values_len,
        });
    }
    added
}

impl Backend for Gpu {
    fn run(&self, call: &Call<'_>, src: &mut [Layers], dst: &mut [Layers]) -> Result<()> {
        let Gpu { cudas, stream } = self;
        let Call {
            verb,
            rotations,
            ref src_layout,
            ref dst_layout,
            packed,
            ..
        } = *call;
        let cuda = &cudas[call.way as usize % 2];
        // Device memory is one piece, so that what is written between the buffers is found as well.
        let mut bytes = Vec::new();
        let mut from = add_layers(&mut bytes, src, packed);
        let mut to = add_layers(&mut bytes, dst, packed);
        let mut memory = stream.clone_htod(&bytes)?;
        let layouts: [&CacheLayout<'_>; 2] = [src_layout, dst_layout];
        let mut workspace = match cuda.workspace_len(rotations, &layouts, from.len()) {
            0 => None,
            // SAFETY: bytes have no invalid values.
            len => Some(unsafe { stream.alloc::<u8>(len) }?),
        };
        let workspace = workspace.as_mut().map(|workspace| CudaWorkspace {
            len: workspace.len(),
            address: workspace.device_ptr_mut(stream).0,
        });
        let workspace = workspace.unwrap_or(CudaWorkspace::NONE);

        let base = memory.device_ptr_mut(stream).0;
        for layer in from.iter_mut().chain(&mut to) {
            layer.keys += base;
            layer.values += if layer.values == 0 { 0 } else { base };
        }
        let queue = stream.cu_stream();
        // SAFETY: addresses and lengths are those of `memory`, which nobody else uses.
        unsafe {
            match verb {
                Verb::Rotate => cuda.rotate_raw(queue, rotations, src_layout, &from, workspace),
                Verb::Splice => cuda.splice_raw(queue, rotations, src_layout, &from, workspace),
                Verb::Copy => {
                    let (from, to) = ((src_layout, &from[..]), (dst_layout, &to[..]));
                    cuda.copy_raw(queue, rotations, from, to, workspace)
                }
                Verb::CopyWithin => {
                    let (from, to) = ((src_layout, &from[..]), (dst_layout, &from[..]));
                    cuda.copy_raw(queue, rotations, from, to, workspace)
                }
            }
        }?;
        stream.memcpy_dtoh(&memory, &mut bytes)?;
        stream.synchronize()?;

        let mut end = 0usize;
        for buffer in src.iter_mut().chain(dst).flat_map(hosts) {
            let start = end.next_multiple_of(256);
            if bytes[end..start].iter().any(|&byte| byte != 0xa5) {
                return Err(Error::Device(
                    "bytes between two buffers were written".into(),
                ));
            }
            end = start + buffer.bytes().len();
            buffer.bytes_mut().copy_from_slice(&bytes[start..end]);
        }
        Ok(())
    }
}

fn hosts(layer: &mut Layers) -> impl Iterator<Item = &mut Buffer> {
    [&mut layer.keys].into_iter().chain(&mut layer.values)
}
