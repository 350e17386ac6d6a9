//! Buffers of random keys between guard bytes, and the numbers inside them.

use half::{bf16, f16};
use pie_rope::ElementType;
use rand::Rng;
use rand::rngs::SmallRng;

/// Guard bytes on either side: more than any vector or cache line is wide.
pub const GUARD: usize = 256;

/// A cache buffer with guards around it.
#[derive(Clone, PartialEq, Eq)]
pub struct Buffer {
    pub element: ElementType,
    len: usize,
    /// Words, so that every element type is aligned.
    words: Vec<u32>,
}

/// Fresh random keys of each type: made once, as a copy of any stretch of them costs far less than new ones.
pub struct Keys([Buffer; 3]);

impl Keys {
    /// Of about one, some large, zero or subnormal.
    pub fn new(random: &mut SmallRng) -> Keys {
        let mut of = |element| {
            let mut buffer = Buffer::noise(element, 1 << 20, random);
            for index in 0..buffer.len {
                let bits: u32 = random.random();
                let scale = match bits % 64 {
                    0 => 0.0,
                    1 => 1e-7,
                    2 => 1e3,
                    _ => 1.0,
                };
                buffer.set(
                    index,
                    (f64::from(bits >> 6) * f64::exp2(-25.0) - 1.0) * scale,
                );
            }
            buffer
        };
        Keys([ElementType::F32, ElementType::F16, ElementType::BF16].map(&mut of))
    }
}

impl Buffer {
    /// `len` elements of fresh random bits between random guards: for values, which no one computes with.
    pub fn noise(element: ElementType, len: usize, random: &mut SmallRng) -> Buffer {
        let mut words = vec![0; (2 * GUARD + len * element.size()).div_ceil(4)];
        random.fill(&mut words[..]);
        Buffer {
            element,
            len,
            words,
        }
    }

    /// `len` random keys between random guards.
    pub fn keys(keys: &Keys, element: ElementType, len: usize, random: &mut SmallRng) -> Buffer {
        let mut buffer = Buffer::noise(element, len, random);
        let all = &keys.0[element as usize];
        // Stretches of at most half of them, so that they begin anywhere.
        for part in buffer.inner_mut().chunks_mut(all.len / 2 * element.size()) {
            let start = random.random_range(0..=all.len / 2) * element.size();
            part.copy_from_slice(&all.inner()[start..][..part.len()]);
        }
        buffer
    }

    /// All bytes, guards included.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    /// All bytes, guards included.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words)
    }

    /// The bytes between the guards.
    pub fn inner(&self) -> &[u8] {
        &self.bytes()[GUARD..][..self.len * self.element.size()]
    }

    /// The bytes between the guards.
    pub fn inner_mut(&mut self) -> &mut [u8] {
        let bytes = self.len * self.element.size();
        &mut self.bytes_mut()[GUARD..][..bytes]
    }

    /// Number of elements between the guards.
    pub fn len(&self) -> usize {
        self.len
    }

    fn at(&self, index: usize) -> std::ops::Range<usize> {
        let size = self.element.size();
        let start = GUARD + index * size;
        start..start + size
    }

    /// Copies `len` elements of another buffer of the same type, which begin at `theirs`, to `ours`.
    pub fn copy(&mut self, ours: usize, other: &Buffer, theirs: usize, len: usize) {
        let bytes = len * self.element.size();
        let (ours, theirs) = (self.at(ours).start, other.at(theirs).start);
        self.bytes_mut()[ours..ours + bytes]
            .copy_from_slice(&other.bytes()[theirs..theirs + bytes]);
    }

    /// One element's value.
    pub fn get(&self, index: usize) -> f64 {
        let raw = &self.bytes()[self.at(index)];
        match self.element {
            ElementType::F32 => f64::from(f32::from_le_bytes(raw.try_into().expect("4 bytes"))),
            ElementType::F16 => f16::from_le_bytes(raw.try_into().expect("2 bytes")).to_f64(),
            ElementType::BF16 => bf16::from_le_bytes(raw.try_into().expect("2 bytes")).to_f64(),
        }
    }

    /// One element's bits.
    pub fn bits(&self, index: usize) -> u32 {
        let raw = &self.bytes()[self.at(index)];
        raw.iter()
            .rev()
            .fold(0, |bits, &byte| bits << 8 | u32::from(byte))
    }

    pub fn set(&mut self, index: usize, value: f64) {
        let (range, element) = (self.at(index), self.element);
        let raw = &mut self.bytes_mut()[range];
        match element {
            ElementType::F32 => raw.copy_from_slice(&(value as f32).to_le_bytes()),
            ElementType::F16 => raw.copy_from_slice(&f16::from_f64(value).to_le_bytes()),
            ElementType::BF16 => raw.copy_from_slice(&bf16::from_f64(value).to_le_bytes()),
        }
    }
}
