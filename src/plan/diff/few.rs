//! The best edits, found in a time that grows with how many they are.
//!
//! In the grid of old tokens by new ones, a path from corner to corner goes right where it removes
//! an old token, down where it inserts a new one, and diagonally where it keeps one. With `delta`
//! tokens fewer in the new sequence, the path has to go right `delta` times; each further step to
//! the right takes one down to make up for it. So the diagonals −p to delta + p are all that a path
//! with `p` insertions can see, and for p = 0, 1, 2, … the furthest point on each of them that is
//! reached with p follows from its neighbours (Wu, Manber, Myers, Miller: "An O(NP) sequence
//! comparison algorithm", 1990). What is cheap is not a short script, as with Myers' algorithm, but
//! one with few insertions, whatever was removed. If there are more new tokens than old ones, the
//! two change places.

use super::kept::{Kept, Run, common_prefix};
use super::work;

/// No point of this diagonal is reached, nor by one step more from it.
const NONE: i32 = i32::MIN;

/// Tokens that are compared in the time of one point.
const COMPARED: usize = 16;

/// What two sequences have in common, if finding it out takes at most `work` points, which are
/// kept in memory, four bytes each. If it takes more, the number of tokens that they have in common
/// at most, as far as is known then.
pub(super) fn compare(old: &[u32], new: &[u32], work: usize) -> Result<Kept, usize> {
    let swap = old.len() < new.len();
    let (long, short) = if swap { (new, old) } else { (old, new) };
    if i32::try_from(long.len()).is_err() {
        return Err(short.len());
    }
    let search = Search {
        long,
        short,
        delta: long.len() - short.len(),
    };
    let levels = search.levels(work).map_err(|p| short.len() - p)?;
    let mut runs = search.runs(&levels);
    if swap {
        for run in &mut runs {
            (run.old, run.new) = (run.new, run.old);
        }
    }
    let mut kept = Kept::default();
    kept.extend_reversed(0, 0, &runs);
    Ok(kept)
}

struct Search<'a> {
    long: &'a [u32],
    short: &'a [u32],
    delta: usize,
}

/// How many tokens of `long` lie before the furthest point of each diagonal: level by level, one
/// for each p. A level has an entry for each diagonal from -p to delta + p.
type Levels = Vec<i32>;

impl Search<'_> {
    /// All levels up to the one that reaches the end, or the first p that was too much work.
    fn levels(&self, work: usize) -> Result<Levels, usize> {
        let mut levels = Levels::with_capacity(work);
        let (mut compared, mut asked) = (0, false);
        for p in 0.. {
            let spent = self.start(p + 1) + compared / COMPARED;
            if spent > work {
                return Err(p);
            }
            if spent > work / 4 && !asked {
                asked = true;
                if self.is_far(&levels, p) {
                    return Err(p);
                }
            }
            work::done(self.start(p + 1) - self.start(p));
            levels.resize(self.start(p + 1), NONE);
            let (done, level) = levels.split_at_mut(self.start(p));
            let below = self.below(done, p);
            let mut reach = |entry: usize| {
                if let Some((at, _)) = self.enter(below, level, p, entry) {
                    let same = common_prefix(&self.long[at..], &self.short[at + p - entry..]);
                    compared += same;
                    level[entry] = (at + same) as i32;
                }
            };
            // Towards the diagonal of the end from both sides, for there a step costs nothing.
            let (end, last) = (self.delta + p, self.delta + 2 * p);
            (0..end).for_each(&mut reach);
            (end..=last).rev().for_each(&mut reach);
            if level[end] as usize == self.long.len() {
                return Ok(levels);
            }
        }
        unreachable!("the last p has room for all of both sequences")
    }

    /// Whether the levels below p have come so little ahead that the end is out of reach: with a
    /// quarter of the work, which is about half the levels, less than an eighth of the way.
    fn is_far(&self, levels: &[i32], p: usize) -> bool {
        let below = self.below(levels, p).iter().zip(1i64..);
        // Tokens of `short` before each point.
        let furthest = below.map(|(&at, i)| i64::from(at) + p as i64 - i).max();
        furthest.is_some_and(|furthest| furthest < self.short.len() as i64 / 8)
    }

    /// Where the level of a p starts.
    fn start(&self, p: usize) -> usize {
        p * (self.delta + p)
    }

    /// The level before that of a p, of all that are before it.
    fn below<'l>(&self, done: &'l [i32], p: usize) -> &'l [i32] {
        &done[self.start(p.saturating_sub(1))..]
    }

    /// The furthest point of a diagonal that a step from a neighbour leads to, or the start of all,
    /// and where the step is from.
    #[inline(always)]
    fn enter(&self, below: &[i32], level: &[i32], p: usize, entry: usize) -> Option<(usize, From)> {
        if p == 0 && entry == 0 {
            return Some((0, From::Start));
        }
        let end = self.delta + p;
        // A step away from the diagonal of the end is one of the p. The entries of the level below
        // are one less for the same diagonal.
        let right = if entry <= end {
            level[..entry].last()
        } else {
            below.get(entry - 2)
        };
        let down = if entry < end {
            below.get(entry)
        } else {
            level.get(entry + 1)
        };
        let right = i64::from(*right.unwrap_or(&NONE)) + 1;
        let down = i64::from(*down.unwrap_or(&NONE));
        // Never past the end of a sequence: from a point where one ends, the steps along that edge to the end of both
        // cost nothing, so no level comes after it.
        let (at, from) = if right >= down {
            (right, From::Right)
        } else {
            (down, From::Down)
        };
        debug_assert!(at <= self.long.len() as i64);
        debug_assert!(at + p as i64 - entry as i64 <= self.short.len() as i64);
        (at >= 0).then_some((at as usize, from))
    }

    /// The path from the end back to the start.
    fn runs(&self, levels: &[i32]) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut p = (0..)
            .take_while(|&p| self.start(p + 1) < levels.len())
            .count();
        let mut entry = self.delta + p;
        loop {
            let (done, level) = levels[..self.start(p + 1)].split_at(self.start(p));
            let below = self.below(done, p);
            let (at, from) = self
                .enter(below, level, p, entry)
                .expect("a point of the path");
            runs.push(Run {
                old: at,
                new: at + p - entry,
                len: level[entry] as usize - at,
            });
            let end = self.delta + p;
            (p, entry) = match from {
                From::Start => return runs,
                From::Right if entry <= end => (p, entry - 1),
                From::Right => (p - 1, entry - 2),
                From::Down if entry < end => (p - 1, entry),
                From::Down => (p, entry + 1),
            };
        }
    }
}

enum From {
    Start,
    /// The left: a token of `long` is not in `short`.
    Right,
    /// Above: a token of `short` is not in `long`.
    Down,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences, the first longer by `delta`, of which only the first `same` tokens are the same.
    fn alike(short: u32, delta: u32, same: u32) -> (Vec<u32>, Vec<u32>) {
        let other = (same..short).map(|i| i + 1_000_000);
        (
            (0..short + delta).collect(),
            (0..same).chain(other).collect(),
        )
    }

    /// Points of the levels before that of a p.
    fn points(p: usize, delta: usize) -> usize {
        p * (delta + p)
    }

    #[test]
    fn the_work_is_what_it_may_be() {
        for delta in [0, 1, 30] {
            // Forty tokens are not in the other: as many levels behind the first one.
            let (long, mut short) = alike(1040, delta, 1040);
            for i in (0..1040).step_by(26) {
                short[i] += 1_000_000;
            }
            let needed = (1..10_000)
                .find(|&work| compare(&long, &short, work).is_ok())
                .unwrap();
            // Every level's points, and of what is compared no more than the tokens of each diagonal.
            let levels = points(41, delta as usize);
            assert!((levels..levels + 41 * 1040 / COMPARED).contains(&needed));
            for work in [needed, needed + 1, 4 * needed, 5 * needed] {
                work::taken();
                for (old, new) in [(&long, &short), (&short, &long)] {
                    assert_eq!(compare(old, new, work).unwrap().tokens(), 1000);
                    assert_eq!(work::taken(), levels);
                }
            }
            // All but the last level: no more than these can be the same, and whether they are is not known.
            assert_eq!(compare(&long, &short, needed - 1).unwrap_err(), 1000);
        }
    }

    /// Nothing of what follows the first tokens is in the other, so that after `p` levels the furthest point is as many
    /// tokens behind these.
    #[test]
    fn what_has_come_less_than_an_eighth_of_the_way_is_given_up() {
        for delta in [0, 1, 30] {
            let d = delta as usize;
            // The work of a level, and of comparing the first tokens once.
            let quarter = points(100, d) + 150 / COMPARED;
            let work = 4 * quarter;
            let last = (1..)
                .find(|&p| points(p + 1, d) + 150 / COMPARED > work)
                .unwrap();
            for (same, given_up) in [(150, 100), (151, last)] {
                let (long, short) = alike(2000, delta, same);
                work::taken();
                for (old, new) in [(&long, &short), (&short, &long)] {
                    assert_eq!(compare(old, new, work).unwrap_err(), 2000 - given_up);
                    assert_eq!(work::taken(), points(given_up, d));
                }
            }
        }
    }
}
