//! The backends under test. One that plugs in here runs every case.

use half::{bf16, f16};
use pie_rope::{CacheLayout, Cpu, Element, ElementType, Layer, LayerRef, Result, Rotations};

use crate::buffer::Buffer;
use crate::case::Verb;

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
}

/// A backend by name, or the reason why it is not here.
pub struct Candidate {
    pub name: String,
    pub backend: std::result::Result<Box<dyn Backend>, String>,
}

/// Every backend that this build knows, present or not.
pub fn candidates() -> Vec<Candidate> {
    let sets = Cpu::INSTRUCTION_SETS.iter().map(|&set| Candidate {
        name: format!("cpu-{set}"),
        backend: Cpu::with_instruction_set(set)
            .map(|cpu| Box::new(cpu) as Box<dyn Backend>)
            .map_err(|error| error.to_string()),
    });
    let threads = Candidate {
        name: "cpu-threads".into(),
        backend: Cpu::with_threads(3)
            .map(|cpu| Box::new(cpu.with_min_bytes_per_thread(1)) as Box<dyn Backend>)
            .map_err(|error| error.to_string()),
    };
    sets.chain([threads]).collect()
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
    let rotations = call.rotations;
    let mut layers = if call.verb == Verb::Copy {
        mutable::<T>(dst, call.packed)
    } else {
        mutable::<T>(src, call.packed)
    };
    match call.verb {
        Verb::Rotate => cpu.rotate(rotations, call.src_layout, &mut layers),
        Verb::Splice => cpu.splice(rotations, call.src_layout, &mut layers),
        Verb::CopyWithin => {
            cpu.copy_within(rotations, call.src_layout, call.dst_layout, &mut layers)
        }
        Verb::Copy => {
            let from: Vec<_> = src.iter_mut().map(|layer| shared::<T>(layer, call.packed)).collect();
            cpu.copy(rotations, call.src_layout, &from, call.dst_layout, &mut layers)
        }
    }
}

fn mutable<T: Element>(layers: &mut [Layers], packed: bool) -> Vec<Layer<'_, T>> {
    let layer = |layer: &mut Layers| -> Layer<'_, T> {
        let keys = bytemuck::cast_slice_mut(layer.keys.inner_mut());
        match &mut layer.values {
            Some(values) => Layer::new(keys, bytemuck::cast_slice_mut(values.inner_mut())),
            None if packed => Layer::packed(keys),
            None => Layer::keys_only(keys),
        }
    };
    // A closure cannot say that its result borrows from its argument; a function can.
    fn each<'a, T>(
        layers: &'a mut [Layers],
        layer: impl Fn(&'a mut Layers) -> Layer<'a, T>,
    ) -> Vec<Layer<'a, T>> {
        layers.iter_mut().map(layer).collect()
    }
    each(layers, layer)
}

fn shared<T: Element>(layer: &mut Layers, packed: bool) -> LayerRef<'_, T> {
    let keys: &[T] = bytemuck::cast_slice(layer.keys.inner_mut());
    let values = match &mut layer.values {
        Some(values) => Some(bytemuck::cast_slice(&*values.inner_mut())),
        None => packed.then_some(keys),
    };
    LayerRef { keys, values }
}
