//! The cosine and sine of an angle that no single f64 holds.
//!
//! The product of a position and a frequency has up to 84 bits. Rounded to the 53 of an f64 it is off by
//! as much as `2⁻²³` at the largest positions, which is what an f32 cosine can tell. So an angle is the
//! exact sum of two f64: the rounded product and its rounding error, which a fused multiply-add gives
//! (T. J. Dekker, "A floating-point technique for extending the available precision", Numer. Math. 18,
//! 1971, section 5). The library's own sine and cosine reduce the first of them, however large, and the
//! second is added by the angle addition theorem.

use crate::Rope;

/// The exact sum of two numbers, the second beside the first as small as its rounding error.
#[derive(Clone, Copy)]
struct Angle {
    high: f64,
    low: f64,
}

impl Angle {
    /// `position · inv_freq`, exactly.
    fn product(position: f64, inv_freq: f64) -> Angle {
        let high = position * inv_freq;
        Angle {
            high,
            low: position.mul_add(inv_freq, -high),
        }
    }

    /// From one angle to another, to within `2⁻¹⁰⁰` of the larger one.
    fn from_to(old: Angle, new: Angle) -> Angle {
        // D. E. Knuth's sum of two numbers and its rounding error (The Art of Computer Programming 2, 4.2.2).
        let high = new.high - old.high;
        let part = high - new.high;
        let error = (new.high - (high - part)) - (old.high + part);
        Angle {
            high,
            low: error + (new.low - old.low),
        }
    }

    fn cos_sin(self) -> (f64, f64) {
        let (sin, cos) = self.high.sin_cos();
        // The whole series where the next term is beyond an f64, as it is below position 2³².
        let (low_sin, low_cos) = if self.low.abs() < 1.0 / 1024.0 / 1024.0 {
            (self.low, 1.0 - self.low * self.low / 2.0)
        } else {
            self.low.sin_cos()
        };
        add((cos, sin), (low_cos, low_sin))
    }
}

/// The cosine and sine of the sum of two angles.
fn add((cos, sin): (f64, f64), (other_cos, other_sin): (f64, f64)) -> (f64, f64) {
    (
        cos * other_cos - sin * other_sin,
        sin * other_cos + cos * other_sin,
    )
}

/// The angle by which pair `pair` turns from one rope and position to another.
fn turn(pair: usize, old: (&Rope, i32), new: (&Rope, i32)) -> Angle {
    let (old_freq, new_freq) = (old.0.inv_freq()[pair], new.0.inv_freq()[pair]);
    let (old, new) = (f64::from(old.1), f64::from(new.1));
    // Equal frequencies: one product of the exact difference, not a difference of products.
    if old_freq == new_freq {
        Angle::product(new - old, new_freq)
    } else {
        Angle::from_to(Angle::product(old, old_freq), Angle::product(new, new_freq))
    }
}

/// Fills a table row, the cosines of all pairs and then their sines, with the turn from one rope and
/// position to another.
pub(super) fn row(row: &mut [f32], old: (&Rope, i32), new: (&Rope, i32)) {
    let (cos, sin) = row.split_at_mut(new.0.pairs());
    for (pair, (to_cos, to_sin)) in cos.iter_mut().zip(sin).enumerate() {
        let (cos, sin) = turn(pair, old, new).cos_sin();
        (*to_cos, *to_sin) = (cos as f32, sin as f32);
    }
}

/// Rows of a run between two that have a sine and a cosine of their own.
const STRIDE: usize = 32;

/// Fills the table rows of a run: its first row turns from one rope and position to another, each further
/// row from the next position to the next.
///
/// The angle of row `i` is the first one's plus `i · (f_new − f_old)`. So every 32nd row is taken from
/// sines and cosines, and what lies between is that row's rotation and one of 32 small ones, composed in
/// f64: four multiplications instead of a sine and a cosine, and an error of some `2⁻⁵²` beside the `2⁻²⁵`
/// that rounding to f32 costs.
pub(super) fn run(rows: &mut [f32], old: (&Rope, i32), new: (&Rope, i32)) {
    let pairs = new.0.pairs();
    let ((old_rope, old_position), (new_rope, new_position)) = (old, new);
    let at = |step: usize| {
        let step = step as i32;
        (
            (old_rope, old_position + step),
            (new_rope, new_position + step),
        )
    };
    let steps = rows.len() / (2 * pairs);
    if steps <= 2 * STRIDE {
        for (step, to) in rows.chunks_exact_mut(2 * pairs).enumerate() {
            let (old, new) = at(step);
            row(to, old, new);
        }
        return;
    }
    // As `row`, in f64: cosines, then sines.
    let exact = |to: &mut [f64], angle: &dyn Fn(usize) -> Angle| {
        let (cos, sin) = to.split_at_mut(pairs);
        for (pair, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
            (*cos, *sin) = angle(pair).cos_sin();
        }
    };
    let mut small = vec![0.0; STRIDE * 2 * pairs];
    for (step, to) in small.chunks_exact_mut(2 * pairs).enumerate() {
        let step = step as i32;
        exact(to, &|pair| turn(pair, (old_rope, step), (new_rope, step)));
    }
    let mut base = vec![0.0; 2 * pairs];
    for (stretch, rows) in rows.chunks_mut(STRIDE * 2 * pairs).enumerate() {
        let (old, new) = at(stretch * STRIDE);
        exact(&mut base, &|pair| turn(pair, old, new));
        let (base_cos, base_sin) = base.split_at(pairs);
        for (to, small) in rows
            .chunks_exact_mut(2 * pairs)
            .zip(small.chunks_exact(2 * pairs))
        {
            let (to_cos, to_sin) = to.split_at_mut(pairs);
            let (small_cos, small_sin) = small.split_at(pairs);
            for pair in 0..pairs {
                let base = (base_cos[pair], base_sin[pair]);
                let (cos, sin) = add(base, (small_cos[pair], small_sin[pair]));
                (to_cos[pair], to_sin[pair]) = (cos as f32, sin as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// The rotation by `position · inv_freq`, bit by bit of the position: a frequency times a power of two is exact.
    fn by_bits(position: i32, inv_freq: f64) -> (f64, f64) {
        let bits = (0..31).filter(|bit| position & 1 << bit != 0);
        bits.fold((1.0, 0.0), |sum, bit| {
            let (sin, cos) = (inv_freq * f64::from(1u32 << bit)).sin_cos();
            add(sum, (cos, sin))
        })
    }

    fn expected(pair: usize, old: (&Rope, i32), new: (&Rope, i32)) -> (f64, f64) {
        let (cos, sin) = by_bits(old.1, old.0.inv_freq()[pair]);
        add((cos, -sin), by_bits(new.1, new.0.inv_freq()[pair]))
    }

    /// How far the entries of a table row are off at worst.
    fn error(row: &[f32], old: (&Rope, i32), new: (&Rope, i32)) -> f64 {
        let (cos, sin) = row.split_at(new.0.pairs());
        let errors = (0..new.0.pairs()).map(|pair| {
            let (c, s) = expected(pair, old, new);
            let error = (f64::from(cos[pair]) - c).abs();
            let other = (f64::from(sin[pair]) - s).abs();
            assert!(error.is_finite() && other.is_finite());
            error.max(other)
        });
        errors.fold(0.0, f64::max)
    }

    /// Half a unit in the last place of an f32 below 1, and what the reference itself loses.
    const ROUNDING: f64 = 1.0 / (1u64 << 25) as f64 + 1e-13;

    fn ropes(random: &mut SmallRng) -> [Rope; 2] {
        let fastest = Rope::MAX_INV_FREQ;
        let mut inv_freq: Vec<f64> = (0..13)
            .map(|_| fastest * f64::exp(-random.random_range(0.0..45.0)))
            .collect();
        inv_freq.extend([fastest, 1.0, 0.0]);
        let slower: Vec<f64> = inv_freq
            .iter()
            .map(|f| f * random.random_range(0.2..1.0))
            .collect();
        // A pair whose frequency stays, among others.
        let slower = [&slower[..13], &inv_freq[13..]].concat();
        [inv_freq, slower].map(|inv_freq| Rope::from_inv_freq(inv_freq).unwrap())
    }

    fn random() -> SmallRng {
        let seed = rand::random();
        println!("seed {seed}");
        SmallRng::seed_from_u64(seed)
    }

    #[test]
    fn a_row_is_rounded_once_at_every_position() {
        let mut random = random();
        for round in 0..300 {
            let [fast, slow] = ropes(&mut random);
            let mut position = || match round % 3 {
                0 => random.random_range(0..=i32::MAX),
                1 => i32::MAX - random.random_range(0..100),
                _ => random.random_range(0..131_072),
            };
            let (old, new) = (position(), position());
            let mut to = vec![0.0; 2 * fast.pairs()];
            for (from, onto) in [(&fast, &fast), (&fast, &slow), (&slow, &fast)] {
                row(&mut to, (from, old), (onto, new));
                let error = error(&to, (from, old), (onto, new));
                assert!(error <= ROUNDING, "{old} to {new}: {error:e}");
            }
        }
    }

    #[test]
    fn a_run_is_as_exact_as_its_rows() {
        let mut random = random();
        for steps in [1, 63, 64, 65, 96, 97, 300] {
            let [fast, slow] = ropes(&mut random);
            let last = i32::MAX - steps + 1;
            for first in [
                (0, 0),
                (5, 100_000),
                (last, last),
                (last, 3),
                (last - 1_000_000_007, last),
            ] {
                let width = 2 * fast.pairs();
                let mut rows = vec![f32::NAN; steps as usize * width];
                for (from, onto) in [(&fast, &slow), (&slow, &fast), (&slow, &slow)] {
                    run(&mut rows, (from, first.0), (onto, first.1));
                    for (step, row) in rows.chunks_exact(width).enumerate() {
                        let step = step as i32;
                        let (old, new) = ((from, first.0 + step), (onto, first.1 + step));
                        let error = error(row, old, new);
                        assert!(
                            error <= ROUNDING,
                            "row {step} of {steps} from {first:?}: {error:e}"
                        );
                    }
                }
            }
        }
    }
}
