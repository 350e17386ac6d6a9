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

/// What is found is good if one in so many of the tokens to encode need not be.
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
    if encode - encode / GOOD > least {
        found.push(if Table::holds_band(old.len(), new.len(), tokens) {
            table.whole(old, new, tokens)
        } else {
            table.wide_windows(old, new)
        });
    }
    found
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
