//! Runs of tokens that occur once on each side: what was moved apart by large edits is found again
//! by them (patience diff, with runs of tokens for lines).

/// Probes after which a run is given up rather than looked for, so that no input, however
/// contrived, makes the hash table slow.
const PROBES: usize = 16;

/// Where runs of `len` tokens start that occur once in `old` and once in `new`: the longest
/// sequence of them that is in the same order in both. None if it is not much longer than chance
/// has it.
///
/// A hash stands for a run, so in the rarest case one that is named is none.
pub(super) fn anchors(old: &[u32], new: &[u32], len: usize) -> Vec<(usize, usize)> {
    if u32::try_from(old.len().max(new.len())).is_err() {
        return Vec::new();
    }
    let mut table = Occurrences::new(old.len());
    hashes(old, len, |place, hash| {
        if let Some(slot) = table.slot(hash, true) {
            slot.old.add(place);
        }
    });
    hashes(new, len, |place, hash| {
        if let Some(slot) = table.slot(hash, false) {
            slot.new.add(place);
        }
    });
    let mut new_places = vec![None; old.len()];
    for slot in &table.slots {
        if let (Place::One(i), Place::One(j)) = (slot.old, slot.new) {
            new_places[i as usize] = Some(j as usize);
        }
    }
    let pairs: Vec<(usize, usize)> = new_places
        .into_iter()
        .enumerate()
        .filter_map(|(i, j)| Some((i, j?)))
        .collect();
    let chain = longest_increasing(&pairs);
    // Of pairs in random order, 2 √n are in the same one.
    if chain.len() * chain.len() < 16 * pairs.len() {
        return Vec::new();
    }
    chain
}

/// Calls `each` with the place and a hash of each run of `len` tokens.
fn hashes(tokens: &[u32], len: usize, mut each: impl FnMut(u32, u64)) {
    // A polynomial in an odd number, of which each token is a coefficient: the next run's hash
    // follows from the last.
    const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
    let leaving = (0..len).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = 0u64;
    for (i, &token) in tokens.iter().enumerate() {
        hash = hash.wrapping_mul(BASE).wrapping_add(u64::from(token) + 1);
        if i >= len {
            let left = u64::from(tokens[i - len]) + 1;
            hash = hash.wrapping_sub(left.wrapping_mul(leaving));
        }
        if i + 1 >= len {
            each((i + 1 - len) as u32, hash);
        }
    }
}

/// Where a run of tokens occurs.
#[derive(Clone, Copy)]
enum Place {
    None,
    One(u32),
    Many,
}

impl Place {
    fn add(&mut self, place: u32) {
        *self = match self {
            Place::None => Place::One(place),
            Place::One(_) | Place::Many => Place::Many,
        };
    }
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    old: Place,
    new: Place,
}

/// A hash table of runs; a slot whose run has no old place is free.
struct Occurrences {
    slots: Vec<Slot>,
    bits: u32,
}

impl Occurrences {
    fn new(runs: usize) -> Self {
        let free = Slot {
            hash: 0,
            old: Place::None,
            new: Place::None,
        };
        let bits = (2 * runs).next_power_of_two().trailing_zeros().max(1);
        Occurrences {
            slots: vec![free; 1 << bits],
            bits,
        }
    }

    /// The slot of a hash, or, if one may be taken, a free one.
    fn slot(&mut self, hash: u64, take: bool) -> Option<&mut Slot> {
        let mask = self.slots.len() - 1;
        let first = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> (64 - self.bits);
        let index = (0..PROBES)
            .map(|probe| (first as usize + probe) & mask)
            .find(|&index| {
                let slot = &self.slots[index];
                slot.hash == hash || matches!(slot.old, Place::None)
            })?;
        let slot = &mut self.slots[index];
        if matches!(slot.old, Place::None) {
            if !take {
                return None;
            }
            slot.hash = hash;
        }
        Some(slot)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of which none is there twice, from `first` on.
    fn distinct(first: u32, len: usize) -> Vec<u32> {
        (first..)
            .take(len)
            .map(|i| i.wrapping_mul(0x9E37_79B1))
            .collect()
    }

    #[test]
    fn runs_that_moved_far_are_found_where_they_are_now() {
        let old = distinct(0, 3000);
        // A third is gone, and as much is new before what is left of it.
        let new = [
            &distinct(10_000, 900),
            &old[..1000],
            &distinct(20_000, 100),
            &old[2000..],
        ]
        .concat();
        let found = anchors(&old, &new, 8);
        let kept = (0..993).map(|i| (i, 900 + i));
        let kept: Vec<_> = kept.chain((2000..2993).map(|i| (i, i))).collect();
        assert_eq!(found, kept);
    }

    #[test]
    fn what_is_not_there_once_in_each_is_no_anchor() {
        let old = distinct(0, 3000);
        assert_eq!(anchors(&old, &distinct(10_000, 3000), 8), []);
        assert_eq!(anchors(&old[..7], &old, 8), []);
        assert_eq!(anchors(&old, &old[..7], 8), []);
        // Every run is in the one or the other twice.
        let twice = [&old[..], &old[..]].concat();
        assert_eq!(anchors(&old, &twice, 8), []);
        assert_eq!(anchors(&twice, &old, 8), []);
    }

    #[test]
    fn as_many_in_one_order_as_chance_has_are_no_anchors() {
        let old = distinct(0, 3000);
        // Blocks in the opposite order: no more are in the same one than those of a block.
        let mut blocks: Vec<&[u32]> = old.chunks(100).collect();
        blocks.reverse();
        assert_eq!(anchors(&old, &blocks.concat(), 8), []);
        // All are, and sixteen are as many as it takes.
        assert_eq!(anchors(&old[..16], &old[..16], 1).len(), 16);
        assert_eq!(anchors(&old[..15], &old[..15], 1), []);
    }
}
