//! Random everything, bit for bit: on random strides, tables, windows, plans and values (NaN, infinities and
//! subnormals among them), every instruction set, several threads, and CUDA, write what the definition of the
//! arithmetic says, one pair at a time, and nothing else.
//!
//! The conformance suite asks whether the numbers are right, on the layouts in use. This asks whether each
//! lands where it belongs, on layouts that nobody uses.
//!
//! WGSL lets a device do other things to numbers, so wgpu's turned keys are held to what [`wgsl`] says, and all else to
//! the bit.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use half::{bf16, f16};
#[cfg(feature = "cuda")]
use pie_rope::cudarc::driver::{CudaSlice, DevicePtrMut};
use pie_rope::{
    Axis, CacheLayout, Cpu, Edit, Element, KeyLayout, Layer, LayerRef, ModelRope, Pairing, Plan,
    Rope, Rotations, Strides, oracle,
};
#[cfg(feature = "cuda")]
use pie_rope::{Cuda, CudaRawLayer, CudaWorkspace};
#[cfg(feature = "wgpu")]
use pie_rope::{Error, Wgpu, WgpuLayer, wgpu};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use support::same_bits;

const LAYERS: usize = 3;

trait Bits: Element + PartialEq + std::fmt::Debug {
    fn from_bits(bits: u32) -> Self;
    fn wide(self) -> f32;
    /// As it is stored: rounded to nearest even, and one NaN for all.
    fn narrow(value: f32) -> Self;
}

impl Bits for f32 {
    fn from_bits(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
    fn wide(self) -> f32 {
        self
    }
    fn narrow(value: f32) -> f32 {
        if value.is_nan() {
            f32::from_bits(0x7fff_ffff)
        } else {
            value
        }
    }
}

macro_rules! sixteen_bits {
    ($type:ty) => {
        impl Bits for $type {
            fn from_bits(bits: u32) -> $type {
                <$type>::from_bits((bits >> 16) as u16)
            }
            fn wide(self) -> f32 {
                self.to_f32()
            }
            fn narrow(value: f32) -> $type {
                if value.is_nan() {
                    <$type>::from_bits(0x7fff)
                } else {
                    <$type>::from_f32(value)
                }
            }
        }
    };
}
sixteen_bits!(f16);
sixteen_bits!(bf16);

/// How much there is of everything, in keys and values alike.
#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    heads: usize,
    dim: usize,
    rows: usize,
    /// Things lie at multiples of so many elements: one, or what backends take at once where they can.
    grain: usize,
}

/// The grain; seldom one, which makes a layout that just misses what backends take at once.
fn nearly_always(grain: usize, random: &mut SmallRng) -> usize {
    if random.random_ratio(1, 12) { 1 } else { grain }
}

/// A layout of random strides: axes in any order, some with room between their steps.
struct Lie {
    strides: Strides,
    table: Option<Vec<u32>>,
    len: usize,
}

impl Lie {
    fn random(size: Size, random: &mut SmallRng) -> Lie {
        let block = *[1, 2, 3, 7, 16, 33, size.rows].choose(random).unwrap();
        let needed = size.rows.div_ceil(block);
        let blocks = needed + random.random_range(0..4);
        let table = random.random_bool(0.8).then(|| {
            let mut table: Vec<u32> = (0..blocks as u32).collect();
            table.shuffle(random);
            table.truncate(needed);
            table
        });
        let grain = nearly_always(size.grain, random);
        let packs: Vec<_> = (1..=size.dim)
            .filter(|pack| size.dim.is_multiple_of(*pack) && pack.is_multiple_of(grain))
            .collect();
        let pack = if random.random() {
            size.dim
        } else {
            *packs.choose(random).unwrap_or(&size.dim)
        };
        let lens = [size.batch, blocks, block, size.heads, size.dim / pack];
        let mut order = [0, 1, 2, 3, 4];
        order.shuffle(random);
        let mut axes = [Axis::new(0, 0); 5];
        let mut span = pack;
        for axis in order {
            let room = [0, 0, 1, 8].choose(random).unwrap();
            let grain = nearly_always(size.grain, random);
            let stride = span.next_multiple_of(grain) + room * grain;
            axes[axis] = Axis::new(lens[axis], stride);
            span += axes[axis].stride * (lens[axis] - 1);
        }
        let [batch, blocks, rows, heads, packs] = axes;
        let offset = nearly_always(size.grain, random) * random.random_range(0..9);
        Lie {
            strides: Strides {
                offset,
                batch,
                blocks,
                rows,
                heads,
                packs,
                pack,
            },
            table,
            len: offset + span + random.random_range(0..9),
        }
    }

    /// The same lattice with a table of blocks that this one does not use, if there are enough of them.
    fn elsewhere(&self) -> Option<Lie> {
        let used = self.table.as_ref()?;
        let free = (0..self.strides.blocks.len as u32).filter(|block| !used.contains(block));
        let table: Vec<u32> = free.take(used.len()).collect();
        (table.len() == used.len()).then_some(Lie {
            strides: self.strides,
            table: Some(table),
            len: self.len,
        })
    }

    fn layout<T: Element>(&self) -> KeyLayout<'_> {
        let layout = KeyLayout::strided(T::TYPE, self.strides);
        match &self.table {
            Some(table) => layout.with_table(table),
            None => layout,
        }
    }

    fn index(&self, [batch, head, row, dim]: [usize; 4]) -> usize {
        let s = &self.strides;
        let block = row / s.rows.len;
        let block = self.table.as_ref().map_or(block, |t| t[block] as usize);
        s.offset
            + batch * s.batch.stride
            + block * s.blocks.stride
            + row % s.rows.len * s.rows.stride
            + head * s.heads.stride
            + dim / s.pack * s.packs.stride
            + dim % s.pack
    }

    /// What an element of a buffer is: the slow way round, for failures.
    fn place(&self, size: Size, element: usize) -> String {
        for batch in 0..size.batch {
            for head in 0..size.heads {
                for row in 0..size.rows {
                    let found =
                        (0..size.dim).find(|&dim| self.index([batch, head, row, dim]) == element);
                    if let Some(dim) = found {
                        return format!("batch {batch}, head {head}, row {row}, dimension {dim}");
                    }
                }
            }
        }
        format!("element {element}, of no row of the sequence")
    }
}

/// A layer's keys and values.
type Buffers<T> = (Vec<T>, Vec<T>);

/// What a call must leave.
struct Expected<T> {
    layers: Vec<Buffers<T>>,
    /// The pairs of each layer's keys that were turned.
    turned: Vec<Vec<TurnedPair>>,
}

/// A pair of keys that was turned.
#[cfg_attr(
    not(feature = "wgpu"),
    allow(dead_code, reason = "others are held to bits")
)]
struct TurnedPair {
    /// Where it is now.
    at: [usize; 2],
    before: (f32, f32),
    cos_sin: (f32, f32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Rotate,
    Splice,
    Copy,
    CopyWithin,
}

/// Every row by itself, one pair at a time.
fn expected<T: Bits>(
    verb: Verb,
    size: Size,
    rotations: &Rotations,
    src: (&Lie, &[Buffers<T>]),
    dst: (&Lie, &[Buffers<T>]),
) -> Expected<T> {
    let mut after = dst.1.to_vec();
    let mut all_turned = Vec::new();
    for (layer, (keys, values)) in after.iter_mut().enumerate() {
        let mut turned = Vec::new();
        let from = &src.1[layer];
        let table = rotations.table(layer);
        for span in rotations.spans() {
            for i in 0..span.len {
                let (row, to) = (span.src + i, span.dst + i);
                let to = if verb == Verb::Rotate { row } else { to };
                for at in 0..size.batch * size.heads {
                    let (batch, head) = (at / size.heads, at % size.heads);
                    let mut vector: Vec<T> = (0..size.dim)
                        .map(|dim| from.0[src.0.index([batch, head, row, dim])])
                        .collect();
                    if let Some((table, turn)) = table.and_then(|t| Some((t, span.turn(t)?))) {
                        let (cos, sin) = table.row(turn.first as usize + i * turn.step as usize);
                        for pair in 0..cos.len() {
                            let (a, b) = oracle::pair(table.rope(), pair);
                            let (x, y) = (vector[a].wide(), vector[b].wide());
                            turned.push(TurnedPair {
                                at: [a, b].map(|dim| dst.0.index([batch, head, to, dim])),
                                before: (x, y),
                                cos_sin: (cos[pair], sin[pair]),
                            });
                            vector[a] = T::narrow(x.mul_add(cos[pair], -(y * sin[pair])));
                            vector[b] = T::narrow(y.mul_add(cos[pair], x * sin[pair]));
                        }
                    }
                    for (dim, key) in vector.into_iter().enumerate() {
                        let to = dst.0.index([batch, head, to, dim]);
                        keys[to] = key;
                        if verb != Verb::Rotate {
                            values[to] = from.1[src.0.index([batch, head, row, dim])];
                        }
                    }
                }
            }
        }
        all_turned.push(turned);
    }
    Expected {
        layers: after,
        turned: all_turned,
    }
}

fn plan(rows: usize, random: &mut SmallRng) -> Plan {
    match random.random_range(0..4) {
        0 => {
            let kept: Vec<usize> = (0..rows).filter(|_| random.random_bool(0.7)).collect();
            Plan::from_kept(rows, &kept)
        }
        1 => {
            // Some rows are free; the others are anywhere, the last positions among them.
            let mut position = || match random.random() {
                true => random.random_range(0..=i32::MAX),
                false => i32::MAX - random.random_range(0..9),
            };
            let pairs: Vec<(i32, i32)> = (0..rows).map(|_| (position(), position())).collect();
            let free = |pair| {
                if random.random_ratio(1, 4) {
                    (-1, -1)
                } else {
                    pair
                }
            };
            let (old, new): (Vec<i32>, Vec<i32>) = pairs.into_iter().map(free).unzip();
            Plan::from_positions(&old, &new)
        }
        _ => {
            let (mut edits, mut at) = (Vec::new(), random.random_range(0..20));
            while at < rows {
                let end = (at + random.random_range(0..6)).min(rows);
                edits.push(Edit::replace(at..end, random.random_range(0..9)));
                at = end + random.random_range(1..20);
            }
            Plan::from_edits_at(random.random_range(0..100_000), rows, &edits)
        }
    }
    .expect("a sound plan")
}

/// A backend under test.
enum Backend {
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
    #[cfg(feature = "wgpu")]
    Wgpu(wgsl::Gpu),
}

/// One call.
struct Call<'a, T> {
    verb: Verb,
    rotations: &'a Rotations,
    src_layout: CacheLayout<'a>,
    /// What a copy copies from.
    from: &'a [Buffers<T>],
    dst_layout: CacheLayout<'a>,
}

impl Backend {
    fn name(&self) -> String {
        match self {
            Backend::Cpu(cpu) => format!("{} on {} threads", cpu.instruction_set(), cpu.threads()),
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) => "CUDA".into(),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu(gpu) => gpu.to_string(),
        }
    }

    /// Holds one layer's keys to what is expected of this backend.
    fn compare_keys<T: Bits>(
        &self,
        after: &[T],
        expected: &[T],
        turned: &[TurnedPair],
        place: impl Fn(usize) -> String,
    ) -> Result<(), String> {
        match self {
            #[cfg(feature = "wgpu")]
            Backend::Wgpu(_) => {
                let expected = wgsl::found_right(after, expected, turned, &place)?;
                same_bits(after, &expected, place)
            }
            _ => {
                let _ = turned;
                same_bits(after, expected, place)
            }
        }
    }

    fn run<T: Bits>(&self, call: &Call<'_, T>, after: &mut [Buffers<T>]) -> pie_rope::Result<()> {
        match self {
            Backend::Cpu(cpu) => on_cpu(cpu, call, after),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => on_cuda(cuda, call, after),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu(gpu) => gpu.run(call, after),
        }
    }
}

fn on_cpu<T: Bits>(
    cpu: &Cpu,
    call: &Call<'_, T>,
    after: &mut [Buffers<T>],
) -> pie_rope::Result<()> {
    let Call {
        verb,
        rotations,
        src_layout,
        from,
        dst_layout,
    } = *call;
    let mut layers: Vec<_> = after.iter_mut().map(|(k, v)| Layer::new(k, v)).collect();
    match verb {
        Verb::Rotate => cpu.rotate(rotations, src_layout, &mut layers),
        Verb::Splice => cpu.splice(rotations, src_layout, &mut layers),
        Verb::CopyWithin => cpu.copy_within(rotations, src_layout, dst_layout, &mut layers),
        Verb::Copy => {
            let from = from.iter().map(|(keys, values)| LayerRef {
                keys,
                values: Some(values),
            });
            let from: Vec<_> = from.collect();
            cpu.copy(rotations, src_layout, &from, dst_layout, &mut layers)
        }
    }
}

/// Each buffer in device memory of its own, as long as it is and no longer.
#[cfg(feature = "cuda")]
fn on_cuda<T: Bits>(
    cuda: &Cuda,
    call: &Call<'_, T>,
    after: &mut [Buffers<T>],
) -> pie_rope::Result<()> {
    let Call {
        verb,
        rotations,
        ref src_layout,
        from,
        ref dst_layout,
    } = *call;
    let stream = cuda.context().expect("opened here").default_stream();
    let upload = |layers: &[Buffers<T>]| -> pie_rope::Result<Vec<CudaSlice<u8>>> {
        let buffers = layers.iter().flat_map(|(keys, values)| [keys, values]);
        buffers
            .map(|buffer| Ok(stream.clone_htod(bytemuck::cast_slice(buffer))?))
            .collect()
    };
    let address = |slice: &mut CudaSlice<u8>| slice.device_ptr_mut(&stream).0;
    let layers = |slices: &mut [CudaSlice<u8>]| -> Vec<CudaRawLayer> {
        let pairs = slices.chunks_mut(2).map(|pair| CudaRawLayer {
            keys_len: pair[0].len() / size_of::<T>(),
            keys: address(&mut pair[0]),
            values_len: pair[1].len() / size_of::<T>(),
            values: address(&mut pair[1]),
        });
        pairs.collect()
    };
    let mut there = upload(after)?;
    let to = layers(&mut there);
    let mut source = upload(if verb == Verb::Copy { from } else { &[] })?;
    let source = layers(&mut source);
    let len = cuda.workspace_len(rotations, &[src_layout, dst_layout], to.len());
    let mut workspace = stream.alloc_zeros::<u8>(len.max(16))?;
    let workspace = CudaWorkspace {
        len,
        address: address(&mut workspace),
    };
    let queue = stream.cu_stream();
    let both = (dst_layout, &to[..]);
    // SAFETY: addresses and lengths of slices that nobody else uses.
    unsafe {
        match verb {
            Verb::Rotate => cuda.rotate_raw(queue, rotations, src_layout, &to, workspace),
            Verb::Splice => cuda.splice_raw(queue, rotations, src_layout, &to, workspace),
            Verb::CopyWithin => cuda.copy_raw(queue, rotations, (src_layout, &to), both, workspace),
            Verb::Copy => cuda.copy_raw(queue, rotations, (src_layout, &source), both, workspace),
        }
    }?;
    let buffers = after.iter_mut().flat_map(|(keys, values)| [keys, values]);
    for (buffer, slice) in buffers.zip(&there) {
        stream.memcpy_dtoh(slice, bytemuck::cast_slice_mut::<T, u8>(buffer))?;
    }
    stream.synchronize()?;
    Ok(())
}

/// Random values: any bits at all, or numbers, or numbers with some special ones.
fn buffer<T: Bits>(len: usize, kind: u32, random: &mut SmallRng) -> Vec<T> {
    let special = [
        0x7fc0_0001,
        0xff80_0000,
        0x7c00_0000,
        0xfc01_0000,
        0x0001_0001,
        0x8000_0000,
    ];
    let mut value = || match kind {
        0 => T::from_bits(random.random()),
        1 if random.random_ratio(1, 50) => T::from_bits(*special.choose(random).unwrap()),
        _ => T::narrow(random.random_range(-1.0..1.0)),
    };
    (0..len).map(|_| value()).collect()
}

fn run<T: Bits>(backends: &[Backend], random: &mut SmallRng) {
    let grain = if random.random() {
        1
    } else {
        16 / size_of::<T>()
    };
    // Of many grains, odd numbers of them too.
    let step = nearly_always(grain, random).max(2);
    let dim = step * random.random_range(1..=140 / step);
    let rows = random.random_range(1..=90);
    let plan = plan(rows, random);
    let size = Size {
        batch: random.random_range(1..=2),
        heads: random.random_range(1..=9),
        dim,
        rows: plan.old_rows().max(plan.new_rows()).max(1),
        grain,
    };

    let half = nearly_always(grain, random).min(dim / 2);
    let width = 2 * half * random.random_range(1..=dim / (2 * half));
    let step = nearly_always(grain, random);
    let offset = step * random.random_range(0..=(dim - width) / step);
    let pairing = *[Pairing::HalfSplit, Pairing::Interleaved]
        .choose(random)
        .unwrap();
    let rope = |theta| {
        let rope = Rope::from_theta(theta, width).expect("an even width");
        Some(rope.with_pairing(pairing).with_offset(offset))
    };
    let old = ModelRope::from_layers([rope(1e4), None, rope(5e5)]);
    let switched = ModelRope::from_layers([rope(3e4), None, rope(5e5)]);
    let new = if random.random_ratio(1, 3) {
        &switched
    } else {
        &old
    };
    let rotations = Rotations::between(&plan, &old, new).expect("ropes of one shape");

    let src = Lie::random(size, random);
    let (verb, dst) = match random.random_range(0..4) {
        0 => (Verb::Rotate, None),
        1 => (Verb::Splice, None),
        2 => (Verb::Copy, Some(Lie::random(size, random))),
        _ => match src.elsewhere() {
            Some(lie) => (Verb::CopyWithin, Some(lie)),
            None => (Verb::Splice, None),
        },
    };
    let dst = dst.as_ref().unwrap_or(&src);
    let kind = random.random_range(0..3);
    let mut layers = |lie: &Lie| -> Vec<Buffers<T>> {
        (0..LAYERS)
            .map(|_| (buffer(lie.len, kind, random), buffer(lie.len, kind, random)))
            .collect()
    };
    let from = layers(&src);
    let to = if verb == Verb::Copy {
        layers(dst)
    } else {
        from.clone()
    };
    let expected = expected(verb, size, &rotations, (&src, &from), (dst, &to));

    let (src_layout, dst_layout): (CacheLayout, CacheLayout) =
        (src.layout::<T>().into(), dst.layout::<T>().into());
    let call = Call {
        verb,
        rotations: &rotations,
        src_layout,
        from: &from,
        dst_layout,
    };
    for backend in backends {
        let mut after = to.clone();
        backend.run(&call, &mut after).expect("a sound call");
        for (layer, (after, layers)) in support::each(&after, &expected.layers).enumerate() {
            let place = |element| dst.place(size, element);
            let turned = &expected.turned[layer];
            let keys = backend.compare_keys(&after.0, &layers.0, turned, place);
            let keys = keys.map_err(|problem| format!("keys, {problem}"));
            let values = || same_bits(&after.1, &layers.1, place);
            let values = || values().map_err(|problem| format!("values, {problem}"));
            if let Err(problem) = keys.and_then(|()| values()) {
                panic!(
                    "{}, {verb:?} {} {pairing:?}, window {offset} + {width} of {dim}, layer {layer}, {problem}\n\
                     from {:?} to {:?}",
                    backend.name(),
                    T::TYPE,
                    src.strides,
                    dst.strides,
                );
            }
        }
    }
}

fn many<T: Bits>(backends: &[Backend], times: usize) {
    for _ in 0..times {
        let seed = rand::random();
        let one = || run::<T>(backends, &mut SmallRng::seed_from_u64(seed));
        catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|panic| {
            eprintln!("seed {seed}");
            resume_unwind(panic)
        });
    }
}

fn on_cpus<T: Bits>() {
    let sets = Cpu::INSTRUCTION_SETS.iter();
    let mut cpus: Vec<_> = sets
        .filter_map(|set| Cpu::with_instruction_set(set).ok())
        .collect();
    cpus.extend(Cpu::with_threads(if cfg!(feature = "rayon") {
        3
    } else {
        1
    }));
    assert!(cpus.len() >= 2, "the portable kernels, and threads");
    let backends: Vec<_> = cpus.into_iter().map(Backend::Cpu).collect();
    many::<T>(&backends, 1000);
}

#[test]
fn f32_everywhere() {
    on_cpus::<f32>();
}

#[test]
fn f16_everywhere() {
    on_cpus::<f16>();
}

#[test]
fn bf16_everywhere() {
    on_cpus::<bf16>();
}

/// On the first device, or the emulator.
#[cfg(feature = "cuda")]
fn on_cuda_devices<T: Bits>() {
    let open = || Cuda::open(0).expect("a device, or the emulator: see scripts/emulator");
    let small = open().with_blocks_of(32).expect("a size of blocks");
    let backends = [Backend::Cuda(open()), Backend::Cuda(small)];
    many::<T>(&backends, 500);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_f32() {
    on_cuda_devices::<f32>();
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_f16() {
    on_cuda_devices::<f16>();
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_bf16() {
    on_cuda_devices::<bf16>();
}

/// On the adapter that [`Wgpu::open`] opens.
#[cfg(feature = "wgpu")]
fn on_wgpu<T: Bits>() {
    let backends = wgsl::Gpu::all().map(Backend::Wgpu);
    many::<T>(&backends, 150);
}

#[cfg(feature = "wgpu")]
#[test]
fn wgpu_f32() {
    on_wgpu::<f32>();
}

#[cfg(feature = "wgpu")]
#[test]
fn wgpu_f16() {
    on_wgpu::<f16>();
}

#[cfg(feature = "wgpu")]
#[test]
fn wgpu_bf16() {
    on_wgpu::<bf16>();
}

/// The wgpu backend, and what it is held to.
///
/// WGSL promises little of numbers. A fused multiply-add may round its product, any operation may take a subnormal for
/// zero and return zero for one, and of infinities and NaN it promises nothing at all. What is demanded here:
///
/// - rows that the call does not name, dimensions outside of the window, values, and everything else that only moves
///   keep every bit, whatever number it is;
/// - a pair of finite numbers is turned within one and a half units in the last place of f32 at its magnitude (three
///   roundings), half a unit of the stored type more if that is narrower, and five times the smallest normal f32 (two
///   numbers, two products and a sum that may have been subnormal). Past the largest number it is infinity;
/// - where IEEE 754 has infinity, there is that infinity, and where it has NaN there is a NaN, of no particular bits.
///   That is more than WGSL promises, and what every adapter has done so far.
#[cfg(feature = "wgpu")]
mod wgsl {
    use super::*;
    use pie_rope::ElementType;
    use wgpu::BufferUsages as Usage;

    /// What WGSL may lose in f32, in units in the last place at the magnitude of the pair.
    const LOSS: f64 = 1.5;
    /// What it may lose where numbers are subnormal.
    const FLUSHED: f64 = 5.0 * f32::MIN_POSITIVE as f64;

    /// A backend, and whether it is to bind a part of each buffer at a time.
    pub struct Gpu {
        wgpu: Wgpu,
        in_parts: bool,
    }

    impl std::fmt::Display for Gpu {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let parts = if self.in_parts { ", in parts" } else { "" };
            write!(f, "{}{parts}", self.wgpu)
        }
    }

    /// What a pair must be: the first complaint there is, of either element.
    pub fn complaint<T: Bits>(got: [T; 2], pair: &TurnedPair) -> Option<String> {
        let ((x, y), (cos, sin)) = (pair.before, pair.cos_sin);
        let ieee = [x.mul_add(cos, -(y * sin)), y.mul_add(cos, x * sin)];
        let (a, b) = (f64::from(x), f64::from(y));
        let (c, s) = (f64::from(cos), f64::from(sin));
        let exact = [a * c - b * s, b * c + a * s];
        let magnitude = a.hypot(b);
        let f32_loss = LOSS * oracle::ulp(ElementType::F32, magnitude) + FLUSHED;
        let (narrowing, largest) = match T::TYPE {
            ElementType::F32 => (0.0, f64::from(f32::MAX)),
            ElementType::F16 => (0.5, f16::MAX.to_f64()),
            ElementType::BF16 => (0.5, bf16::MAX.to_f64()),
        };
        // From here on numbers are rounded to infinity.
        let end = largest + 0.5 * oracle::ulp(T::TYPE, largest);
        let allowed = f32_loss + narrowing * oracle::ulp(T::TYPE, magnitude);
        (0..2).find_map(|which| {
            let number = f64::from(got[which].wide());
            let (ieee, exact) = (f64::from(ieee[which]), exact[which]);
            let right = if !magnitude.is_finite() {
                number.is_nan() && ieee.is_nan() || number == ieee
            } else if number.is_infinite() {
                number.signum() == exact.signum() && exact.abs() + f32_loss >= end
            } else {
                (number - exact).abs() <= allowed
            };
            (!right).then(|| {
                format!(
                    "({x:?}, {y:?}) by ({cos:?}, {sin:?}), element {which}: got {number:?}, expected {exact:?} within \
                     {allowed:e}, or {ieee:?}"
                )
            })
        })
    }

    /// What is expected, with those turned pairs as they are that have been found right.
    pub fn found_right<T: Bits>(
        after: &[T],
        expected: &[T],
        turned: &[TurnedPair],
        place: impl Fn(usize) -> String,
    ) -> Result<Vec<T>, String> {
        let mut expected = expected.to_vec();
        if after.len() != expected.len() {
            return Err(format!(
                "got {} of {} elements",
                after.len(),
                expected.len()
            ));
        }
        for pair in turned {
            if let Some(problem) = complaint(pair.at.map(|at| after[at]), pair) {
                return Err(format!("{}: {problem}", place(pair.at[0])));
            }
            for at in pair.at {
                expected[at] = after[at];
            }
        }
        Ok(expected)
    }

    #[test]
    fn a_pair_is_wrong_in_every_way() {
        let pair = |before, angle: f32| TurnedPair {
            at: [0, 1],
            before,
            cos_sin: (angle.cos(), angle.sin()),
        };
        fn is_right<T: Bits>(got: [f32; 2], pair: &TurnedPair) -> bool {
            complaint(got.map(T::narrow), pair).is_none()
        }
        let usual = pair((0.6, -0.8), 0.7);
        let ((x, y), (cos, sin)) = (usual.before, usual.cos_sin);
        let right = [x * cos - y * sin, y * cos + x * sin];
        for is_right in [is_right::<f32>, is_right::<f16>, is_right::<bf16>] {
            assert!(is_right(right, &usual));
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, x, y] {
                for which in 0..2 {
                    let mut got = right;
                    got[which] = wrong;
                    assert!(!is_right(got, &usual), "{got:?}");
                }
            }
            assert!(!is_right([right[1], right[0]], &usual));
            assert!(!is_right([right[0], -right[1]], &usual));
            assert!(!is_right([x, y], &usual));
            // NaN and infinities stay what they are.
            for (before, right) in [
                ((f32::NAN, 1.0), [f32::NAN; 2]),
                ((1.0, f32::NAN), [f32::NAN; 2]),
                ((f32::INFINITY, 1.0), [f32::INFINITY; 2]),
                ((1.0, f32::INFINITY), [f32::NEG_INFINITY, f32::INFINITY]),
                ((f32::INFINITY, f32::INFINITY), [f32::NAN, f32::INFINITY]),
            ] {
                let pair = pair(before, 0.7);
                assert!(is_right(right, &pair));
                for which in 0..2 {
                    for wrong in [0.0, 1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut got = right;
                        if wrong == got[which] || wrong.is_nan() && got[which].is_nan() {
                            continue;
                        }
                        got[which] = wrong;
                        assert!(!is_right(got, &pair), "{got:?} of {before:?}");
                    }
                }
            }
        }
        // Two units are too many; past the largest number is infinity, and before it is not.
        let unit = f32::EPSILON / 2.0;
        assert!(is_right::<f32>([right[0] + unit, right[1]], &usual));
        assert!(!is_right::<f32>([right[0] + 4.0 * unit, right[1]], &usual));
        let large = pair((60_000.0, -60_000.0), 0.7);
        assert!(is_right::<f16>([f32::INFINITY, -7237.0], &large));
        assert!(!is_right::<f16>([65_504.0, -7237.0], &large));
        let small = pair((1e-40, 0.0), 0.7);
        assert!(is_right::<f32>([0.0, 0.0], &small));
        assert!(!is_right::<f32>([1e-36, 0.0], &small));
    }

    /// Bytes around each buffer that nobody may write.
    const GUARD: usize = 64;
    const GUARD_BYTE: u8 = 0xa5;

    /// Host buffers on the device, each in one of its own.
    struct Uploaded {
        buffers: Vec<(wgpu::Buffer, usize)>,
    }

    impl Uploaded {
        fn new<T: Bits>(wgpu: &Wgpu, layers: &[Buffers<T>]) -> Uploaded {
            let hosts = layers.iter().flat_map(|(keys, values)| [keys, values]);
            let buffers = hosts.map(|host| {
                let inside: &[u8] = bytemuck::cast_slice(host);
                let mut bytes = vec![GUARD_BYTE; (2 * GUARD + inside.len()).next_multiple_of(4)];
                bytes[GUARD..][..inside.len()].copy_from_slice(inside);
                let buffer = wgpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: bytes.len() as u64,
                    usage: Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC,
                    mapped_at_creation: false,
                });
                wgpu.queue().write_buffer(&buffer, 0, &bytes);
                (buffer, inside.len())
            });
            Uploaded {
                buffers: buffers.collect(),
            }
        }

        fn layers(&self) -> Vec<WgpuLayer<'_>> {
            let slices = self.buffers.chunks_exact(2).map(|pair| {
                let slice = |index: usize| {
                    let (buffer, len) = &pair[index];
                    buffer.slice(GUARD as u64..(GUARD + len) as u64)
                };
                WgpuLayer::new(slice(0), slice(1))
            });
            slices.collect()
        }

        /// What is in them now, between guards that are as they were.
        fn download<T: Bits>(&self, wgpu: &Wgpu) -> pie_rope::Result<Vec<Buffers<T>>> {
            let total: u64 = self.buffers.iter().map(|(buffer, _)| buffer.size()).sum();
            let back = wgpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: total,
                usage: Usage::COPY_DST | Usage::MAP_READ,
                mapped_at_creation: false,
            });
            let mut encoder = wgpu.device().create_command_encoder(&Default::default());
            let mut start = 0;
            for (buffer, _) in &self.buffers {
                encoder.copy_buffer_to_buffer(buffer, 0, &back, start, buffer.size());
                start += buffer.size();
            }
            wgpu.submit(encoder)?;
            back.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapped"));
            let polled = wgpu.device().poll(wgpu::PollType::wait_indefinitely());
            polled.map_err(|error| Error::Device(error.to_string()))?;
            let view = back.get_mapped_range(..);
            let view = view.map_err(|error| Error::Device(error.to_string()))?;
            let mut rest: &[u8] = &view;
            let mut all = Vec::new();
            for (buffer, len) in &self.buffers {
                let (bytes, others) = rest.split_at(buffer.size() as usize);
                rest = others;
                let (before, behind) = (&bytes[..GUARD], &bytes[GUARD + len..]);
                if before.iter().chain(behind).any(|&byte| byte != GUARD_BYTE) {
                    return Err(Error::Device("bytes around a buffer were written".into()));
                }
                all.push(bytemuck::pod_collect_to_vec(&bytes[GUARD..][..*len]));
            }
            let mut all = all.into_iter();
            let pairs = std::iter::from_fn(|| all.next().zip(all.next()));
            Ok(pairs.collect())
        }
    }

    impl Gpu {
        /// As it is, with larger workgroups, and with buffers that take several bindings.
        pub fn all() -> [Gpu; 3] {
            let open = || Wgpu::open().expect("an adapter: see scripts/adapter");
            let wider = open()
                .with_workgroups_of(256)
                .expect("a size of workgroups");
            [(open(), false), (wider, false), (open(), true)]
                .map(|(wgpu, in_parts)| Gpu { wgpu, in_parts })
        }

        pub fn run<T: Bits>(
            &self,
            call: &Call<'_, T>,
            after: &mut [Buffers<T>],
        ) -> pie_rope::Result<()> {
            let there = Uploaded::new(&self.wgpu, after);
            let source = Uploaded::new(
                &self.wgpu,
                if call.verb == Verb::Copy {
                    call.from
                } else {
                    &[]
                },
            );
            let record = |wgpu: &Wgpu| {
                let mut encoder = wgpu.device().create_command_encoder(&Default::default());
                let Call {
                    verb,
                    rotations,
                    src_layout,
                    dst_layout,
                    ..
                } = *call;
                let (from, to) = (source.layers(), there.layers());
                match verb {
                    Verb::Rotate => wgpu.rotate(&mut encoder, rotations, src_layout, &to),
                    Verb::Splice => wgpu.splice(&mut encoder, rotations, src_layout, &to),
                    Verb::Copy => {
                        wgpu.copy(&mut encoder, rotations, src_layout, &from, dst_layout, &to)
                    }
                    Verb::CopyWithin => {
                        wgpu.copy_within(&mut encoder, rotations, src_layout, dst_layout, &to)
                    }
                }
                .map(|()| encoder)
            };
            let encoder = if self.in_parts {
                let largest = there.buffers.iter().map(|(buffer, _)| buffer.size()).max();
                let window = (largest.unwrap_or(0) / 2).max(4096);
                match record(&self.wgpu.clone().with_window(window)?) {
                    // A head vector that lies across more than half of the buffer.
                    Err(Error::Limit(_)) => record(&self.wgpu),
                    recorded => recorded,
                }
            } else {
                record(&self.wgpu)
            };
            self.wgpu.submit(encoder?)?;
            after.clone_from_slice(&there.download::<T>(&self.wgpu)?);
            if call.verb == Verb::Copy {
                let sources = source.download::<T>(&self.wgpu)?;
                for ((keys, values), (from_keys, from_values)) in support::each(&sources, call.from)
                {
                    let place = |half| move |element| format!("source, {half}, element {element}");
                    let same = same_bits(keys, from_keys, place("keys"))
                        .and_then(|()| same_bits(values, from_values, place("values")));
                    same.map_err(Error::Device)?;
                }
            }
            Ok(())
        }
    }
}
