//! The backends under test. One that plugs in here runs every case.

use half::{bf16, f16};
use pie_rope::{CacheLayout, Cpu, Element, ElementType, Layer, LayerRef, Result, Rotations};

use crate::buffer::Buffer;
use crate::case::{Case, Verb};
#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "wgpu")]
use crate::gpu;

/// A call of one verb, as every backend gets it.
pub struct Call<'a> {
    pub verb: Verb,
    pub element: ElementType,
    pub rotations: &'a Rotations,
    /// Where rows are; where they come from, in a copy.
    pub src_layout: CacheLayout<'a>,
    /// Where rows go, in a copy.
    pub dst_layout: CacheLayout<'a>,
    /// Keys and values share a buffer.
    pub packed: bool,
    /// A random number: which way to go, for backends that have several.
    #[allow(dead_code, reason = "unless a feature brings one")]
    pub way: u32,
}

/// The buffers of one layer.
#[derive(Clone)]
pub struct Layers {
    pub keys: Buffer,
    pub values: Option<Buffer>,
}

pub trait Backend: Send + Sync {
    /// Does the call on buffers in host memory: works on a copy of them wherever it has to, and brings
    /// everything back, guards included.
    fn run(&self, call: &Call<'_>, src: &mut [Layers], dst: &mut [Layers]) -> Result<()>;

    /// What the backend's f32 arithmetic may lose, in units of f32 at the magnitude of the pair: half a unit
    /// for each rounding. One product and one fused multiply-add, unless the backend cannot promise that.
    fn f32_loss(&self) -> f64 {
        1.0
    }
}

/// A backend by name, or the reason why it is not here.
pub struct Candidate {
    pub name: String,
    /// The cases that it runs.
    pub takes: fn(&Case) -> bool,
    pub backend: std::result::Result<Box<dyn Backend>, String>,
}

/// Every backend that this build knows, present or not.
pub fn candidates() -> Vec<Candidate> {
    #[allow(unused_mut, reason = "unless a feature adds to them")]
    let mut all: Vec<_> = Cpu::INSTRUCTION_SETS
        .iter()
        .map(|&set| Candidate {
            name: format!("cpu-{set}"),
            takes: |_| true,
            backend: Cpu::with_instruction_set(set)
                .map(|cpu| Box::new(cpu) as Box<dyn Backend>)
                .map_err(|error| error.to_string()),
        })
        .collect();
    #[cfg(feature = "cuda")]
    all.push(cuda::candidate());
    #[cfg(feature = "wgpu")]
    all.extend(gpu::candidates());
    all
}

impl Backend for Cpu {
    fn run(&self, call: &Call<'_>, src: &mut [Layers], dst: &mut [Layers]) -> Result<()> {
        match call.element {
            ElementType::F32 => run_typed::<f32>(self, call, src, dst),
            ElementType::F16 => run_typed::<f16>(self, call, src, dst),
            ElementType::BF16 => run_typed::<bf16>(self, call, src, dst),
        }
    }
}

fn run_typed<T: Element>(
    cpu: &Cpu,
    call: &Call<'_>,
    src: &mut [Layers],
    dst: &mut [Layers],
) -> Result<()> {
    let Call {
        rotations,
        src_layout,
        dst_layout,
        packed,
        ..
    } = *call;
    match call.verb {
        Verb::Rotate => cpu.rotate(rotations, src_layout, &mut mutable::<T>(src, packed)),
        Verb::Splice => cpu.splice(rotations, src_layout, &mut mutable::<T>(src, packed)),
        Verb::CopyWithin => cpu.copy_within(
            rotations,
            src_layout,
            dst_layout,
            &mut mutable::<T>(src, packed),
        ),
        Verb::Copy => {
            let src: Vec<_> = src.iter().map(|layer| shared::<T>(layer, packed)).collect();
            cpu.copy(
                rotations,
                src_layout,
                &src,
                dst_layout,
                &mut mutable::<T>(dst, packed),
            )
        }
    }
}

fn mutable<T: Element>(layers: &mut [Layers], packed: bool) -> Vec<Layer<'_, T>> {
    let mut typed = Vec::new();
    for layer in layers {
        let keys = bytemuck::cast_slice_mut(layer.keys.inner_mut());
        typed.push(match &mut layer.values {
            Some(values) => Layer::new(keys, bytemuck::cast_slice_mut(values.inner_mut())),
            None if packed => Layer::packed(keys),
            None => Layer::keys_only(keys),
        });
    }
    typed
}

fn shared<T: Element>(layer: &Layers, packed: bool) -> LayerRef<'_, T> {
    let keys: &[T] = bytemuck::cast_slice(layer.keys.inner());
    let values = match &layer.values {
        Some(values) => Some(bytemuck::cast_slice(values.inner())),
        None => packed.then_some(keys),
    };
    LayerRef { keys, values }
}
