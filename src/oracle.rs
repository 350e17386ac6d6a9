//! What every backend must compute, in f64, straight from the definition.
//!
//! A rotary encoding turns pair `j` of a head vector at position `p` by the angle `p · f_j`:
//!
//! ```text
//! (a, b) → (a cos − b sin, b cos + a sin)
//! ```
//!
//! Half-split pairs dimension `i` of the window with `i + pairs`; interleaved pairs `2i` with `2i + 1`.
//! To bring a cached key to a new position, undo the old rotation and apply the new one. No table, no
//! composed angle, no cleverness: this file is here to be obviously right.

use crate::{ElementType, Pairing, Rope};

/// Dimensions of pair `j` inside a head vector.
pub fn pair(rope: &Rope, j: usize) -> (usize, usize) {
    let start = rope.offset();
    match rope.pairing() {
        Pairing::HalfSplit => (start + j, start + j + rope.pairs()),
        Pairing::Interleaved => (start + 2 * j, start + 2 * j + 1),
    }
}

/// Encodes `position` into a head vector: rotates each pair of the rope's window by
/// `position · inv_freq`.
///
/// No f64 holds that product; it is the sum of two, the rounded product and what rounding lost, and the
/// pair is rotated by one and then by the other.
///
/// # Panics
/// If the vector is shorter than the rope's window.
pub fn rotate(vector: &mut [f64], rope: &Rope, position: f64) {
    for (j, &inv_freq) in rope.inv_freq().iter().enumerate() {
        let product = position * inv_freq;
        let lost = position.mul_add(inv_freq, -product);
        let (a, b) = pair(rope, j);
        for angle in [product, lost] {
            let (sin, cos) = angle.sin_cos();
            (vector[a], vector[b]) = (
                vector[a] * cos - vector[b] * sin,
                vector[b] * cos + vector[a] * sin,
            );
        }
    }
}

/// Turns a cached head vector from one position to another: undoes the old rotation, applies the new.
/// The ropes differ where the frequencies changed in between.
///
/// # Panics
/// If the vector is shorter than a rope's window.
pub fn turn(
    vector: &mut [f64],
    (old, old_position): (&Rope, i32),
    (new, new_position): (&Rope, i32),
) {
    rotate(vector, old, -f64::from(old_position));
    rotate(vector, new, f64::from(new_position));
}

/// One unit in the last place of `element` at `magnitude`: the distance between neighbouring values of
/// that type in the binade of `magnitude`. Where there is none, at infinity and NaN, the smallest of all, so that
/// nothing is small beside it.
pub fn ulp(element: ElementType, magnitude: f64) -> f64 {
    // Digits after the leading one, and the exponent of the smallest normal number.
    let (digits, min_exponent) = match element {
        ElementType::F32 => (23, -126),
        ElementType::F16 => (10, -14),
        ElementType::BF16 => (7, -126),
    };
    let exponent = if magnitude > 0.0 && magnitude.is_finite() {
        // The binary exponent straight from the bits: exact, where a logarithm may round up.
        ((magnitude.to_bits() >> 52) as i32 - 1023).max(min_exponent)
    } else {
        min_exponent
    };
    // Two to the power of that, which is a normal f64.
    f64::from_bits(((exponent - digits + 1023) as u64) << 52)
}

/// By how much `got` misses the oracle's pair, in units in the last place taken at the magnitude of the
/// pair. A result near zero is cancellation in the input, not an error of the kernel, hence the pair.
///
/// Never NaN, so that no comparison and no maximum loses it: it is infinite if any of the four numbers is NaN, or
/// one is an infinity that the other is not.
pub fn error_in_ulps(element: ElementType, got: (f64, f64), expected: (f64, f64)) -> f64 {
    // An infinity is right or infinitely wrong, and is no measure of its partner.
    let finite = |number: f64| if number.is_infinite() { 0.0 } else { number };
    let (a, b) = (finite(expected.0), finite(expected.1));
    // Squares of what the types hold are far from the ends of f64.
    distance(got, expected) / ulp(element, (a * a + b * b).sqrt())
}

/// How far `got` is from `expected` in the element that is further off. Infinite, never NaN, if any of the four is
/// NaN, or one is an infinity that the other is not.
pub fn distance(got: (f64, f64), expected: (f64, f64)) -> f64 {
    let one = |got: f64, expected: f64| {
        if got == expected {
            // Infinities too, whose difference would be NaN.
            0.0
        } else if got.is_finite() && expected.is_finite() {
            (got - expected).abs()
        } else {
            f64::INFINITY
        }
    };
    one(got.0, expected.0).max(one(got.1, expected.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Bit by bit: a frequency times a power of two is exact.
    #[test]
    fn the_largest_positions_are_as_exact_as_small_ones() {
        let rope = Rope::from_inv_freq(vec![1.0, 0.7, 1e-3, 12345.678, 1e-9]).unwrap();
        for position in [i32::MAX, i32::MAX - 12_345, 1 << 30, 999_999_937, 3] {
            let mut vector = vec![1.0; 5];
            vector.resize(10, 0.0);
            rotate(&mut vector, &rope, f64::from(position));
            for (j, inv_freq) in rope.inv_freq().iter().enumerate() {
                let bits = (0..31).filter(|bit| position & 1 << bit != 0);
                let (cos, sin) = bits.fold((1.0, 0.0), |(cos, sin), bit| {
                    let (s, c) = (inv_freq * f64::from(1u32 << bit)).sin_cos();
                    (cos * c - sin * s, sin * c + cos * s)
                });
                let error = distance((vector[j], vector[j + 5]), (cos, sin));
                assert!(error < 1e-14, "{position} by {inv_freq}: {error:e}");
            }
        }
    }

    #[test]
    fn ulp_is_the_distance_to_the_next_value() {
        for value in [1.0, 1.5, 0.1, 3.9, 1e-5, 6e-8, 65000.0] {
            let next = f64::from(f32::from_bits((value as f32).to_bits() + 1));
            assert_eq!(ulp(ElementType::F32, value), next - f64::from(value as f32));
            let half = f16::from_f64(value);
            let next = f16::from_bits(half.to_bits() + 1).to_f64();
            assert_eq!(ulp(ElementType::F16, half.to_f64()), next - half.to_f64());
            let brain = bf16::from_f64(value);
            let next = bf16::from_bits(brain.to_bits() + 1).to_f64();
            assert_eq!(
                ulp(ElementType::BF16, brain.to_f64()),
                next - brain.to_f64()
            );
        }
    }

    const TYPES: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::BF16];

    /// Four numbers of which those that `which` has a bit for are `special`.
    fn four(which: u32, special: f64) -> [(f64, f64); 2] {
        let number = |place: u32, usual| {
            if which >> place & 1 == 1 {
                special
            } else {
                usual
            }
        };
        [
            (number(0, 0.6), number(1, -0.8)),
            (number(2, 0.6), number(3, -0.8)),
        ]
    }

    #[test]
    fn a_nan_in_any_place_is_infinitely_wrong() {
        for element in TYPES {
            let [got, expected] = four(0, f64::NAN);
            assert_eq!(error_in_ulps(element, got, expected), 0.0);
            for which in 1..16 {
                for nan in [f64::NAN, -f64::NAN] {
                    let [got, expected] = four(which, nan);
                    let error = error_in_ulps(element, got, expected);
                    assert_eq!(error, f64::INFINITY, "{got:?} for {expected:?}");
                }
            }
        }
    }

    #[test]
    fn an_infinity_is_right_or_infinitely_wrong() {
        for element in TYPES {
            for which in 1..16 {
                let [got, expected] = four(which, f64::INFINITY);
                // The same ones on both sides.
                let right = which & 3 == which >> 2;
                let error = error_in_ulps(element, got, expected);
                let expectation = if right { 0.0 } else { f64::INFINITY };
                assert_eq!(error, expectation, "{got:?} for {expected:?}");
            }
            let (one, other) = ((f64::INFINITY, 0.5), (f64::NEG_INFINITY, 0.5));
            assert_eq!(error_in_ulps(element, one, other), f64::INFINITY);
            // Beside an infinity the other number is held to its own magnitude.
            let unit = ulp(element, 0.5);
            let off = (f64::INFINITY, 0.5 + 3.0 * unit);
            assert_eq!(error_in_ulps(element, off, one), 3.0);
        }
    }

    #[test]
    fn the_further_element_counts_in_units_of_the_pair() {
        for element in TYPES {
            let expected = (3.0, -4.0);
            let unit = ulp(element, 5.0);
            for (off, units) in [
                ((0.0, 0.0), 0.0),
                ((2.0, 0.5), 2.0),
                ((-0.5, 2.0), 2.0),
                ((-1.0, -1.0), 1.0),
            ] {
                let got = (expected.0 + off.0 * unit, expected.1 + off.1 * unit);
                assert_eq!(error_in_ulps(element, got, expected), units);
            }
            // Around zero: units of the smallest numbers.
            let least = ulp(element, 0.0);
            assert_eq!(error_in_ulps(element, (least, 0.0), (0.0, -0.0)), 1.0);
            assert_eq!(ulp(element, f64::INFINITY), least);
            assert_eq!(ulp(element, f64::NAN), least);
        }
    }
}
