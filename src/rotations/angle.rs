//! The cosine and sine of an angle that no single f64 holds.
//!
//! The product of a position and a frequency has up to 84 bits. Rounded to the 53 of an f64 it is off by
//! as much as `2⁻²³` at the largest positions, which is what an f32 cosine can tell. So an angle is the
//! exact sum of two f64: the rounded product and its rounding error, which a fused multiply-add gives
//! (T. J. Dekker, "A floating-point technique for extending the available precision", Numer. Math. 18,
//! 1971, section 5). The library's own sine and cosine reduce the first of them, however large, and the
//! second is added by the angle addition theorem.

use crate::{Result, Rope, Span, memory};

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

/// Consecutive positions that share the sine and the cosine of the first of them.
const STRIDE: usize = 32;

/// The rows of a table that has one for each row of a plan's spans, gathered by what their angles share: by how many
/// positions they turn, and where they were, in steps of [`STRIDE`].
///
/// The angle of a row `i` positions further is that of the first plus `i · (f_new − f_old)`. So one rotation in
/// `STRIDE` is taken from sines and cosines, and what lies between is that one and one of `STRIDE` small ones, composed
/// in f64: four multiplications instead of a sine and a cosine, and an error of some `2⁻⁵²` beside the `2⁻²⁵` that
/// rounding to f32 costs. In what order the rows lie is all the same.
pub(super) struct Runs {
    /// Sorted, so that what shares a rotation is together.
    pieces: Vec<Piece>,
    /// Whether rotations that are shared save more than the small ones cost.
    share: bool,
}

/// Consecutive rows.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    delta: i32,
    /// The old position of the first row is `STRIDE * stretch + within`.
    stretch: u32,
    /// Which row of the table the first one is.
    row: u32,
    within: u8,
    len: u8,
}

impl Piece {
    /// The old and the new position of the row that is `within` its stretch.
    fn at(&self, within: usize) -> (i32, i32) {
        // No more than the old position of a row. The new one is below 0 where a stretch begins before the first position.
        let old = (self.stretch as usize * STRIDE + within) as i32;
        (old, old + self.delta)
    }

    fn shares(&self, next: &Piece) -> bool {
        (self.delta, self.stretch) == (next.delta, next.stretch)
    }
}

impl Runs {
    /// For at most `u32::MAX` rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if there is no memory for the list.
    pub(super) fn new(spans: &[Span]) -> Result<Runs> {
        // Positions are not negative.
        let first = |span: &Span| span.old_position as usize;
        let stretches =
            |span: &Span| (first(span) + span.len - 1) / STRIDE - first(span) / STRIDE + 1;
        let mut pieces = memory::list(spans.iter().map(stretches).sum())?;
        let mut rows = 0;
        for span in spans {
            let (mut position, end) = (first(span), first(span) + span.len);
            while position < end {
                let (stretch, within) = (position / STRIDE, position % STRIDE);
                let len = (STRIDE - within).min(end - position);
                pieces.push(Piece {
                    delta: span.delta(),
                    stretch: stretch as u32,
                    row: rows,
                    within: within as u8,
                    len: len as u8,
                });
                rows += len as u32;
                position += len;
            }
        }
        pieces.sort_unstable();
        let shared = pieces.chunk_by(Piece::shares).count();
        Ok(Runs {
            pieces,
            share: rows as usize > shared + STRIDE,
        })
    }

    /// How many numbers [`fill`](Runs::fill) works with, for a rope of so many pairs: those of the rotations that are shared.
    pub(super) fn scratch(&self, pairs: usize) -> usize {
        if self.share {
            (STRIDE + 1) * 2 * pairs
        } else {
            0
        }
    }

    /// Fills a table's rows, each the cosines of all pairs and then their sines.
    pub(super) fn fill(&self, rows: &mut [f32], old: &Rope, new: &Rope, scratch: &mut [f64]) {
        let pairs = new.pairs();
        let width = 2 * pairs;
        let by_itself = |rows: &mut [f32], piece: &Piece| {
            for i in 0..usize::from(piece.len) {
                let (from, to) = piece.at(usize::from(piece.within) + i);
                let at = (piece.row as usize + i) * width;
                row(&mut rows[at..][..width], (old, from), (new, to));
            }
        };
        if !self.share {
            for piece in &self.pieces {
                by_itself(rows, piece);
            }
            return;
        }
        let (base, small) = scratch[..self.scratch(pairs)].split_at_mut(width);
        for (step, small) in small.chunks_exact_mut(width).enumerate() {
            let step = step as i32;
            rotation(small, (old, step), (new, step));
        }
        for sharing in self.pieces.chunk_by(Piece::shares) {
            if let [piece] = sharing
                && piece.len == 1
            {
                by_itself(rows, piece);
                continue;
            }
            let (from, to) = sharing[0].at(0);
            rotation(base, (old, from), (new, to));
            for piece in sharing {
                let rows = rows[piece.row as usize * width..].chunks_exact_mut(width);
                let small = small[usize::from(piece.within) * width..].chunks_exact(width);
                for (to, small) in rows.zip(small).take(usize::from(piece.len)) {
                    compose(to, base, small);
                }
            }
        }
    }
}

/// The table row of two rotations, one after the other.
fn compose(row: &mut [f32], first: &[f64], second: &[f64]) {
    let pairs = row.len() / 2;
    let (to_cos, to_sin) = row.split_at_mut(pairs);
    let (first_cos, first_sin) = first.split_at(pairs);
    let (second_cos, second_sin) = second.split_at(pairs);
    for pair in 0..pairs {
        let first = (first_cos[pair], first_sin[pair]);
        let (cos, sin) = add(first, (second_cos[pair], second_sin[pair]));
        (to_cos[pair], to_sin[pair]) = (cos as f32, sin as f32);
    }
}

/// As [`row`], in f64.
fn rotation(to: &mut [f64], old: (&Rope, i32), new: (&Rope, i32)) {
    let (cos, sin) = to.split_at_mut(new.0.pairs());
    for (pair, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
        (*cos, *sin) = turn(pair, old, new).cos_sin();
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

    fn span(len: usize, old_position: i32, new_position: i32) -> Span {
        Span {
            src: 0,
            dst: 0,
            len,
            old_position,
            new_position,
        }
    }

    /// Each row of a table for `spans` against its own angle.
    fn check(spans: &[Span], random: &mut SmallRng) {
        let runs = Runs::new(spans).unwrap();
        let [fast, slow] = ropes(random);
        let width = 2 * fast.pairs();
        let rows = spans.iter().map(|span| span.len).sum::<usize>();
        let mut scratch = vec![f64::NAN; runs.scratch(fast.pairs())];
        for (from, onto) in [(&fast, &slow), (&slow, &fast), (&slow, &slow)] {
            let mut table = vec![f32::NAN; rows * width];
            runs.fill(&mut table, from, onto, &mut scratch);
            let mut table = table.chunks_exact(width);
            for span in spans {
                for step in 0..span.len as i32 {
                    let (old, new) = (span.old_position + step, span.new_position + step);
                    let error = error(table.next().unwrap(), (from, old), (onto, new));
                    assert!(error <= ROUNDING, "{old} to {new}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_run_is_as_exact_as_its_rows() {
        let mut random = random();
        for len in [1, 63, 64, 65, 96, 97, 300] {
            let last = i32::MAX - len + 1;
            for (old, new) in [
                (0, 0),
                (5, 100_000),
                (100_007, 3),
                (last, last),
                (last, 3),
                (last - 1_000_000_007, last),
            ] {
                check(&[span(len as usize, old, new)], &mut random);
            }
        }
    }

    /// Positions in no order, some of them more than once, far apart and close together, turned by few and by many numbers.
    #[test]
    fn rows_in_no_order_are_as_exact() {
        let mut random = random();
        for (rows, apart, deltas) in [(300, 1, 2), (300, 3, 1), (100, 1000, 9), (300, 1, 1000)] {
            for first in [0, 70_000, i32::MAX - rows * apart] {
                let any = |_| {
                    let step = random.random_range(0..rows) * apart;
                    let new = (first - random.random_range(0..deltas)).max(0) + step;
                    let len = random.random_range(1..=apart.min(5));
                    span(len as usize, first + step, new)
                };
                let spans: Vec<Span> = (0..rows).map(any).collect();
                check(&spans, &mut random);
            }
        }
    }

    /// Sines and cosines are what a table costs: as many for rows in no order as for the same rows in order.
    #[test]
    fn rows_share_what_their_angles_share() {
        let shared = |spans: &[Span]| {
            let runs = Runs::new(spans).unwrap();
            (runs.pieces.chunk_by(Piece::shares).count(), runs.share)
        };
        const ROWS: i32 = 10_000;
        let stretches = ROWS as usize / STRIDE + 1;
        assert_eq!(shared(&[span(ROWS as usize, 0, 7)]), (stretches, true));
        let scattered = |by: i32| -> Vec<Span> {
            let position = |i: i32| i * 7919 % ROWS * by;
            (0..ROWS)
                .map(|i| span(1, position(i), position(i)))
                .collect()
        };
        assert_eq!(shared(&scattered(1)), (stretches, true));
        // Of rows that share nothing each has its own.
        assert_eq!(shared(&scattered(32)), (ROWS as usize, false));
        // The small rotations are made where they save more than they cost.
        let few = |rows| shared(&[span(rows, 0, 0)]);
        assert_eq!(few(STRIDE + 1), (2, false));
        assert_eq!(few(STRIDE + 2), (2, false));
        assert_eq!(few(STRIDE + 3), (2, true));
    }
}
