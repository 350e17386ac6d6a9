//! What stays in its place: old and new tokens compared one by one, from the front up to some
//! token, and from the back down to it.

use super::kept::Kept;

/// What two sequences have in common at the same distance from the front, up to the best token,
/// and at the same distance from the back behind it.
pub(super) fn compare(old: &[u32], new: &[u32]) -> Kept {
    let len = old.len().min(new.len());
    let (old_end, new_end) = (&old[old.len() - len..], &new[new.len() - len..]);
    // The split moves through the sequences: one pair more at the front, one less at the back.
    let mut same = old_end.iter().zip(new_end).filter(|(a, b)| a == b).count();
    let (mut most, mut split) = (same, 0);
    for i in 0..len {
        same += usize::from(old[i] == new[i]);
        same -= usize::from(old_end[i] == new_end[i]);
        if same > most {
            (most, split) = (same, i + 1);
        }
    }
    let mut kept = Kept::default();
    for i in 0..split {
        kept.push(i, i, usize::from(old[i] == new[i]));
    }
    for i in split..len {
        let (old_place, new_place) = (old.len() - len + i, new.len() - len + i);
        kept.push(old_place, new_place, usize::from(old_end[i] == new_end[i]));
    }
    kept
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::compare;

    #[test]
    fn no_split_keeps_more() {
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..3000 {
            let mut tokens = || -> Vec<u32> {
                let len = random.random_range(0..12);
                (0..len).map(|_| random.random_range(0..4)).collect()
            };
            let (old, new) = (tokens(), tokens());
            let len = old.len().min(new.len());
            let kept = |split| {
                let front = (0..split).filter(|&i| old[i] == new[i]);
                let back = (1..=len - split).filter(|i| old[old.len() - i] == new[new.len() - i]);
                front.count() + back.count()
            };
            let found = compare(&old, &new);
            assert_eq!(Some(found.tokens()), (0..=len).map(kept).max());
            for run in found.runs() {
                assert_eq!(old[run.old..][..run.len], new[run.new..][..run.len]);
                let from_back = (old.len() - run.old, new.len() - run.new);
                assert!(run.old == run.new || from_back.0 == from_back.1);
            }
        }
    }
}
