//! Random everything, bit for bit: on random strides, tables, windows, plans and values (NaN, infinities and
//! subnormals among them), every instruction set, several threads, and CUDA, write what the definition of the
//! arithmetic says, one pair at a time, and nothing else.
//!
//! The conformance suite asks whether the numbers are right, on the layouts in use. This asks whether each
//! lands where it belongs, on layouts that nobody uses.

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
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

const LAYERS: usize = 3;

trait Bits: Element + PartialEq {
    fn from_bits(bits: u32) -> Self;
    fn bits(self) -> u32;
    fn wide(self) -> f32;
    /// As it is stored: rounded to nearest even, and one NaN for all.
    fn narrow(value: f32) -> Self;
}

impl Bits for f32 {
    fn from_bits(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
    fn bits(self) -> u32 {
        self.to_bits()
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
            fn bits(self) -> u32 {
                self.to_bits().into()
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
        let packs: Vec<_> = (1..=size.dim)
            .filter(|pack| size.dim.is_multiple_of(*pack))
            .collect();
        let pack = if random.random() {
            size.dim
        } else {
            *packs.choose(random).unwrap()
        };
        let lens = [size.batch, blocks, block, size.heads, size.dim / pack];
        let mut order = [0, 1, 2, 3, 4];
        order.shuffle(random);
        let mut axes = [Axis::new(0, 0); 5];
        let mut span = pack;
        for axis in order {
            let room = [0, 0, 1, 8].choose(random).unwrap();
            axes[axis] = Axis::new(lens[axis], span + room);
            span += axes[axis].stride * (lens[axis] - 1);
        }
        let [batch, blocks, rows, heads, packs] = axes;
        let offset = random.random_range(0..9);
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
}

/// A layer's keys and values.
type Buffers<T> = (Vec<T>, Vec<T>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Rotate,
    Splice,
    Copy,
    CopyWithin,
}

/// What a call must leave: every row by itself, one pair at a time.
fn expected<T: Bits>(
    verb: Verb,
    size: Size,
    rotations: &Rotations,
    src: (&Lie, &[Buffers<T>]),
    dst: (&Lie, &[Buffers<T>]),
) -> Vec<Buffers<T>> {
    let mut after = dst.1.to_vec();
    for (layer, (keys, values)) in after.iter_mut().enumerate() {
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
    }
    after
}

fn plan(rows: usize, random: &mut SmallRng) -> Plan {
    match random.random_range(0..4) {
        0 => {
            let kept: Vec<usize> = (0..rows).filter(|_| random.random_bool(0.7)).collect();
            Plan::from_kept(rows, &kept)
        }
        1 => {
            let mut positions = || (0..rows).map(|_| random.random_range(0..1 << 30)).collect();
            let (old, new): (Vec<i32>, Vec<i32>) = (positions(), positions());
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
        }
    }

    fn run<T: Bits>(&self, call: &Call<'_, T>, after: &mut [Buffers<T>]) -> pie_rope::Result<()> {
        match self {
            Backend::Cpu(cpu) => on_cpu(cpu, call, after),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => on_cuda(cuda, call, after),
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
    let dim = 2 * random.random_range(1..=70);
    let rows = random.random_range(1..=90);
    let plan = plan(rows, random);
    let size = Size {
        batch: random.random_range(1..=2),
        heads: random.random_range(1..=9),
        dim,
        rows: plan.old_rows().max(plan.new_rows()).max(1),
    };

    let width = 2 * random.random_range(1..=dim / 2);
    let offset = random.random_range(0..=dim - width);
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
        for (layer, (after, expected)) in after.iter().zip(&expected).enumerate() {
            let halves = [
                ("keys", &after.0, &expected.0),
                ("values", &after.1, &expected.1),
            ];
            for (half, after, expected) in halves {
                let differs = |(a, b): (&T, &T)| a.bits() != b.bits();
                let wrong = after.iter().zip(expected).position(differs);
                assert!(
                    wrong.is_none(),
                    "{}, {verb:?} {} {pairing:?}, window {offset} + {width} of {dim}, layer {layer} {half}, element {}: from {:?} to {:?}",
                    backend.name(),
                    T::TYPE,
                    wrong.unwrap_or_default(),
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
#[test]
fn cuda_everywhere() {
    let open = || Cuda::open(0).expect("a device, or the emulator: see scripts/emulator");
    let small = open().with_blocks_of(32).expect("a size of blocks");
    let backends = [Backend::Cuda(open()), Backend::Cuda(small)];
    many::<f32>(&backends, 500);
    many::<f16>(&backends, 500);
    many::<bf16>(&backends, 500);
}
