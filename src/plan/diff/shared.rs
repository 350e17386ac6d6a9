//! The tokens that occur in both sequences, and where.
//!
//! A token that only one of them has cannot be kept. Without such tokens the sequences are shorter
//! and more alike, and the best edits between them are the best edits between all.

use std::collections::HashMap;

use super::kept::Kept;

/// Both sequences without the tokens that only one of them has, and with those that are left
/// numbered from 0 on.
pub(super) struct Shared {
    pub old: Vec<u32>,
    pub new: Vec<u32>,
    /// How many different tokens there are.
    pub distinct: usize,
    old_places: Vec<usize>,
    new_places: Vec<usize>,
}

impl Shared {
    pub fn of(old: &[u32], new: &[u32]) -> Shared {
        const UNSEEN: u32 = u32::MAX;
        // Numbers go to tokens of the old sequence when the new one turns out to have them.
        let mut numbers: HashMap<u32, u32> = HashMap::with_capacity(old.len());
        numbers.extend(old.iter().map(|&token| (token, UNSEEN)));
        let mut distinct = 0;
        let mut shared = Shared {
            old: Vec::new(),
            new: Vec::new(),
            distinct: 0,
            old_places: Vec::new(),
            new_places: Vec::new(),
        };
        for (place, token) in new.iter().enumerate() {
            if let Some(number) = numbers.get_mut(token) {
                if *number == UNSEEN {
                    *number = distinct;
                    distinct += 1;
                }
                shared.new.push(*number);
                shared.new_places.push(place);
            }
        }
        for (place, token) in old.iter().enumerate() {
            let number = numbers[token];
            if number != UNSEEN {
                shared.old.push(number);
                shared.old_places.push(place);
            }
        }
        shared.distinct = distinct as usize;
        shared
    }

    /// What these tokens have in common, as places in the sequences.
    pub fn places(&self, shared: &Kept) -> Kept {
        let mut kept = Kept::default();
        for run in shared.runs() {
            for i in 0..run.len {
                kept.push(
                    self.old_places[run.old + i],
                    self.new_places[run.new + i],
                    1,
                );
            }
        }
        kept
    }
}
