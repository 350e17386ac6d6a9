//! Large sequences, part by part.

use std::ops::Range;

use super::anchors::anchors;
use super::few;
use super::kept::{Kept, common_prefix, common_suffix};
use super::shared::Shared;
use super::table::Table;

/// Lengths of the runs that are looked for, one pass each. Long ones first: a short run that is
/// unique on both sides is more often a coincidence.
const RUN_LENGTHS: &[usize] = &[64, 16, 4, 1];

/// Work for each token, in points, that finding few edits may take, in all of both sequences and
/// in parts of them.
const WHOLE: usize = 24;
const PART: usize = 6;

/// A sequence of at most so many tokens is compared with another in less time than finding few
/// edits may take.
const SHORT: usize = 256;

/// What is found is good if at most one in so many of the tokens to encode need not be.
const GOOD: usize = 5;

/// What two sequences have in common: as a whole, and, if they are large and have anchors, in what
/// lies between these.
pub(super) fn compare(shared: &Shared) -> Vec<Kept> {
    let (old, new) = (&shared.old, &shared.new);
    let size = old.len() + new.len();
    let few = few::compare(old, new, WHOLE * size);
    let mut table = Table::new(shared.distinct);
    if table.holds(old.len(), new.len()) {
        return vec![few.unwrap_or_else(|_| table.whole(old, new, 0))];
    }
    let mut regions = Regions {
        old,
        new,
        table,
        kept: Kept::default(),
    };
    let mut found = Vec::new();
    if regions.between_anchors(0..old.len(), 0..new.len(), RUN_LENGTHS, size) {
        found.push(std::mem::take(&mut regions.kept));
    }
    table = regions.table;
    let most = match few {
        Ok(few) => {
            found.push(few);
            return found;
        }
        Err(most) => most,
    };
    if found.is_empty() {
        found.push(table.windows(old, new));
    }
    let tokens = found[0].tokens();
    let (encode, least) = (new.len() - tokens, new.len() - most);
    if !is_good(encode, least) {
        found.push(if Table::holds_band(old.len(), new.len(), tokens) {
            table.whole(old, new, tokens)
        } else {
            table.wide_windows(old, new)
        });
    }
    found
}

/// Of so many tokens to encode, where there are at least so many.
fn is_good(encode: usize, least: usize) -> bool {
    encode - encode / GOOD <= least
}

struct Regions<'a> {
    old: &'a [u32],
    new: &'a [u32],
    table: Table,
    kept: Kept,
}

impl Regions<'_> {
    /// Appends what one region has in common with the other. Finding few edits in as many tokens
    /// as `tried`, or in more than half of them, has failed.
    fn compare(
        &mut self,
        old: Range<usize>,
        new: Range<usize>,
        run_lengths: &[usize],
        tried: usize,
    ) {
        let (old_part, new_part) = (&self.old[old.clone()], &self.new[new.clone()]);
        let start = common_prefix(old_part, new_part);
        let end = common_suffix(&old_part[start..], &new_part[start..]);
        self.kept.push(old.start, new.start, start);
        self.differing(
            old.start + start..old.end - end,
            new.start + start..new.end - end,
            run_lengths,
            tried,
        );
        self.kept.push(old.end - end, new.end - end, end);
    }

    fn differing(
        &mut self,
        old: Range<usize>,
        new: Range<usize>,
        run_lengths: &[usize],
        mut tried: usize,
    ) {
        if old.is_empty() || new.is_empty() {
            return;
        }
        let (old_part, new_part) = (&self.old[old.clone()], &self.new[new.clone()]);
        let size = old.len() + new.len();
        if old.len().min(new.len()) > SHORT && size <= tried / 2 {
            if let Ok(kept) = few::compare(old_part, new_part, PART * size) {
                self.kept.extend(old.start, new.start, kept.runs());
                return;
            }
            tried = size;
        }
        if self.table.holds(old.len(), new.len())
            || !self.between_anchors(old.clone(), new.clone(), run_lengths, tried)
        {
            let at = (old.start, new.start);
            self.table.compare(old_part, new_part, &mut self.kept, at);
        }
    }

    /// Keeps the longest anchors that there are, as far as they extend, and compares what lies
    /// between them.
    fn between_anchors(
        &mut self,
        old: Range<usize>,
        new: Range<usize>,
        run_lengths: &[usize],
        tried: usize,
    ) -> bool {
        let (old_part, new_part) = (&self.old[old.clone()], &self.new[new.clone()]);
        let mut lengths = run_lengths.iter().enumerate();
        let Some((i, len, anchors)) = lengths.find_map(|(i, &len)| {
            let anchors = anchors(old_part, new_part, len);
            (!anchors.is_empty()).then_some((i, len, anchors))
        }) else {
            return false;
        };
        let shorter = &run_lengths[i + 1..];
        let (mut old_start, mut new_start) = (old.start, new.start);
        for (i, j) in anchors {
            let (i, j) = (old.start + i, new.start + j);
            if i < old_start || j < new_start {
                continue; // Inside the run before, or across its end.
            }
            let same = common_prefix(&self.old[i..old.end], &self.new[j..new.end]);
            if same < len {
                continue; // Two runs with the same hash.
            }
            // The comparison of what lies before takes care of extending the run to the left.
            self.compare(old_start..i, new_start..j, shorter, tried);
            self.kept.push(i, j, same);
            (old_start, new_start) = (i + same, j + same);
        }
        self.compare(old_start..old.end, new_start..new.end, shorter, tried);
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::longest::common;
    use super::super::work;
    use super::*;

    const LEN: usize = 60_000;

    fn noise(random: &mut SmallRng, len: usize, vocabulary: u32) -> Vec<u32> {
        let token = |_| random.random_range(0..vocabulary);
        (0..len).map(token).collect()
    }

    /// The same tokens, of which one in so many is replaced.
    fn edited(random: &mut SmallRng, tokens: &[u32], one_in: u32) -> Vec<u32> {
        let mut edited = tokens.to_vec();
        for token in &mut edited {
            if random.random_range(0..one_in) == 0 {
                *token = random.random_range(0..2000);
            }
        }
        edited
    }

    /// How many tokens each way has kept, all of which are where they are said to be.
    fn tokens(old: &[u32], new: &[u32]) -> Vec<usize> {
        let shared = Shared::of(old, new);
        let found = compare(&shared).into_iter().map(|found| {
            let found = shared.places(&found);
            let (mut i, mut j) = (0, 0);
            for run in found.runs() {
                assert!(run.old >= i && run.new >= j, "{run:?}");
                (i, j) = (run.old + run.len, run.new + run.len);
                assert_eq!(old[run.old..i], new[run.new..j], "{run:?}");
            }
            found.tokens()
        });
        found.collect()
    }

    #[test]
    fn one_token_in_five_need_not_be_encoded() {
        assert!(is_good(100, 80) && !is_good(100, 79));
        assert!(is_good(4, 4) && !is_good(4, 3) && is_good(0, 0));
    }

    #[test]
    fn between_anchors_little_is_missed() {
        let mut random = SmallRng::seed_from_u64(1);
        let old = noise(&mut random, LEN, 2000);
        // Too many edits for anything else, and blocks that are gone or new.
        let mut new = edited(&mut random, &old, 10);
        new.drain(50_000..57_000);
        new.splice(20_000..21_000, noise(&mut random, 9000, 2000));
        new.drain(3000..6000);
        for (old, new) in [(&old, &new), (&new, &old)] {
            let (found, most) = (tokens(old, new), common(old, new));
            assert!(most - found[0] <= most / 500, "{found:?} of {most}");
            // It is not known to be good: the search for few edits was given up long before it could say so.
            assert_eq!(found.len(), 2, "{found:?} of {most}");
        }
    }

    #[test]
    fn what_is_good_is_not_looked_for_again() {
        let mut random = SmallRng::seed_from_u64(4);
        let old = noise(&mut random, LEN, 2000);
        let mut new = edited(&mut random, &old, 40);
        new.drain(50_000..50_350);
        new.splice(20_000..20_000, noise(&mut random, 350, 2000));
        for (old, new) in [(&old, &new), (&new, &old)] {
            work::taken();
            let found = tokens(old, new);
            // Finding few edits has been given up, and what is between anchors takes little.
            let (work, size) = (work::taken(), old.len() + new.len());
            assert!(work < (WHOLE + 1) * size, "{work}");
            assert_eq!(found.len(), 1);
            let most = common(old, new);
            assert!(most - found[0] <= most / 500, "{found:?} of {most}");
        }
    }

    #[test]
    fn an_anchor_across_the_end_of_a_run_is_none() {
        // The run of 0 to 99 ends before 100. What is around its end is once more in the new sequence, far behind it.
        let old: Vec<u32> = (0..200).collect();
        let new = [&old[..100], &[300; 50], &old[98..102], &[301; 50]].concat();
        let (old_all, new_all) = (0..old.len(), 0..new.len());
        let mut regions = Regions {
            old: &old,
            new: &new,
            table: Table::new(302),
            kept: Kept::default(),
        };
        assert!(anchors(&old, &new, 4).contains(&(98, 150)));
        assert!(regions.between_anchors(old_all, new_all, &[4], 0));
        let runs: Vec<_> = regions
            .kept
            .runs()
            .iter()
            .map(|run| (run.old, run.new, run.len))
            .collect();
        assert_eq!(runs, [(0, 0, 100), (100, 152, 2)]);
    }

    #[test]
    fn what_few_edits_make_is_found_as_a_whole() {
        let mut random = SmallRng::seed_from_u64(2);
        let old = noise(&mut random, LEN, 2000);
        let new = edited(&mut random, &old, 60);
        let found = tokens(&old, &new);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], common(&old, &new));
    }

    #[test]
    fn what_has_no_anchors_is_compared_in_one_band() {
        let mut random = SmallRng::seed_from_u64(3);
        let old = noise(&mut random, LEN, 2);
        let mut new = edited(&mut random, &old, 50);
        new.drain(10_000..16_000);
        let found = tokens(&old, &new);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], common(&old, &new));
    }
}
