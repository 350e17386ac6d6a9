//! Kernels from their WGSL, and the pipelines made of them: each once, when it is first needed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::ElementType;

/// What a kernel does with rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// `kernels/rotate.wgsl`: in any order.
    Rotate,
    /// `kernels/splice.wgsl`: in the order of an overlap-safe move.
    Splice,
}

/// How a kernel touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// `kernels/wide.wgsl`: 16 bytes.
    Wide,
    /// `kernels/word.wgsl`: 4 bytes.
    Word,
    /// `kernels/half.wgsl`: 2 bytes, atomically.
    Half,
}

impl Kernel {
    #[cfg(test)]
    pub(super) const ALL: [Kernel; 2] = [Kernel::Rotate, Kernel::Splice];
}

impl Access {
    #[cfg(test)]
    pub(super) const ALL: [Access; 3] = [Access::Wide, Access::Word, Access::Half];

    pub(super) fn bytes(self) -> u32 {
        match self {
            Access::Wide => 16,
            Access::Word => 4,
            Access::Half => 2,
        }
    }

    /// Elements of one access.
    pub(super) fn chunk(self, element: ElementType) -> usize {
        self.bytes() as usize / element.size()
    }
}

/// How the pairs of a dispatch's keys lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pairs {
    /// Nothing turns.
    None,
    /// Their halves are in two chunks.
    Apart,
    /// Side by side in one chunk.
    Inside,
}

/// Everything that one pipeline is specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kernel: Kernel,
    pub(super) access: Access,
    pub(super) element: ElementType,
    pub(super) pairs: Pairs,
    /// Source and destination are one binding.
    pub(super) within: bool,
    /// Invocations of a workgroup.
    pub(super) threads: u32,
}

impl Key {
    /// The pipeline that does what either does, if there is one.
    pub(super) fn both(self, other: Key) -> Option<Key> {
        let pairs = match self.pairs {
            Pairs::None => other.pairs,
            pairs => pairs,
        };
        let also = other.pairs == Pairs::None || other.pairs == pairs;
        let key = Key { pairs, ..self };
        (also && key == Key { pairs, ..other }).then_some(key)
    }
}

/// The WGSL of a kernel. What it is specialised for besides is a pipeline's to say, by overrides.
pub(super) fn source(kernel: Kernel, access: Access) -> String {
    let access = match access {
        Access::Wide => include_str!("../../kernels/wide.wgsl"),
        Access::Word => include_str!("../../kernels/word.wgsl"),
        Access::Half => include_str!("../../kernels/half.wgsl"),
    };
    let kernel = match kernel {
        Kernel::Rotate => include_str!("../../kernels/rotate.wgsl"),
        Kernel::Splice => include_str!("../../kernels/splice.wgsl"),
    };
    let numbers = include_str!("../../kernels/numbers.wgsl");
    let rows = include_str!("../../kernels/rows.wgsl");
    [access, numbers, rows, kernel].concat()
}

#[derive(Debug)]
pub(super) struct Pipelines {
    pub(super) bindings: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
    made: Mutex<HashMap<Key, wgpu::ComputePipeline>>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device) -> Pipelines {
        use wgpu::BufferBindingType::{Storage, Uniform};
        let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let [written, read] = [false, true].map(|read_only| Storage { read_only });
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("pie-rope"),
            entries: &[
                entry(0, written),
                entry(1, written),
                entry(2, read),
                entry(3, read),
                entry(4, read),
                entry(5, read),
                entry(6, Uniform),
            ],
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("pie-rope"),
            bind_group_layouts: &[Some(&bindings)],
            ..Default::default()
        });
        Pipelines {
            bindings,
            layout,
            made: Mutex::default(),
        }
    }

    /// The pipeline of `key`. The caller holds an error scope, and forgets the pipeline if it was refused.
    pub(super) fn get(&self, device: &wgpu::Device, key: Key) -> wgpu::ComputePipeline {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let label = format!("pie-rope {key:?}");
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(source(key.kernel, key.access).into()),
            });
            let element = match key.element {
                ElementType::F32 => 0.0,
                ElementType::F16 => 1.0,
                ElementType::BF16 => 2.0,
            };
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&self.layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[
                        ("ELEMENT", element),
                        ("PAIRS", f64::from(key.pairs as u8)),
                        ("CHUNK", key.access.chunk(key.element) as f64),
                        ("WITHIN", f64::from(u8::from(key.within))),
                        ("THREADS", f64::from(key.threads)),
                    ],
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            })
        };
        made.entry(key).or_insert_with(make).clone()
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.made.lock().expect("no panic while held").len()
    }

    /// Forgets pipelines that may not have come into being.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn forget(&self, keys: impl Iterator<Item = Key>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        keys.for_each(|key| drop(made.remove(&key)));
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use half::f16;

    use crate::Wgpu;
    use crate::webgpu::abi::Call;

    /// Both ways of every conversion: what kernels use on this device, and the one by integers.
    const CONVERT: &str = "
        @compute @workgroup_size(THREADS)
        fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            probe_f16();
            let word = src[id.x];
            dst[4u * id.x] = pack(Numbers(bitcast<f32>(word), 0.0));
            dst[4u * id.x + 1u] = to_f16(bitcast<f32>(word));
            dst[4u * id.x + 2u] = bitcast<u32>(unpack(word).even);
            dst[4u * id.x + 3u] = bitcast<u32>(from_f16(word & 0xffffu));
        }";

    /// Every f16; and as f32 every f16, what lies halfway between two, and its neighbours; and the ends.
    fn inputs() -> Vec<u32> {
        let mut words: Vec<u32> = (0..=0xffff).collect();
        for half in 0..0x7c00 {
            let number = f16::from_bits(half).to_f32();
            let next = if half == 0x7bff {
                65536.0
            } else {
                f16::from_bits(half + 1).to_f32()
            };
            let middle = ((number + next) / 2.0).to_bits();
            let around = [number.to_bits(), middle - 1, middle, middle + 1];
            words.extend(around.into_iter().flat_map(|bits| [bits, bits | 1 << 31]));
        }
        let ends = [f32::INFINITY, f32::NAN, f32::MAX, 1e5, f32::MIN_POSITIVE];
        words.extend(
            ends.into_iter()
                .flat_map(|end| [end.to_bits(), (-end).to_bits()]),
        );
        words.resize(words.len().next_multiple_of(64), 0);
        words
    }

    #[test]
    fn f16_is_converted_as_ieee_754_says() {
        let gpu = Wgpu::open().expect("an adapter");
        let (device, queue) = (gpu.device(), gpu.queue());
        let words = inputs();
        let buffer = |size, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage: usage | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let size = 4 * words.len() as u64;
        let src = buffer(size, wgpu::BufferUsages::STORAGE);
        let dst = buffer(
            4 * size,
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        );
        let call = buffer(size_of::<Call>() as u64, wgpu::BufferUsages::UNIFORM);
        let back = buffer(4 * size, wgpu::BufferUsages::MAP_READ);
        queue.write_buffer(&src, 0, bytemuck::cast_slice(&words));
        queue.write_buffer(&call, 0, bytemuck::bytes_of(&Call::new(0, 0, 0)));

        let parts = [
            include_str!("../../kernels/word.wgsl"),
            include_str!("../../kernels/numbers.wgsl"),
            include_str!("../../kernels/rows.wgsl"),
        ];
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl((parts.concat() + CONVERT).into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&gpu.pipelines.layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[
                    ("ELEMENT", 1.0),
                    ("CHUNK", 2.0),
                    ("PAIRS", 1.0),
                    ("WITHIN", 0.0),
                    ("THREADS", 64.0),
                ],
                ..Default::default()
            },
            cache: None,
        });
        let none = &gpu.nothing;
        let bound = [&dst, &src, none, none, none, none, &call];
        let entries: Vec<_> = bound
            .into_iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &gpu.pipelines.bindings,
            entries: &entries,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.dispatch_workgroups(words.len() as u32 / 64, 1, 1);
        drop(pass);
        encoder.copy_buffer_to_buffer(&dst, 0, &back, 0, 4 * size);
        gpu.submit(encoder).expect("a sound submission");
        back.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapped"));
        device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("alive");
        let view = back.get_mapped_range(..).expect("mapped");

        let got: &[[u32; 4]] = bytemuck::cast_slice(&view);
        for (&word, got) in words.iter().zip(got) {
            let half = f16::from_f32(f32::from_bits(word));
            let number = f16::from_bits(word as u16).to_f32();
            for got in [got[0] & 0xffff, got[1]] {
                let got = f16::from_bits(got as u16);
                let same = got.to_bits() == half.to_bits() || got.is_nan() && half.is_nan();
                assert!(same, "{word:#x} as f32: {got:?}, not {half:?}");
            }
            for got in [got[2], got[3]].map(f32::from_bits) {
                let same = got.to_bits() == number.to_bits() || got.is_nan() && number.is_nan();
                assert!(same, "{word:#x} as f16: {got:?}, not {number:?}");
            }
        }
    }
}
