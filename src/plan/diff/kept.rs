//! What two token sequences have in common: runs of tokens, in the same order in both.

use std::ops::Range;

use crate::Edit;

/// `len` tokens that are the same in both sequences, from `old` on in one and `new` in the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    pub old: usize,
    pub new: usize,
    pub len: usize,
}

/// Runs in order, each as long as it can be: two that carry on in both sequences are one.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<Run>);

/// Work for each token, in tokens compared, that joining runs may take.
const SLIDE: usize = 8;

impl Kept {
    pub fn runs(&self) -> &[Run] {
        &self.0
    }

    pub fn tokens(&self) -> usize {
        self.0.iter().map(|run| run.len).sum()
    }

    /// Appends a run that lies behind all others.
    pub fn push(&mut self, old: usize, new: usize, len: usize) {
        match self.0.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.old + last.len == old && last.new + last.len == new => {
                last.len += len;
            }
            _ => self.0.push(Run { old, new, len }),
        }
    }

    /// Appends what was found in a part of the sequences that starts at `old` and `new`.
    pub fn extend(&mut self, old: usize, new: usize, part: &[Run]) {
        for run in part {
            self.push(old + run.old, new + run.new, run.len);
        }
    }

    /// [`extend`](Kept::extend) for a part that was found from the end on, its last run first.
    pub fn extend_reversed(&mut self, old: usize, new: usize, part: &[Run]) {
        for run in part.iter().rev() {
            self.push(old + run.old, new + run.new, run.len);
        }
    }

    /// As many tokens in fewer runs: where the tokens of a run lie beside the next one as well, on
    /// both sides, the two are joined, and so are the edits around the first. Of the `c b c` that
    /// became `c c`, it is `c b` or `b c` that is gone, whichever is beside another edit.
    pub fn joined(self, old: &[u32], new: &[u32]) -> Kept {
        let mut work = SLIDE * (old.len() + new.len());
        let mut same = |i: usize, j: usize, len: usize| {
            let same = common_prefix(&old[i..i + len], &new[j..j + len]);
            work = work.saturating_sub(same);
            same == len && work > 0
        };
        // The edits before the first run and behind the last one are between runs as well.
        let mut joined = vec![Run::default()];
        let end = Run {
            old: old.len(),
            new: new.len(),
            len: 0,
        };
        for mut run in self.0.into_iter().chain([end]) {
            while let [.., before, last] = joined.as_mut_slice() {
                let len = last.len;
                if same(run.old - len, run.new - len, len) {
                    run = Run {
                        old: run.old - len,
                        new: run.new - len,
                        len: run.len + len,
                    };
                } else if same(before.old + before.len, before.new + before.len, len) {
                    before.len += len;
                } else {
                    break;
                }
                joined.pop();
            }
            joined.push(run);
        }
        let mut kept = Kept::default();
        kept.extend(0, 0, &joined);
        kept
    }

    /// The edits between the runs, and before and behind them.
    pub fn edits(&self, old: usize, new: usize) -> Vec<Edit> {
        let end = Run { old, new, len: 0 };
        let (mut old, mut new) = (0, 0);
        let mut edits = Vec::new();
        for run in self.0.iter().chain([&end]) {
            let removed: Range<usize> = old..run.old;
            let inserted = run.new - new;
            if !removed.is_empty() || inserted > 0 {
                edits.push(Edit::replace(removed, inserted));
            }
            (old, new) = (run.old + run.len, run.new + run.len);
        }
        edits
    }
}

/// How many tokens are the same from the start on.
#[inline(always)]
pub(super) fn common_prefix(old: &[u32], new: &[u32]) -> usize {
    const STEP: usize = 8;
    let len = old.len().min(new.len());
    let (old, new) = (&old[..len], &new[..len]);
    if len == 0 || old[0] != new[0] {
        return 0;
    }
    // Steps without a branch for each token: where runs end is not to be foreseen.
    let mut same = 0;
    for (old, new) in old.chunks_exact(STEP).zip(new.chunks_exact(STEP)) {
        let mut differ = 0u32;
        for i in 0..STEP {
            differ |= u32::from(old[i] != new[i]) << i;
        }
        if differ != 0 {
            return same + differ.trailing_zeros() as usize;
        }
        same += STEP;
    }
    while same < len && old[same] == new[same] {
        same += 1;
    }
    same
}

/// How many tokens are the same up to the end.
pub(super) fn common_suffix(old: &[u32], new: &[u32]) -> usize {
    old.iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(old, new)| old == new)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_at_both_ends() {
        for len in 0..40 {
            for same in 0..=len {
                let old: Vec<u32> = (0..len as u32).collect();
                let differ = |i: usize| i as u32 + 100;
                let front: Vec<u32> = (0..same as u32).chain((same..len).map(differ)).collect();
                let back: Vec<u32> = (same..len).map(differ).chain(0..same as u32).collect();
                let end: Vec<u32> = (same..len)
                    .map(differ)
                    .chain(old[len - same..].to_vec())
                    .collect();
                assert_eq!(common_prefix(&old, &front), same);
                assert_eq!(common_prefix(&old[..same], &old), same);
                assert_eq!(common_suffix(&old, &end), same);
                assert_eq!(common_suffix(&old[..same], &back), same);
            }
        }
    }

    /// Runs of one token each, all tokens the same, between tokens that are replaced: joining the next one compares
    /// all that were joined before.
    #[test]
    fn joining_takes_no_more_work_than_it_may() {
        for (runs, new) in [(10, 20), (200, 400), (200, 700)] {
            let tokens = vec![0; new];
            let old = &tokens[..2 * runs];
            let mut kept = Kept::default();
            (0..runs).for_each(|i| kept.push(2 * i, 2 * i, 1));
            let joined = kept.joined(old, &tokens);
            assert_eq!(joined.tokens(), runs);
            let work = SLIDE * (old.len() + new);
            let joins = (1..runs).take_while(|n| n * (n + 1) / 2 < work).count();
            assert_eq!(joined.runs().len(), runs - joins, "{runs} {new}");
        }
    }
}
