//! Every path against the portable one, bit for bit, and the portable one against a statement of
//! the definition that shares nothing with it.

use super::*;
use half::{bf16, f16};

const ELEMENTS: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::BF16];
const PAIRINGS: [Pairing; 2] = [Pairing::HalfSplit, Pairing::Interleaved];

/// The definition, on one pair of f32, before rounding to the stored type. The product and the sum
/// are taken where they are exact or nearly so: f64 holds a product of two f32 exactly, and the
/// sum of two such rounds correctly to f32 once its own error is folded in as a sticky bit.
fn naive(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (fused(a, cos, -(b * sin)), fused(b, cos, a * sin))
}

/// `x · y + z`, rounded once.
fn fused(x: f32, y: f32, z: f32) -> f32 {
    let product = f64::from(x) * f64::from(y);
    let z = f64::from(z);
    let sum = product + z;
    // Knuth's two-sum: `sum + error` is the exact value.
    let back = sum - product;
    let error = (product - (sum - back)) + (z - back);
    if error == 0.0 || !sum.is_finite() || !error.is_finite() {
        return sum as f32;
    }
    // Round to odd: an inexact sum whose last bit is even moves to its odd neighbour on the side
    // of the exact value, from where rounding to f32 cannot go wrong.
    let bits = sum.to_bits();
    let away = (error > 0.0) == (sum > 0.0);
    let odd = if bits & 1 == 1 {
        bits
    } else if away {
        bits + 1
    } else {
        bits - 1
    };
    f64::from_bits(odd) as f32
}

/// Rounds to nearest even by comparing the two neighbours, and makes NaN the one NaN.
fn store(element: ElementType, value: f32) -> u32 {
    match element {
        ElementType::F32 if value.is_nan() => 0x7fff_ffff,
        ElementType::F32 => value.to_bits(),
        ElementType::F16 => u32::from(nearest(
            value,
            |bits| f16::from_bits(bits).to_f64(),
            0x7c00,
            65520.0,
        )),
        ElementType::BF16 => {
            let overflow = 255.5 * 2.0_f64.powi(120);
            u32::from(nearest(
                value,
                |bits| bf16::from_bits(bits).to_f64(),
                0x7f80,
                overflow,
            ))
        }
    }
}

/// The sixteen bits whose value lies nearest, by bisection over the magnitudes below `infinity`.
fn nearest(value: f32, widen: impl Fn(u16) -> f64, infinity: u16, overflow: f64) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let sign = u16::from(value.is_sign_negative()) << 15;
    let value = f64::from(value.abs());
    if value >= overflow {
        return sign | infinity;
    }
    let (mut low, mut high) = (0, infinity);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if widen(middle) <= value {
            low = middle
        } else {
            high = middle
        }
    }
    if high == infinity {
        return sign | low;
    }
    let (below, above) = (value - widen(low), widen(high) - value);
    let up = above < below || (above == below && low & 1 == 1);
    sign | if up { high } else { low }
}

fn widen(element: ElementType, bits: u32) -> f32 {
    match element {
        ElementType::F32 => f32::from_bits(bits),
        ElementType::F16 => f16::from_bits(bits as u16).to_f64() as f32,
        ElementType::BF16 => f32::from_bits(bits << 16),
    }
}

/// A small generator of its own, so that a failure names its seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bits of an element whose exponent is neither very small nor very large, the bounds that
    /// fast paths are entered by included.
    fn tame(&mut self, element: ElementType) -> u32 {
        let any = self.next() as u32;
        match element {
            ElementType::F32 | ElementType::BF16 => {
                let exponent = 64 + (any >> 8) % 128;
                let bits = any & 0x807f_ffff | exponent << 23;
                if element == ElementType::F32 {
                    bits
                } else {
                    bits >> 16
                }
            }
            ElementType::F16 => any & 0xbfff,
        }
    }

    /// Bits of an element: ordinary values, and every kind of special one often enough to meet.
    fn element(&mut self, element: ElementType) -> u32 {
        let random = self.next();
        let any = (random >> 32) as u32;
        let (exponent, mantissa) = match element {
            ElementType::F32 => (8, 23),
            ElementType::F16 => (5, 10),
            ElementType::BF16 => (8, 7),
        };
        let mask = ((1_u64 << (1 + exponent + mantissa)) - 1) as u32;
        let fraction = (1_u32 << mantissa) - 1;
        let special = fraction + 1..=((1 << exponent) - 1) << mantissa;
        let sign = any & (1 << (exponent + mantissa));
        match random % 16 {
            // Subnormal, or zero.
            0 => sign | (any & fraction),
            1 => sign,
            // Infinite, or not a number.
            2 if random & 0x70 == 0 => sign | special.end() | (any & fraction),
            3 if random & 0x70 == 0 => sign | special.end(),
            // Near overflow, near underflow.
            4 => sign | (special.end() - (1 << mantissa)) | (any & fraction),
            5 => sign | special.start() | (any & fraction),
            // Any bits.
            6..=8 => any & mask,
            // Around one.
            _ => {
                let value = (any as f32 / u32::MAX as f32) * 8.0 - 4.0;
                store(element, value)
            }
        }
    }

    /// One table row: angles of every size, and the exact and the tiny ones that real tables hold.
    fn table(&mut self, pairs: usize) -> (Vec<f32>, Vec<f32>) {
        let kinds = if self.below(2) == 0 { 12 } else { 1000 };
        (0..pairs)
            .map(|_| match self.below(kinds) {
                0 => (1.0, 0.0),
                1 => (-1.0, -0.0),
                2 => (0.0, 1.0),
                3 => (1.0, f32::from_bits(self.next() as u32 & 0x007f_ffff)),
                4 => (1.0, 1e-30),
                5 => (0.0, -1e-30),
                6 => (1e-20, 1e-25),
                _ => {
                    let angle = (self.next() as f64 / u64::MAX as f64 - 0.5) * 1e3;
                    (angle.cos() as f32, angle.sin() as f32)
                }
            })
            .unzip()
    }

    /// `count` elements as bytes: none, few or all of them out of the ordinary.
    fn bytes(&mut self, element: ElementType, count: usize) -> Vec<u8> {
        let one_in = [1, 200, usize::MAX][self.below(3)];
        (0..count)
            .flat_map(|_| {
                let special = one_in == 1 || self.below(one_in) == 0;
                let bits = if special {
                    self.element(element)
                } else {
                    self.tame(element)
                };
                bits.to_le_bytes().into_iter().take(element.size())
            })
            .collect()
    }
}

fn get(element: ElementType, bytes: &[u8], index: usize) -> u32 {
    let mut bits = [0; 4];
    let size = element.size();
    bits[..size].copy_from_slice(&bytes[index * size..][..size]);
    u32::from_le_bytes(bits)
}

fn put(element: ElementType, bytes: &mut [u8], index: usize, bits: u32) {
    let size = element.size();
    bytes[index * size..][..size].copy_from_slice(&bits.to_le_bytes()[..size]);
}

/// Index of both elements of pair `i` inside a window.
fn places(pairing: Pairing, half_stride: usize, i: usize) -> (usize, usize) {
    match pairing {
        Pairing::HalfSplit => (i, i + half_stride),
        Pairing::Interleaved => (2 * i, 2 * i + 1),
    }
}

/// One call, said in indices of one buffer.
#[derive(Debug, Clone)]
struct Case {
    element: ElementType,
    pairing: Pairing,
    pairs: usize,
    half_stride: usize,
    src: usize,
    dst: usize,
    walk: Walk,
    len: usize,
}

impl Case {
    /// What the definition makes of the buffer, visiting vectors in the walk's order.
    fn expected(&self, before: &[u8], (cos, sin): (&[f32], &[f32])) -> Vec<u8> {
        let mut bytes = before.to_vec();
        for outer in 0..self.walk.outer as isize {
            for inner in 0..self.walk.inner as isize {
                let at = |first: usize, o: isize, i: isize| {
                    (first as isize + outer * o + inner * i) as usize
                };
                let src = at(self.src, self.walk.src_outer, self.walk.src_inner);
                let dst = at(self.dst, self.walk.dst_outer, self.walk.dst_inner);
                let window: Vec<_> = (0..self.pairs)
                    .map(|i| {
                        let (a, b) = places(self.pairing, self.half_stride, i);
                        let read =
                            |place| widen(self.element, get(self.element, &bytes, src + place));
                        naive(read(a), read(b), cos[i], sin[i])
                    })
                    .collect();
                for (i, (x, y)) in window.into_iter().enumerate() {
                    let (a, b) = places(self.pairing, self.half_stride, i);
                    put(self.element, &mut bytes, dst + a, store(self.element, x));
                    put(self.element, &mut bytes, dst + b, store(self.element, y));
                }
            }
        }
        bytes
    }

    /// What a kernel makes of it. The buffer starts `shift` bytes into its allocation, whose rest
    /// is returned as it was found.
    fn run(
        &self,
        kernels: &Kernels,
        before: &[u8],
        (cos, sin): (&[f32], &[f32]),
        shift: usize,
    ) -> Vec<u8> {
        assert_eq!(before.len(), self.len * self.element.size());
        let mut memory = vec![0xa5; before.len() + 256];
        memory[shift..][..before.len()].copy_from_slice(before);
        let base = memory.as_mut_ptr();
        let turn = Turn {
            half_stride: self.half_stride as isize,
            cos,
            sin,
        };
        // SAFETY: `Case::expected` indexes every element that the walk reaches, with bounds
        // checked, and it has run before.
        unsafe {
            let base = base.add(shift);
            let at = |first: usize| base.add(first * self.element.size());
            kernels.turn(self.element, self.pairing)(at(self.dst), at(self.src), &self.walk, &turn);
        }
        let after = memory[shift..][..before.len()].to_vec();
        memory.drain(shift..shift + before.len());
        assert!(
            memory.iter().all(|&byte| byte == 0xa5),
            "{}: wrote outside, {self:?}",
            kernels.name
        );
        after
    }

    /// Every path against the definition.
    fn check(&self, random: &mut Random) {
        let before = random.bytes(self.element, self.len);
        let (cos, sin) = random.table(self.pairs);
        let table = (&cos[..], &sin[..]);
        let expected = self.expected(&before, table);
        for kernels in Kernels::available() {
            let shift = random.below(128);
            let after = self.run(kernels, &before, table, shift);
            let buffers = [&before[..], &after, &expected];
            compare(self.element, buffers, (kernels.name, self));
        }
    }
}

/// Panics with the first element that is not as expected, and with `what` was done.
fn compare(
    element: ElementType,
    [before, after, expected]: [&[u8]; 3],
    what: impl std::fmt::Debug,
) {
    let bits = |bytes: &[u8], index| {
        let is_there = (index + 1) * element.size() <= bytes.len();
        is_there.then(|| get(element, bytes, index))
    };
    if let Some(index) = first_difference(element, after, expected) {
        panic!(
            "element {index} was {:x?}, is {:x?}, should be {:x?}; {what:?}",
            bits(before, index),
            bits(after, index),
            bits(expected, index),
        );
    }
}

/// The first element whose bits differ, one that either lacks included. NaNs have bits too.
fn first_difference(element: ElementType, after: &[u8], expected: &[u8]) -> Option<usize> {
    let size = element.size();
    let elements = after.len().max(expected.len()).div_ceil(size);
    (0..elements).find(|&at| after.chunks(size).nth(at) != expected.chunks(size).nth(at))
}

#[test]
fn every_difference_is_found() {
    for element in ELEMENTS {
        let with = |index, bits| {
            let mut bytes: Vec<u8> = (0..9 * element.size()).map(|byte| byte as u8).collect();
            put(element, &mut bytes, index, bits);
            bytes
        };
        for index in 0..9 {
            let (one, nan) = (
                with(index, store(element, 1.0)),
                with(index, store(element, f32::NAN)),
            );
            assert_eq!(first_difference(element, &one, &one), None);
            assert_eq!(first_difference(element, &nan, &nan), None);
            assert_eq!(first_difference(element, &one, &nan), Some(index));
            assert_eq!(first_difference(element, &nan, &one), Some(index));
            // Another NaN, and the other zero.
            let other = with(index, store(element, f32::NAN) - 1);
            assert_eq!(first_difference(element, &other, &nan), Some(index));
            let zeros = [0.0, -0.0].map(|zero| with(index, store(element, zero)));
            assert_eq!(first_difference(element, &zeros[0], &zeros[1]), Some(index));
            // Too short, by elements or by a byte.
            let short = &one[..index * element.size()];
            assert_eq!(first_difference(element, short, &one), Some(index));
            assert_eq!(first_difference(element, &one, short), Some(index));
        }
        let whole = with(0, 0);
        assert_eq!(
            first_difference(element, &whole[..whole.len() - 1], &whole),
            Some(8)
        );
    }
}

/// Cases of every shape for one element type and pairing.
fn cases(element: ElementType, pairing: Pairing, random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for pairs in (1..=130).chain([160, 192, 256, 257]) {
        let rows = 1 + random.below(9);
        let gap = random.below(4);
        let half_stride = pairs
            + if pairing == Pairing::HalfSplit && random.below(3) == 0 {
                random.below(70)
            } else {
                0
            };
        let width = pairs + half_stride + gap;
        let moved = 1 + random.below(3);
        let forward = Walk::rows(rows, width as isize);
        let backward = Walk::rows(rows, -(width as isize));
        let base = Case {
            element,
            pairing,
            pairs,
            half_stride,
            src: gap,
            dst: gap,
            walk: forward,
            len: rows * width + gap,
        };
        let longer = Case {
            len: base.len + moved * width,
            ..base.clone()
        };
        // To lower rows, walked up; to higher rows, walked down.
        cases.push(Case {
            src: gap + moved * width,
            ..longer.clone()
        });
        cases.push(Case {
            src: gap + (rows - 1) * width,
            dst: gap + (rows - 1 + moved) * width,
            walk: backward,
            ..longer
        });
        // Two loops that do not join: heads apart, every other row.
        let heads = 1 + random.below(3);
        let two = Walk {
            outer: heads,
            inner: rows,
            src_outer: (2 * rows * width + 3) as isize,
            src_inner: 2 * width as isize,
            dst_outer: (2 * rows * width + 3) as isize,
            dst_inner: 2 * width as isize,
        };
        cases.push(Case {
            walk: two,
            len: heads * (2 * rows * width + 3),
            src: 0,
            dst: width,
            ..base.clone()
        });
        // Two that do.
        let joined = Walk {
            outer: heads,
            src_outer: (rows * width) as isize,
            dst_outer: (rows * width) as isize,
            ..forward
        };
        cases.push(Case {
            walk: joined,
            len: heads * rows * width + gap,
            ..base.clone()
        });
        cases.push(base);
    }
    cases
}

#[test]
fn every_path_keeps_to_the_definition() {
    for seed in 0..3 {
        let mut random = Random::new(seed);
        for element in ELEMENTS {
            for pairing in PAIRINGS {
                for case in cases(element, pairing, &mut random) {
                    case.check(&mut random);
                }
            }
        }
    }
}

/// Runs pairs `(a, b)` through one window of `pairs` pairs at a time, both pairings, every path.
fn check_values(element: ElementType, values: &[(u32, u32)], cos: f32, sin: f32) {
    for pairs in [1, 8, 16, 32, 40] {
        let rows = values.len().div_ceil(pairs);
        for pairing in PAIRINGS {
            let case = Case {
                element,
                pairing,
                pairs,
                half_stride: pairs,
                src: 0,
                dst: 0,
                walk: Walk::rows(rows, 2 * pairs as isize),
                len: rows * 2 * pairs,
            };
            let mut before = vec![0; case.len * element.size()];
            for (row, row_values) in values.chunks(pairs).enumerate() {
                for (i, &(x, y)) in row_values.iter().enumerate() {
                    let (a, b) = places(pairing, pairs, i);
                    put(element, &mut before, row * 2 * pairs + a, x);
                    put(element, &mut before, row * 2 * pairs + b, y);
                }
            }
            let (cos, sin) = (vec![cos; pairs], vec![sin; pairs]);
            let expected = case.expected(&before, (&cos, &sin));
            for kernels in Kernels::available() {
                let after = case.run(kernels, &before, (&cos, &sin), 0);
                let buffers = [&before[..], &after, &expected];
                compare(element, buffers, (kernels.name, &case, cos[0], sin[0]));
            }
        }
    }
}

/// All 65536 patterns through the identity come back as they were, NaNs as the one NaN.
#[test]
fn every_sixteen_bit_pattern_survives_the_identity() {
    for element in [ElementType::F16, ElementType::BF16] {
        let values: Vec<_> = (0..=u16::MAX).map(|bits| (u32::from(bits), 0)).collect();
        check_values(element, &values, 1.0, 0.0);
        let mut bytes: Vec<u8> = (0..=u16::MAX)
            .flat_map(|bits| [bits, 0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let turn = Turn {
            half_stride: 1,
            cos: &[1.0],
            sin: &[0.0],
        };
        // SAFETY: 65536 windows of one pair each, side by side.
        unsafe {
            let walk = Walk::rows(65536, 2);
            Kernels::best().turn(element, Pairing::Interleaved)(
                bytes.as_mut_ptr(),
                bytes.as_ptr(),
                &walk,
                &turn,
            );
        }
        for bits in 0..=u16::MAX {
            let value = widen(element, bits.into());
            // 0 · a: a zero of a's sign joins b, and −0 · … joins a, so a signed zero may change.
            let after = get(element, &bytes, 2 * usize::from(bits)) as u16;
            let same = if value.is_nan() { 0x7fff } else { bits };
            if value == 0.0 || value.is_infinite() {
                assert_eq!(widen(element, after.into()), value);
            } else {
                assert_eq!(after, same, "{element} {bits:#x}");
            }
        }
    }
}

/// Results on, next to and half way between neighbours of the stored type: ties, overflow to
/// infinity, subnormals, underflow to zero.
#[test]
fn rounding_at_every_boundary() {
    for element in [ElementType::F16, ElementType::BF16] {
        // A power of two times a small odd factor puts results just above, on, and below the ties.
        let values: Vec<_> = (0..=u16::MAX)
            .map(|bits| (u32::from(bits), u32::from(bits.rotate_left(5) ^ 0x1234)))
            .collect();
        for scale in [
            1.0 + f32::EPSILON,
            1.0 - f32::EPSILON / 2.0,
            1.5,
            1.25,
            1.0 + 1.0 / 1024.0,
            0.5,
            0.75,
            2.0,
            1e-3,
        ] {
            check_values(element, &values, scale, 0.0);
            check_values(element, &values, 0.0, scale);
        }
        check_values(element, &values, 0.6, 0.8);
        check_values(element, &values, 1.0, f32::from_bits(1));
        check_values(element, &values, 1.0, f32::INFINITY);
        check_values(element, &values, f32::NAN, 0.5);
    }
}

/// The test's own statement of rounding, where the answer is known from the formats' tables.
#[test]
fn the_definition_rounds_as_the_formats_say() {
    for (value, bits) in [
        (65504.0, 0x7bff),
        (65519.996, 0x7bff),
        (65520.0, 0x7c00),
        (f32::INFINITY, 0x7c00),
        (2.0_f32.powi(-24), 0x0001),
        (2.0_f32.powi(-25), 0x0000),
        (1.5 * 2.0_f32.powi(-25), 0x0001),
        (3.0 * 2.0_f32.powi(-25), 0x0002),
        (-0.0, 0x8000),
        (1.0 + 2.0_f32.powi(-11), 0x3c00),
        (1.0 + 3.0 * 2.0_f32.powi(-11), 0x3c02),
        (f32::NAN, 0x7fff),
    ] {
        assert_eq!(store(ElementType::F16, value), bits, "{value}");
    }
    for (bits32, bits) in [
        (0x3f80_8000, 0x3f80),
        (0x3f81_8000, 0x3f82),
        (0x3f80_8001, 0x3f81),
        (0x7f7f_7fff, 0x7f7f),
        (0x7f7f_8000, 0x7f80),
        (0x0000_8000, 0x0000),
        (0x0000_8001, 0x0001),
        (0x0001_8000, 0x0002),
        (0x8000_0001, 0x8000),
        (0xffc0_0000, 0x7fff),
    ] {
        assert_eq!(
            store(ElementType::BF16, f32::from_bits(bits32)),
            bits,
            "{bits32:#x}"
        );
    }
    // One f32 beyond its neighbour: a plain product and sum would round to 0.
    let x = 1.0 + f32::EPSILON;
    assert_eq!(
        fused(x, x, -(1.0 + 2.0 * f32::EPSILON)),
        f32::EPSILON * f32::EPSILON
    );
}

/// Rows move as `memmove` does, one by one, in the walk's order.
#[test]
fn rows_move_in_order() {
    let mut random = Random::new(7);
    for kernels in Kernels::available() {
        for bytes in [1, 2, 15, 16, 63, 64, 65, 128, 200, 256, 1000] {
            for shift in [-2_isize, -1, 1, 3] {
                let rows = 9;
                let before: Vec<u8> = (0..(rows + 6) * bytes)
                    .map(|_| random.next() as u8)
                    .collect();
                let mut after = before.clone();
                let first = if shift > 0 { 3 + rows - 1 } else { 3 };
                let step = if shift > 0 {
                    -(bytes as isize)
                } else {
                    bytes as isize
                };
                let base = after.as_mut_ptr();
                // SAFETY: rows 3 to 3 + rows, and 3 more on either side, lie in the buffer.
                unsafe {
                    let src = base.add(first * bytes);
                    let dst = src.offset(shift * bytes as isize);
                    (kernels.move_rows)(dst, src, &Walk::rows(rows, step), bytes);
                }
                let mut expected = before;
                let to = (3 + shift) as usize * bytes;
                expected.copy_within(3 * bytes..(3 + rows) * bytes, to);
                assert_eq!(
                    after, expected,
                    "{}: {bytes} bytes by {shift}",
                    kernels.name
                );
            }
        }
    }
}

/// The order in which kernels are offered, and what the machine at hand runs.
#[test]
fn portable_is_always_there_and_last() {
    let names: Vec<_> = Kernels::available().map(|kernels| kernels.name).collect();
    println!("paths: {names:?}");
    assert_eq!(names.last(), Some(&"portable"));
    assert_eq!(names[0], Kernels::best().name);
}
