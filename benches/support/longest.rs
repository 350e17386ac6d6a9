//! How long the longest common subsequence of two token sequences is, however long it takes to find
//! out: what the diff is measured by. It shares no code with the diff.

use std::collections::HashMap;

/// By the bits of one row, after Crochemore and others, "A fast and practical bit-vector algorithm
/// for the longest common subsequence problem", 2001: a bit is set where the length does not grow.
pub fn common(old: &[u32], new: &[u32]) -> usize {
    let words = new.len().div_ceil(64);
    let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
    for (place, &token) in new.iter().enumerate() {
        places.entry(token).or_default().push(place);
    }
    // The bits of a token stay if it is frequent; of another they are made each time.
    let frequent: HashMap<u32, Vec<u64>> = places
        .iter()
        .filter(|(_, places)| places.len() > words / 4)
        .map(|(&token, places)| {
            let mut bits = vec![0; words];
            set(&mut bits, places);
            (token, bits)
        })
        .collect();
    let mut row = vec![u64::MAX; words];
    let mut seldom = vec![0; words];
    for token in old {
        if let Some(bits) = frequent.get(token) {
            next(&mut row, bits);
        } else if let Some(places) = places.get(token) {
            set(&mut seldom, places);
            next(&mut row, &seldom);
            for &place in places {
                seldom[place / 64] = 0;
            }
        }
    }
    row.iter().map(|word| word.count_zeros() as usize).sum()
}

fn set(bits: &mut [u64], places: &[usize]) {
    for &place in places {
        bits[place / 64] |= 1 << (place % 64);
    }
}

fn next(row: &mut [u64], bits: &[u64]) {
    let mut carry = 0;
    for (word, bits) in row.iter_mut().zip(bits) {
        let sum = u128::from(*word) + u128::from(*word & bits) + carry;
        carry = sum >> 64;
        *word = sum as u64 | (*word & !bits);
    }
}
