//! The edits between two token sequences.
//!
//! A cached sequence is long and most of it is unchanged, so the work is to find out quickly what
//! is: common ends first, then long runs of tokens that occur once on each side (patience diff,
//! with runs of tokens for lines), then shorter ones in what is left between. What remains is
//! small, and a histogram diff (imara-diff) finds good edits in it.
//!
//! imara-diff is kept to small inputs because its time can be quadratic. Its histogram looks
//! through all that is left after each run it finds: 22 s if every second of 131 072 distinct
//! tokens is replaced. Its Myers diff looks past each token that is frequent on both sides for
//! one that is not: 10 s for as many tokens out of a vocabulary of 100. As used here, 131 072
//! tokens take 50 ms at worst.

use std::ops::Range;

use imara_diff::{Algorithm, Diff, InternedInput, Interner};

use super::{Edit, Plan, check_rows};
use crate::Result;

/// Lengths of the runs that are looked for, one pass each. Long ones first: a short run that is
/// unique on both sides is more often a coincidence.
const RUN_LENGTHS: &[usize] = &[16, 4, 1];

/// Regions of at most this many tokens, both sides together, go to imara-diff.
const SMALL: usize = 1024;

impl Edit {
    /// Edits that turn the tokens `old` into `new`, in old order, at least one kept token between
    /// any two.
    ///
    /// They are good ones, in O(n log n) time, not always the fewest: a large region (more than a
    /// thousand tokens) with no token that occurs exactly once on each side, nor a run of tokens
    /// that does, is replaced as a whole.
    pub fn between(old: &[u32], new: &[u32]) -> Vec<Edit> {
        let mut differ = Differ {
            old,
            new,
            edits: Vec::new(),
        };
        differ.compare(0..old.len(), 0..new.len(), RUN_LENGTHS);
        differ.edits
    }
}

impl Plan {
    /// The plan from the tokens `old`, of which token `i` lies in row `i` and is at position `i`,
    /// to the tokens `new`: that of [`Edit::between`] the two.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`](crate::Error::Plan) if either sequence has more tokens than there are
    /// positions.
    pub fn from_tokens(old: &[u32], new: &[u32]) -> Result<Plan> {
        check_rows(0, old.len())?;
        check_rows(0, new.len())?;
        Plan::from_edits(old.len(), &Edit::between(old, new))
    }
}

struct Differ<'a> {
    old: &'a [u32],
    new: &'a [u32],
    edits: Vec<Edit>,
}

impl Differ<'_> {
    /// Appends the edits from one region to the other.
    fn compare(&mut self, old: Range<usize>, new: Range<usize>, run_lengths: &[usize]) {
        let (old, new) = self.trim(old, new);
        if old.is_empty() && new.is_empty() {
            return;
        }
        if old.is_empty() || new.is_empty() {
            self.edits.push(Edit::replace(old, new.len()));
        } else if old.len() + new.len() <= SMALL {
            self.compare_small(old, new);
        } else if let Some((&run_length, shorter)) = run_lengths.split_first() {
            self.compare_between_runs(old, new, run_length, shorter);
        } else {
            self.edits.push(Edit::replace(old, new.len()));
        }
    }

    /// Takes common tokens off both ends.
    fn trim(&self, old: Range<usize>, new: Range<usize>) -> (Range<usize>, Range<usize>) {
        let start = common_prefix(&self.old[old.clone()], &self.new[new.clone()]);
        let (old, new) = (old.start + start..old.end, new.start + start..new.end);
        let end = common_suffix(&self.old[old.clone()], &self.new[new.clone()]);
        (old.start..old.end - end, new.start..new.end - end)
    }

    fn compare_small(&mut self, old: Range<usize>, new: Range<usize>) {
        let mut input = InternedInput::default();
        input.update_before(self.old[old.clone()].iter().copied());
        input.update_after(self.new[new].iter().copied());
        let diff = Diff::compute(Algorithm::Histogram, &input);
        self.edits.extend(diff.hunks().map(|hunk| {
            let range =
                old.start + hunk.before.start as usize..old.start + hunk.before.end as usize;
            Edit::replace(range, hunk.after.len())
        }));
    }

    /// Keeps the runs that occur once on each side, as far as they are in the same order and as
    /// far as they extend, and compares what lies between them.
    fn compare_between_runs(
        &mut self,
        old: Range<usize>,
        new: Range<usize>,
        run_length: usize,
        shorter: &[usize],
    ) {
        let (mut old_start, mut new_start) = (old.start, new.start);
        let runs = common_runs(&self.old[old.clone()], &self.new[new.clone()], run_length);
        for (i, j) in runs {
            let (i, j) = (old.start + i, new.start + j);
            if i < old_start || j < new_start {
                continue; // Inside the run before, or across its end.
            }
            // The comparison of what lies before takes care of extending the run to the left.
            self.compare(old_start..i, new_start..j, shorter);
            let len = common_prefix(&self.old[i..old.end], &self.new[j..new.end]);
            (old_start, new_start) = (i + len, j + len);
        }
        self.compare(old_start..old.end, new_start..new.end, shorter);
    }
}

/// Where the runs of `len` tokens start that occur once in `old` and once in `new`: the longest
/// sequence of them that is in the same order in both.
fn common_runs(old: &[u32], new: &[u32], len: usize) -> Vec<(usize, usize)> {
    let mut runs = Interner::new(old.len() + new.len());
    let mut places: Vec<(Place, Place)> = Vec::with_capacity(old.len() + new.len());
    for (place, run) in old.windows(len).enumerate() {
        let run = runs.intern(run).0 as usize;
        if run == places.len() {
            places.push((Place::None, Place::None));
        }
        places[run].0.add(place);
    }
    for (place, run) in new.windows(len).enumerate() {
        let run = runs.intern(run).0 as usize;
        // A run that is new to the interner does not occur in `old`.
        if let Some((_, in_new)) = places.get_mut(run) {
            in_new.add(place);
        }
    }
    // A run that occurs once is where it occurs first, so these are in order of their old place.
    let pairs: Vec<(usize, usize)> = places
        .iter()
        .filter_map(|places| match *places {
            (Place::One(i), Place::One(j)) => Some((i, j)),
            _ => None,
        })
        .collect();
    longest_increasing(&pairs)
}

/// Where a run of tokens occurs.
#[derive(Clone, Copy)]
enum Place {
    None,
    One(usize),
    Many,
}

impl Place {
    fn add(&mut self, place: usize) {
        *self = match self {
            Place::None => Place::One(place),
            Place::One(_) | Place::Many => Place::Many,
        };
    }
}

/// Of pairs whose first number increases, the longest subsequence whose second does too (patience
/// sorting: pile `n` ends with the pair of the smallest second number that a subsequence of
/// `n + 1` pairs can end with).
fn longest_increasing(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut piles: Vec<usize> = Vec::new();
    let mut previous = vec![None; pairs.len()];
    for (index, &(_, second)) in pairs.iter().enumerate() {
        let pile = piles.partition_point(|&top| pairs[top].1 < second);
        previous[index] = pile.checked_sub(1).map(|below| piles[below]);
        if pile == piles.len() {
            piles.push(index);
        } else {
            piles[pile] = index;
        }
    }
    let mut chain: Vec<_> = std::iter::successors(piles.last().copied(), |&index| previous[index])
        .map(|index| pairs[index])
        .collect();
    chain.reverse();
    chain
}

fn common_prefix(old: &[u32], new: &[u32]) -> usize {
    old.iter()
        .zip(new)
        .take_while(|(old, new)| old == new)
        .count()
}

fn common_suffix(old: &[u32], new: &[u32]) -> usize {
    old.iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(old, new)| old == new)
        .count()
}
