//! The wgpu backend under test: buffers go to the GPU, a verb is recorded, buffers come back.

use std::collections::HashMap;
use std::sync::Mutex;

use pie_rope::{Error, Result, Wgpu, WgpuLayer, wgpu};

use crate::backend::{Backend, Call, Candidate, Layers};
use crate::buffer::{Buffer, GUARD};
use crate::case::{Case, Verb};

/// A backend and the buffers that trials have left to the next ones.
pub struct Gpu {
    wgpu: Wgpu,
    /// How many windows a buffer takes at least, as far as windows can be that small.
    windows: u64,
    free: Mutex<HashMap<(u64, bool), Vec<wgpu::Buffer>>>,
}

/// The default adapter (or the one that `WGPU_ADAPTER_NAME` names), once as it is, and once with windows so
/// small that caches need several.
pub fn candidates() -> Vec<Candidate> {
    let candidate = |name: &str, windows, takes| Candidate {
        name: name.into(),
        takes,
        backend: Wgpu::open()
            .map(|wgpu| Box::new(Gpu::new(wgpu, windows)) as Box<dyn Backend>)
            .map_err(|error| error.to_string()),
    };
    // Where a cache is cut depends on the bytes of its rows and not on what is done to them: a width that no
    // window is a multiple of, and the widest.
    let cut = |case: &Case| [80, 256].contains(&case.head_dim);
    vec![
        candidate("wgpu", 1, |_| true),
        candidate("wgpu-windows", 2, cut),
    ]
}

/// The smallest window there is, in bytes.
const SMALLEST: u64 = 4096;

/// Where a host buffer went: bytes of a GPU buffer, guards included.
#[derive(Clone, Copy)]
struct Place {
    buffer: usize,
    offset: u64,
    len: u64,
}

/// The GPU buffers of one call.
#[derive(Default)]
struct Uploaded {
    buffers: Vec<Vec<u8>>,
    places: Vec<Place>,
}

impl Gpu {
    pub fn new(wgpu: Wgpu, windows: u64) -> Gpu {
        Gpu {
            wgpu,
            windows,
            free: Mutex::default(),
        }
    }

    fn take(&self, size: u64, readable: bool) -> wgpu::Buffer {
        use wgpu::BufferUsages as Usage;
        let size = size.next_power_of_two().max(4096);
        let mut free = self.free.lock().expect("no panic while held");
        let pooled = free.get_mut(&(size, readable)).and_then(Vec::pop);
        drop(free);
        pooled.unwrap_or_else(|| {
            self.wgpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("conformance"),
                size,
                usage: if readable {
                    Usage::COPY_DST | Usage::MAP_READ
                } else {
                    Usage::COPY_DST | Usage::COPY_SRC | Usage::STORAGE
                },
                mapped_at_creation: false,
            })
        })
    }

    fn give(&self, buffer: wgpu::Buffer, readable: bool) {
        let mut free = self.free.lock().expect("no panic while held");
        free.entry((buffer.size(), readable))
            .or_default()
            .push(buffer);
    }
}

impl Uploaded {
    /// Lays out some layers' buffers: each in one of its own, or all in one (`together`), a little apart.
    fn add(&mut self, layers: &[Layers], together: bool) {
        let first = self.buffers.len();
        for host in layers.iter().flat_map(hosts) {
            if !together || self.buffers.len() == first {
                self.buffers.push(Vec::new());
            }
            let buffer = self.buffers.len() - 1;
            let bytes = &mut self.buffers[buffer];
            // Elements stay aligned; nothing else does.
            let offset = bytes.len().next_multiple_of(4) + if together { 52 } else { 0 };
            bytes.resize(offset, 0xa5);
            bytes.extend_from_slice(host.bytes());
            self.places.push(Place {
                buffer,
                offset: offset as u64,
                len: host.bytes().len() as u64,
            });
        }
    }
}

fn hosts(layer: &Layers) -> impl Iterator<Item = &Buffer> {
    [&layer.keys].into_iter().chain(&layer.values)
}

fn hosts_mut(layer: &mut Layers) -> impl Iterator<Item = &mut Buffer> {
    [&mut layer.keys].into_iter().chain(&mut layer.values)
}

impl Backend for Gpu {
    /// WGSL's `fma` may round its product, so both products and the sum are rounded: three times half a unit.
    fn f32_loss(&self) -> f64 {
        1.5
    }

    fn run(&self, call: &Call<'_>, src: &mut [Layers], dst: &mut [Layers]) -> Result<()> {
        // All buffers in one, so that layers share dispatches, or one each; workgroups as on a processor, or, a
        // quarter of the time, as on a GPU: a processor works for idle invocations too.
        let together = call.way & 1 == 0;
        let invocations = if call.way & 6 == 0 { 256 } else { 64 };
        let mut uploaded = Uploaded::default();
        uploaded.add(src, together);
        uploaded.add(dst, together);
        let device = self.wgpu.device();
        let buffers: Vec<_> = uploaded
            .buffers
            .iter()
            .map(|bytes| {
                let buffer = self.take(bytes.len() as u64, false);
                self.wgpu.queue().write_buffer(&buffer, 0, bytes);
                buffer
            })
            .collect();

        let mut places = uploaded.places.iter();
        let mut slice = || {
            let place = places.next().expect("a place for every buffer");
            let guard = GUARD as u64;
            let inner = place.offset + guard..place.offset + place.len - guard;
            buffers[place.buffer].slice(inner)
        };
        let mut bound = |layer: &Layers| {
            let keys = slice();
            match &layer.values {
                Some(_) => WgpuLayer::new(keys, slice()),
                None if call.packed => WgpuLayer::packed(keys),
                None => WgpuLayer::keys_only(keys),
            }
        };
        let from: Vec<_> = src.iter().map(&mut bound).collect();
        let to: Vec<_> = dst.iter().map(&mut bound).collect();

        let wgpu = match self.windows {
            1 => self.wgpu.clone(),
            windows => {
                let largest = uploaded.places.iter().map(|place| place.len).max();
                let window = (largest.unwrap_or(0) / windows).max(SMALLEST);
                self.wgpu.clone().with_window(window)?
            }
        };
        let wgpu = wgpu.with_workgroups_of(invocations)?;
        let mut encoder = device.create_command_encoder(&Default::default());
        let Call {
            rotations,
            src_layout,
            dst_layout,
            ..
        } = *call;
        match call.verb {
            Verb::Rotate => wgpu.rotate(&mut encoder, rotations, src_layout, &from),
            Verb::Splice => wgpu.splice(&mut encoder, rotations, src_layout, &from),
            Verb::Copy => wgpu.copy(&mut encoder, rotations, src_layout, &from, dst_layout, &to),
            Verb::CopyWithin => {
                wgpu.copy_within(&mut encoder, rotations, src_layout, dst_layout, &from)
            }
        }?;

        let sizes = uploaded.buffers.iter().map(|bytes| bytes.len() as u64);
        let total: u64 = sizes.clone().sum();
        let back = self.take(total, true);
        let mut starts = Vec::new();
        let mut start = 0;
        for (buffer, size) in buffers.iter().zip(sizes) {
            encoder.copy_buffer_to_buffer(buffer, 0, &back, start, size);
            starts.push(start);
            start += size;
        }
        let submission = self.wgpu.queue().submit([encoder.finish()]);
        back.slice(..total).map_async(wgpu::MapMode::Read, |_| ());
        let waited = device.poll(wgpu::PollType::Wait {
            submission_index: Some(submission),
            timeout: None,
        });
        waited.map_err(|error| Error::Device(error.to_string()))?;
        let view = back.slice(..total).get_mapped_range();
        let view = view.map_err(|error| Error::Device(error.to_string()))?;
        let all = src.iter_mut().chain(dst).flat_map(hosts_mut);
        for (host, place) in all.zip(&uploaded.places) {
            let start = (starts[place.buffer] + place.offset) as usize;
            host.bytes_mut()
                .copy_from_slice(&view[start..][..place.len as usize]);
        }
        drop(view);
        back.unmap();
        self.give(back, true);
        buffers
            .into_iter()
            .for_each(|buffer| self.give(buffer, false));
        Ok(())
    }
}
