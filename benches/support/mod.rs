//! What the CPU benchmarks measure: caches of random keys, the verbs on them, and beside each verb a loop
//! that moves the same bytes and does nothing else (its ceiling).

use std::ops::Range;

use half::{bf16, f16};
use pie_rope::{
    Cpu, Edit, Element, KeyLayout, Layer, LayerRef, ModelRope, Pairing, Plan, Rope, Rotations,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Rows that an edit inserts or deletes, and positions that keys turn by.
pub const SHIFT: usize = 37;

/// Rows of a page.
const PAGE: usize = 16;

/// A cache in memory: layers of keys and values.
pub struct Cache<T> {
    pub layers: Vec<(Vec<T>, Vec<T>)>,
    pub shape: Shape,
    /// The pages of the sequence, in no order at all.
    table: Vec<u32>,
}

/// How the rows of a benchmark's cache lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    /// `[1, heads, rows, dim]`
    Bhsd,
    /// Pages `[blocks, 16, heads, dim]` through a block table.
    Nhd,
    /// Pages `[blocks, heads, dim / x, 16, x]` with packs of 16 bytes, through a block table.
    XPacked,
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub lie: Lie,
    pub layers: usize,
    pub heads: usize,
    pub rows: usize,
    pub dim: usize,
    /// Dimensions of a pack of 16 bytes.
    pub x: usize,
}

impl Shape {
    /// A cache of about `bytes` bytes of keys: layers of 8 heads and 4096 rows.
    pub fn of_bytes<T: Element>(lie: Lie, bytes: usize, dim: usize) -> Shape {
        let (heads, rows) = (8, 4096);
        let layer = heads * rows * dim * T::TYPE.size();
        Shape {
            lie,
            layers: bytes.div_ceil(layer),
            heads,
            rows,
            dim,
            x: 16 / T::TYPE.size(),
        }
    }

    fn elements(self) -> usize {
        self.heads * self.rows * self.dim
    }

    /// Bytes of all keys.
    pub fn key_bytes<T: Element>(self) -> usize {
        self.layers * self.elements() * T::TYPE.size()
    }

    fn layout<T: Element>(self, table: &[u32]) -> KeyLayout<'_> {
        let Shape {
            heads,
            rows,
            dim,
            x,
            ..
        } = self;
        let blocks = rows / PAGE;
        match self.lie {
            Lie::Bhsd => KeyLayout::bhsd(T::TYPE, [1, heads, rows, dim]),
            Lie::Nhd => KeyLayout::nhd(T::TYPE, [blocks, PAGE, heads, dim]).with_table(table),
            Lie::XPacked => {
                KeyLayout::x_packed(T::TYPE, [blocks, heads, dim / x, PAGE, x]).with_table(table)
            }
        }
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
        let layers = (0..shape.layers).map(|_| (buffer(), buffer())).collect();
        let mut table: Vec<u32> = (0..(shape.rows / PAGE) as u32).collect();
        table.shuffle(&mut random);
        Cache {
            layers,
            shape,
            table,
        }
    }

    /// Turns all keys.
    pub fn rotate(&mut self, cpu: &Cpu, rotations: &Rotations) {
        let layout = self.shape.layout::<T>(&self.table);
        let keys = self
            .layers
            .iter_mut()
            .map(|(keys, _)| Layer::keys_only(keys));
        cpu.rotate(rotations, layout, &mut keys.collect::<Vec<_>>())
            .expect("a sound call");
    }

    /// The ceiling of `rotate`: reads and writes the same bytes in place, in the order of the sequence.
    pub fn sweep(&mut self, threads: usize) {
        let pieces = pieces(
            self.shape,
            0..self.shape.rows,
            (&self.table, &self.table),
            0,
        );
        let keys = self.layers.iter_mut().map(|(keys, _)| keys).collect();
        spread(keys, threads, |keys: &mut Vec<T>| {
            for piece in &pieces {
                sweep(bytemuck::cast_slice_mut(
                    &mut keys[piece.dst..][..piece.len],
                ));
            }
        });
    }

    /// Moves all rows but the last or first [`SHIFT`], keys and values, and turns the keys.
    pub fn splice(&mut self, cpu: &Cpu, rotations: &Rotations) {
        let layout = self.shape.layout::<T>(&self.table);
        cpu.splice(rotations, layout, &mut both(&mut self.layers))
            .expect("a sound call");
    }

    /// The ceiling of `splice`: an overlapping `memmove` of the same rows, keys and values.
    pub fn memmove(&mut self, right: bool, threads: usize) {
        let rows = self.shape.rows;
        let (rows, to) = if right {
            (0..rows - SHIFT, SHIFT)
        } else {
            (SHIFT..rows, 0)
        };
        let pieces = pieces(self.shape, rows, (&self.table, &self.table), to);
        let buffers = self.layers.iter_mut().flat_map(|(k, v)| [k, v]).collect();
        spread(buffers, threads, |buffer: &mut Vec<T>| {
            for piece in &pieces {
                buffer.copy_within(piece.src..piece.src + piece.len, piece.dst);
            }
        });
    }

    /// Copies all rows to `to` and turns the keys.
    pub fn copy(&self, to: &mut Cache<T>, cpu: &Cpu, rotations: &Rotations) {
        let layout = self.shape.layout::<T>(&self.table);
        let from: Vec<_> = self
            .layers
            .iter()
            .map(|(keys, values)| LayerRef {
                keys,
                values: Some(values),
            })
            .collect();
        let to_layout = to.shape.layout::<T>(&to.table);
        cpu.copy(
            rotations,
            layout,
            &from,
            to_layout,
            &mut both(&mut to.layers),
        )
        .expect("a sound call");
    }

    /// The ceiling of `copy`: a `memcpy` of the same rows, keys and values.
    pub fn memcpy(&self, to: &mut Cache<T>, threads: usize) {
        let pieces = pieces(self.shape, 0..self.shape.rows, (&self.table, &to.table), 0);
        let layers = self.layers.iter().zip(&mut to.layers);
        let buffers = layers.flat_map(|(from, to)| [(&from.0, &mut to.0), (&from.1, &mut to.1)]);
        spread(
            buffers.collect(),
            threads,
            |(from, to): (&Vec<T>, &mut Vec<T>)| {
                for piece in &pieces {
                    to[piece.dst..][..piece.len].copy_from_slice(&from[piece.src..][..piece.len]);
                }
            },
        );
    }
}

/// Elements that lie together, before and after rows move. Sizes are in elements.
struct Piece {
    src: usize,
    dst: usize,
    len: usize,
}

/// What a perfect mover of rows would move at once: rows `rows` of a buffer of this shape, through the
/// first table, to rows `to ..` through the second, in an order that is safe inside one buffer.
fn pieces(shape: Shape, rows: Range<usize>, tables: (&[u32], &[u32]), to: usize) -> Vec<Piece> {
    let Shape { heads, dim, .. } = shape;
    let mut pieces = Vec::new();
    if shape.lie == Lie::Bhsd {
        let heads = (0..heads).map(|head| Piece {
            src: (head * shape.rows + rows.start) * dim,
            dst: (head * shape.rows + to) * dim,
            len: rows.len() * dim,
        });
        return heads.collect();
    }
    let mut done = 0;
    while done < rows.len() {
        let (src, dst) = (rows.start + done, to + done);
        let left = |row: usize| PAGE - row % PAGE;
        let len = left(src).min(left(dst)).min(rows.len() - done);
        done += len;
        // A page has rows of elements, or, of each head and pack, a row of 16 bytes a token.
        let lines = match shape.lie {
            Lie::XPacked if len < PAGE => shape.heads * shape.dim / shape.x,
            _ => 1,
        };
        let line = heads * dim * PAGE / lines;
        let row = line / PAGE;
        for index in 0..lines {
            let at = |table: &[u32], at: usize| {
                table[at / PAGE] as usize * heads * dim * PAGE + index * line + at % PAGE * row
            };
            pieces.push(Piece {
                src: at(tables.0, src),
                dst: at(tables.1, dst),
                len: len * row,
            });
        }
    }
    if to > rows.start {
        pieces.reverse();
    }
    pieces
}

fn both<T: Element>(layers: &mut [(Vec<T>, Vec<T>)]) -> Vec<Layer<'_, T>> {
    let layers = layers.iter_mut();
    layers
        .map(|(keys, values)| Layer::new(keys, values))
        .collect()
}

/// Rotations from one theta to another, and back: every row has an angle of its own.
pub fn turn_row_by_row(shape: Shape) -> [Rotations; 2] {
    let [short, long] = [10_000.0, 40_000.0].map(|theta| {
        let rope = Rope::from_theta(theta, shape.dim).expect("an even dimension");
        ModelRope::uniform(rope, shape.layers)
    });
    let plan = Plan::from_edits(shape.rows, &[]).expect("nothing to edit");
    [(&short, &long), (&long, &short)]
        .map(|(old, new)| Rotations::between(&plan, old, new).expect("a small table"))
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
