//! Where rows of the cache move and turn: on the processor, on an NVIDIA GPU, or on any graphics adapter.

#[cfg(feature = "wgpu")]
use anyhow::Context;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use anyhow::Result;
use pie_rope::Candle;
#[cfg(feature = "cuda")]
use pie_rope::{Cuda, CudaRawLayer, CudaWorkspace, cudarc::driver::DevicePtrMut};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use pie_rope::{Element, KeyLayout, Rotations};
#[cfg(feature = "wgpu")]
use pie_rope::{Wgpu, WgpuLayer, wgpu};

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::cache::Shape;

/// A backend of the crate.
pub(crate) enum Backend {
    /// The processor, on the cache's tensor itself.
    Cpu(Candle),
    #[cfg(feature = "cuda")]
    Cuda(Device),
    #[cfg(feature = "wgpu")]
    Wgpu(Adapter),
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl Backend {
    /// Edits a cache, `[layer, 2, kv head, row, head_dim]`, that lies in host memory, elsewhere.
    pub(crate) fn splice<T: Element>(
        &self,
        rotations: &Rotations,
        shape: Shape,
        data: &mut [T],
    ) -> Result<()> {
        let Shape {
            kv_heads,
            capacity,
            head_dim,
            ..
        } = shape;
        // Keys and values lie alike in their halves of a layer, so one layout describes both.
        let layout = KeyLayout::bhsd(T::TYPE, [1, kv_heads, capacity, head_dim]);
        let half = kv_heads * capacity * head_dim;
        match self {
            Backend::Cpu(_) => anyhow::bail!("the processor edits tensors where they are"),
            #[cfg(feature = "cuda")]
            Backend::Cuda(device) => device.splice(rotations, layout, half, data),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu(adapter) => {
                adapter.splice(rotations, layout, data.chunks_exact_mut(2 * half))
            }
        }
    }
}

/// An NVIDIA GPU, for a cache that lives in host memory: it goes there and comes back. In an engine that runs its
/// model there, it would be there already.
#[cfg(feature = "cuda")]
pub(crate) struct Device(Cuda);

#[cfg(feature = "cuda")]
impl Device {
    /// The first one.
    pub(crate) fn open() -> Result<Device> {
        Ok(Device(Cuda::open(0)?))
    }

    /// Its name.
    pub(crate) fn name(&self) -> Result<String> {
        Ok(self.0.context().expect("opened here").name()?)
    }

    /// Edits layers of twice `half` elements, keys before values, that follow each other.
    fn splice<T: Element>(
        &self,
        rotations: &Rotations,
        layout: KeyLayout<'_>,
        half: usize,
        data: &mut [T],
    ) -> Result<()> {
        let stream = self.0.context().expect("opened here").default_stream();
        let host: &mut [u8] = bytemuck::cast_slice_mut(data);
        let mut cache = stream.clone_htod(host)?;
        let bytes = half * size_of::<T>();
        let start = cache.device_ptr_mut(&stream).0;
        let layers: Vec<_> = (0..cache.len() / (2 * bytes))
            .map(|layer| start + (layer * 2 * bytes) as u64)
            .map(|keys| CudaRawLayer {
                keys,
                keys_len: half,
                values: keys + bytes as u64,
                values_len: half,
            })
            .collect();
        let layout = layout.into();
        let len = self.0.workspace_len(rotations, &[&layout], layers.len());
        let mut workspace = stream.alloc_zeros::<u8>(len.max(16))?;
        let workspace = CudaWorkspace {
            len,
            address: workspace.device_ptr_mut(&stream).0,
        };
        // SAFETY: the layers are parts of `cache`, which nobody else uses; so is the workspace.
        unsafe {
            self.0
                .splice_raw(stream.cu_stream(), rotations, &layout, &layers, workspace)
        }?;
        stream.memcpy_dtoh(&cache, host)?;
        Ok(stream.synchronize()?)
    }
}

/// An adapter, for a cache that lives in host memory: it goes to the adapter and comes back. In an engine that
/// runs its model there, it would be in the engine's own buffers already.
#[cfg(feature = "wgpu")]
pub(crate) struct Adapter(Wgpu);

#[cfg(feature = "wgpu")]
impl Adapter {
    /// The adapter that `WGPU_ADAPTER_NAME` names, or the fastest.
    pub(crate) fn open() -> Result<Adapter> {
        Ok(Adapter(Wgpu::open()?))
    }

    /// Which it is, in one line.
    pub(crate) fn name(&self) -> String {
        self.0.to_string()
    }

    fn splice<'d, T: Element>(
        &self,
        rotations: &Rotations,
        layout: KeyLayout<'_>,
        layers: impl Iterator<Item = &'d mut [T]>,
    ) -> Result<()> {
        use wgpu::BufferUsages as Usage;
        let (device, queue) = (self.0.device(), self.0.queue());
        let buffer = |bytes: &[u8], usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("live_edit"),
                size: bytes.len() as u64,
                usage: usage | Usage::COPY_DST,
                mapped_at_creation: false,
            })
        };
        // A layer's keys and values, in memory of the adapter and again where the host can read them.
        let mut layers: Vec<_> = layers
            .map(|layer| {
                let host: &mut [u8] = bytemuck::cast_slice_mut(layer);
                let cache = buffer(host, Usage::STORAGE | Usage::COPY_SRC);
                let back = buffer(host, Usage::MAP_READ);
                queue.write_buffer(&cache, 0, host);
                (host, cache, back)
            })
            .collect();
        let parts = layers.iter().map(|(_, cache, _)| {
            let half = cache.size() / 2;
            WgpuLayer::new(cache.slice(..half), cache.slice(half..))
        });
        let parts: Vec<_> = parts.collect();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.0.splice(&mut encoder, rotations, layout, &parts)?;
        for (_, cache, back) in &layers {
            encoder.copy_buffer_to_buffer(cache, 0, back, 0, cache.size());
            encoder.map_buffer_on_submit(back, wgpu::MapMode::Read, .., |_| ());
        }
        self.0.submit(encoder)?;
        for (host, _, back) in &mut layers {
            let view = back.get_mapped_range(..);
            host.copy_from_slice(&view.context("the edited cache cannot be read back")?);
        }
        Ok(())
    }
}
