//! Decisions out of the fuzzer's bytes.

use std::ops::RangeInclusive;

/// Reads decisions from the front of an input. Where it ends, every further one is the first of its choices, so
/// that a short input is a simple case, and a byte that changes leaves those before it as they were.
pub struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Source<'a> {
        Source(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn bits(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |bits, _| bits << 8 | u64::from(self.byte()))
    }

    /// A number of the range: as few bytes as it needs are read.
    pub fn number(&mut self, range: RangeInclusive<usize>) -> usize {
        let (start, end) = range.into_inner();
        let choices = (end - start) as u64;
        let bytes = (64 - choices.leading_zeros()).div_ceil(8) as usize;
        let number = self.bits(bytes);
        start + choices.checked_add(1).map_or(number, |n| number % n) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.number(0..=of.len() - 1)]
    }

    /// True for `in_256` of the 256 bytes; false where the input has ended.
    pub fn chance(&mut self, in_256: u8) -> bool {
        self.byte().wrapping_neg() > 255 - in_256
    }

    /// Any number at all, those that programs stumble over above all.
    pub fn wild(&mut self) -> usize {
        const MAX: usize = usize::MAX;
        const EDGES: [usize; 16] = [
            0,
            1,
            2,
            i32::MAX as usize,
            i32::MAX as usize + 1,
            u32::MAX as usize,
            u32::MAX as usize + 1,
            1 << 50,
            isize::MAX as usize,
            isize::MAX as usize + 1,
            MAX / 8,
            MAX / 2,
            MAX - 1,
            MAX,
            1 << 16,
            (1 << 16) + 1,
        ];
        match self.byte() {
            kind @ ..200 => EDGES[usize::from(kind % 16)],
            200..240 => self.bits(2) as usize,
            _ => self.bits(8) as usize,
        }
    }

    /// Any position at all, positions that there are above all.
    pub fn position(&mut self) -> i32 {
        match self.byte() {
            ..120 => i32::from(self.byte()),
            120..180 => self.bits(3) as i32,
            180..200 => i32::MAX - i32::from(self.byte()),
            200..240 => (self.bits(4) as i32) & i32::MAX,
            240..250 => -1,
            _ => self.bits(4) as i32,
        }
    }

    /// Any double at all, those that are frequencies above all.
    pub fn double(&mut self) -> f64 {
        const EDGES: [f64; 16] = [
            1.0,
            0.0,
            -0.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MIN_POSITIVE,
            5e-324,
            f64::MAX,
            1e306,
            1e300,
            1e-300,
            1e9,
            1e6,
            1e4,
        ];
        match self.byte() {
            kind @ ..100 => EDGES[usize::from(kind % 16)],
            100..200 => self.bits(2) as f64 / 65536.0,
            200..230 => 10f64.powi(i32::from(self.byte() as i8)),
            _ => f64::from_bits(self.bits(8)),
        }
    }

    /// What the input does not say in bytes of its own: as much as is wanted, out of four of them.
    pub fn noise(&mut self) -> Noise {
        Noise(self.bits(4))
    }
}

/// Random numbers (SplitMix64).
pub struct Noise(u64);

impl Noise {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// -1 to 1.
    pub fn unit(&mut self) -> f64 {
        self.bits() as i64 as f64 / i64::MAX as f64
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (2..=items.len()).rev() {
            items.swap(end - 1, self.below(end));
        }
    }
}
