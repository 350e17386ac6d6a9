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

    /// Elements of one access.
    pub(super) fn chunk(self, element: ElementType) -> usize {
        match self {
            Access::Wide => 16 / element.size(),
            Access::Word => 4 / element.size(),
            Access::Half => 1,
        }
    }
}

/// Everything that one pipeline is specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kernel: Kernel,
    pub(super) access: Access,
    pub(super) element: ElementType,
    /// Source and destination are one binding.
    pub(super) within: bool,
    /// Invocations of a workgroup.
    pub(super) threads: u32,
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
