//! The work that a comparison has taken, for the test that it is bounded: points of `few` and words
//! of the table.

#[cfg(test)]
thread_local! {
    static DONE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts so many points or words.
#[inline(always)]
pub(super) fn done(_work: usize) {
    #[cfg(test)]
    DONE.set(DONE.get() + _work);
}

/// What was counted since the last call, in this thread.
#[cfg(test)]
pub(super) fn taken() -> usize {
    DONE.replace(0)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::taken;
    use crate::Edit;

    /// Work that grows with the number of pairs would be 2³² words, 4096 for each token.
    #[test]
    fn hostile_sequences_take_no_quadratic_work() {
        let n = 1u32 << 19;
        let noise = |seed: u64, vocabulary: u32| -> Vec<u32> {
            let mut random = SmallRng::seed_from_u64(seed);
            (0..n).map(|_| random.random_range(0..vocabulary)).collect()
        };
        let up: Vec<u32> = (0..n).collect();
        let down: Vec<u32> = up.iter().rev().copied().collect();
        let replaced = |(i, token): (usize, &u32)| token + n * (i as u32 % 2);
        let every_second: Vec<u32> = up.iter().enumerate().map(replaced).collect();
        let block = |at: usize| [&noise(3, 2)[..at], &noise(4, 2)[at..]].concat();
        for (name, old, new) in [
            ("nothing in common", up.clone(), (n..2 * n).collect()),
            ("every second replaced", up.clone(), every_second),
            ("reversed", up, down),
            ("noise of 2", noise(1, 2), noise(2, 2)),
            ("noise of 100", noise(1, 100), noise(2, 100)),
            ("noise of 10 000", noise(1, 10_000), noise(2, 10_000)),
            ("a third that is the same", block(200_000), noise(3, 2)),
        ] {
            taken();
            Edit::between(&old, &new);
            let work = taken();
            println!("{name}: {work}");
            let most = 2450 * (old.len() + new.len());
            assert!(work <= most, "{name}: {work}, not {most}");
        }
    }
}
