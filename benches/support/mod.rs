//! What the CPU benchmarks measure: caches of random keys, the verbs on them, and beside each verb a loop
//! that moves the same bytes and does nothing else (its ceiling).

use half::{bf16, f16};
use pie_rope::{Cpu, Edit, Element, KeyLayout, Layer, LayerRef, Pairing, Plan, Rope, Rotations};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Rows that an edit inserts or deletes, and positions that keys turn by.
pub const SHIFT: usize = 37;

/// A cache in memory: layers of keys and values, `[1, heads, rows, dim]` each.
pub struct Cache<T> {
    pub layers: Vec<(Vec<T>, Vec<T>)>,
    pub shape: Shape,
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub layers: usize,
    pub heads: usize,
    pub rows: usize,
    pub dim: usize,
}

impl Shape {
    /// A cache of about `bytes` bytes of keys: layers of 8 heads and 4096 rows.
    pub fn of_bytes<T: Element>(bytes: usize, dim: usize) -> Shape {
        let (heads, rows) = (8, 4096);
        let layer = heads * rows * dim * T::TYPE.size();
        Shape {
            layers: bytes.div_ceil(layer),
            heads,
            rows,
            dim,
        }
    }

    fn elements(self) -> usize {
        self.heads * self.rows * self.dim
    }

    /// Bytes of all keys.
    pub fn key_bytes<T: Element>(self) -> usize {
        self.layers * self.elements() * T::TYPE.size()
    }

    fn layout<T: Element>(self) -> KeyLayout<'static> {
        KeyLayout::bhsd(T::TYPE, [1, self.heads, self.rows, self.dim])
    }
}

/// An element type that can be made up.
pub trait Number: Element {
    fn from_f32(value: f32) -> Self;
}

impl Number for f32 {
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Number for f16 {
    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }
}

impl Number for bf16 {
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
}

impl<T: Number> Cache<T> {
    /// Fresh random keys and values, never zeros: some processors and memories are quick with those.
    pub fn random(shape: Shape) -> Cache<T> {
        let mut random = SmallRng::seed_from_u64(rand::random());
        let mut buffer = || -> Vec<T> {
            let value = |bits: u64| {
                let magnitude = 0.5 + (bits >> 40) as f32 / (1 << 24) as f32;
                T::from_f32(if bits & 1 == 0 { magnitude } else { -magnitude })
            };
            (0..shape.elements())
                .map(|_| value(random.random()))
                .collect()
        };
        Cache {
            layers: (0..shape.layers).map(|_| (buffer(), buffer())).collect(),
            shape,
        }
    }

    fn keys(&mut self) -> Vec<Layer<'_, T>> {
        self.layers
            .iter_mut()
            .map(|(keys, _)| Layer::keys_only(keys))
            .collect()
    }

    fn both(&mut self) -> Vec<Layer<'_, T>> {
        self.layers
            .iter_mut()
            .map(|(keys, values)| Layer::new(keys, values))
            .collect()
    }

    /// Turns all keys.
    pub fn rotate(&mut self, cpu: &Cpu, rotations: &Rotations) {
        let layout = self.shape.layout::<T>();
        cpu.rotate(rotations, layout, &mut self.keys())
            .expect("a sound call");
    }

    /// The ceiling of `rotate`: reads and writes the same bytes in place.
    pub fn sweep(&mut self, threads: usize) {
        let slices = self
            .layers
            .iter_mut()
            .map(|(keys, _)| bytemuck::cast_slice_mut(keys));
        spread(slices.collect(), threads, sweep);
    }

    /// Moves all rows but the last or first [`SHIFT`], keys and values, and turns the keys.
    pub fn splice(&mut self, cpu: &Cpu, rotations: &Rotations) {
        let layout = self.shape.layout::<T>();
        cpu.splice(rotations, layout, &mut self.both())
            .expect("a sound call");
    }

    /// The ceiling of `splice`: an overlapping `memmove` of every head's rows, keys and values.
    pub fn memmove(&mut self, right: bool, threads: usize) {
        let head = self.shape.rows * self.shape.dim;
        let moved = SHIFT * self.shape.dim;
        let heads = self.layers.iter_mut().flat_map(|(keys, values)| {
            keys.chunks_exact_mut(head)
                .chain(values.chunks_exact_mut(head))
        });
        spread(heads.collect(), threads, |head: &mut [T]| {
            let rest = head.len() - moved;
            if right {
                head.copy_within(..rest, moved);
            } else {
                head.copy_within(moved.., 0);
            }
        });
    }

    /// Copies all rows to `to` and turns the keys.
    pub fn copy(&self, to: &mut Cache<T>, cpu: &Cpu, rotations: &Rotations) {
        let layout = self.shape.layout::<T>();
        let from: Vec<_> = self
            .layers
            .iter()
            .map(|(keys, values)| LayerRef {
                keys,
                values: Some(values),
            })
            .collect();
        cpu.copy(rotations, layout, &from, layout, &mut to.both())
            .expect("a sound call");
    }

    /// The ceiling of `copy`: a `memcpy` of every layer, keys and values.
    pub fn memcpy(&self, to: &mut Cache<T>, threads: usize) {
        const PIECE: usize = 1 << 18;
        let pieces = self
            .layers
            .iter()
            .zip(&mut to.layers)
            .flat_map(|(from, to)| {
                let keys = from.0.chunks(PIECE).zip(to.0.chunks_mut(PIECE));
                keys.chain(from.1.chunks(PIECE).zip(to.1.chunks_mut(PIECE)))
            });
        spread(pieces.collect(), threads, |(from, to): (&[T], &mut [T])| {
            to.copy_from_slice(from)
        });
    }
}

/// Rotations that turn every row of a cache by [`SHIFT`] forwards, and back.
pub fn turn_all(shape: Shape, pairing: Pairing) -> [Rotations; 2] {
    let near: Vec<i32> = (0..shape.rows as i32).collect();
    let far: Vec<i32> = near
        .iter()
        .map(|position| position + SHIFT as i32)
        .collect();
    let rope = rope(shape, pairing);
    [(&near, &far), (&far, &near)].map(|(old, new)| {
        let plan = Plan::from_positions(old, new).expect("sound positions");
        Rotations::new(&plan, &rope).expect("a small table")
    })
}

/// Rotations that insert [`SHIFT`] rows before all others, and delete them again.
pub fn shift_all(shape: Shape, pairing: Pairing) -> [Rotations; 2] {
    let rope = rope(shape, pairing);
    let insert = (shape.rows - SHIFT, Edit::insert(0, SHIFT));
    let delete = (shape.rows, Edit::delete(0..SHIFT));
    [insert, delete].map(|(rows, edit)| {
        let plan = Plan::from_edits(rows, &[edit]).expect("a sound edit");
        Rotations::new(&plan, &rope).expect("a small table")
    })
}

fn rope(shape: Shape, pairing: Pairing) -> Rope {
    Rope::from_theta(10_000.0, shape.dim)
        .expect("an even dimension")
        .with_pairing(pairing)
}

/// Hands each of `threads` threads as many items, neighbours together.
fn spread<I: Send>(mut items: Vec<I>, threads: usize, each: impl Fn(I) + Sync) {
    if threads == 1 {
        return items.into_iter().for_each(each);
    }
    let share = items.len().div_ceil(threads);
    std::thread::scope(|scope| {
        while !items.is_empty() {
            let part = items.split_off(items.len().saturating_sub(share));
            let each = &each;
            scope.spawn(move || part.into_iter().for_each(each));
        }
    });
}

/// Reads and writes every byte once, as fast as this processor can in a loop of its widest vectors. No
/// prefetch: on Zen 4 it was a few percent slower at 1, 2 and 4 KiB ahead.
fn sweep(bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F, as was just checked.
        return unsafe { sweep_avx512(bytes) };
    }
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sweep_avx512(bytes: &mut [u8]) {
    use std::arch::x86_64::*;
    let ones = _mm512_set1_epi8(1);
    let mut blocks = bytes.chunks_exact_mut(256);
    for block in &mut blocks {
        let at = block.as_mut_ptr();
        for line in 0..4 {
            // SAFETY: four lines of 64 bytes are inside the block of 256.
            unsafe {
                let at = at.add(64 * line);
                let value = _mm512_xor_si512(_mm512_loadu_si512(at.cast()), ones);
                _mm512_storeu_si512(at.cast(), value);
            }
        }
    }
    blocks
        .into_remainder()
        .iter_mut()
        .for_each(|byte| *byte ^= 1);
}
