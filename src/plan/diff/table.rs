//! The best edits by the table of all pairs of tokens, 64 entries at a time.
//!
//! Row `i` of the table says how many tokens the first `i` of one sequence share with the first
//! 0, 1, 2, … of the other. From one entry to the next the number grows by one or not at all, so a
//! row is a bit for each: 0 where it grows. The next row takes one addition for 64 entries, with
//! the bits of the places where its token is (Hyyrö, "Bit-parallel LCS-length computation
//! revisited", 2004).

use super::kept::{Kept, Run};

/// Words of a table, 2 MiB: two times 4096 tokens.
const WORDS: usize = 1 << 18;

/// Of a sequence of at most so many tokens the table has a row's bits for all, however long the
/// other is.
const NARROW: usize = 2048;

#[derive(Default)]
pub(super) struct Table {
    /// Of each token, where its bits start in `bits`, if it has any.
    starts: Vec<u32>,
    /// The bits of each token: 1 where it is.
    bits: Vec<u64>,
    rows: Vec<u64>,
}

const NOWHERE: u32 = u32::MAX;

impl Table {
    /// For sequences of so many different tokens, numbered from 0 on.
    pub fn new(distinct: usize) -> Table {
        Table {
            starts: vec![NOWHERE; distinct],
            ..Table::default()
        }
    }

    /// Whether two sequences can be compared as a whole, in 64 steps for each token.
    pub fn holds(old: usize, new: usize) -> bool {
        old.min(new) <= NARROW || old.saturating_mul(new) <= 64 * WORDS
    }

    /// What two sequences have in common, whatever their length: as a whole if they can be
    /// compared so, or else window by window, where what lies in one window is not seen in
    /// another.
    pub fn compare(&mut self, old: &[u32], new: &[u32], kept: &mut Kept, at: (usize, usize)) {
        let (mut i, mut j) = (0, 0);
        while i < old.len() && j < new.len() {
            let (n, m) = (old.len() - i, new.len() - j);
            if Table::holds(n, m) {
                let runs = self.best(&old[i..], &new[j..]);
                kept.extend_reversed(at.0 + i, at.1 + j, &runs);
                return;
            }
            // A window of the same proportions. What is found in its first half is good, for it
            // has another half to look ahead.
            let side = (64 * WORDS) as f64;
            let wide = ((side * n as f64 / m as f64).sqrt() as usize).clamp(2, n);
            let high = (64 * WORDS / wide).clamp(2, m);
            let runs = self.best(&old[i..i + wide], &new[j..j + high]);
            let (half_wide, half_high) = (wide / 2, high / 2);
            let (mut x, mut y) = (0, 0);
            let mut next = (wide, high);
            for run in runs.iter().rev() {
                let room = half_wide
                    .saturating_sub(run.old)
                    .min(half_high.saturating_sub(run.new));
                let len = run.len.min(room);
                kept.push(at.0 + i + run.old, at.1 + j + run.new, len);
                if len > 0 {
                    (x, y) = (run.old + len, run.new + len);
                }
                if len < run.len {
                    next = (run.old + len, run.new + len);
                    break;
                }
            }
            i += x.max(next.0.min(half_wide));
            j += y.max(next.1.min(half_high));
        }
    }

    /// The best that two sequences have in common, the last run first.
    fn best(&mut self, old: &[u32], new: &[u32]) -> Vec<Run> {
        if old.len() < new.len() {
            let mut runs = self.best(new, old);
            for run in &mut runs {
                (run.old, run.new) = (run.new, run.old);
            }
            return runs;
        }
        let words = new.len().div_ceil(64);
        self.mark(new, words);
        // As many rows as there is room for, from the last ones on; where each block starts is
        // found first.
        let block = (WORDS / words).min(old.len());
        let mut states = vec![u64::MAX; words];
        for (tokens, at) in old.chunks(block).zip(0..) {
            states.extend_from_within(at * words..);
            if (at + 1) * block < old.len() {
                let state = &mut states[(at + 1) * words..];
                for &token in tokens {
                    advance(state, self.bits_of(token, words));
                }
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut column = new.len();
        let blocks = old.chunks(block).enumerate();
        for (at, tokens) in blocks.rev() {
            let mut rows = std::mem::take(&mut self.rows);
            rows.clear();
            rows.extend_from_slice(&states[at * words..(at + 1) * words]);
            for (row, &token) in tokens.iter().enumerate() {
                rows.extend_from_within(row * words..);
                advance(&mut rows[(row + 1) * words..], self.bits_of(token, words));
            }
            let mut row = tokens.len();
            while row > 0 && column > 0 {
                if tokens[row - 1] == new[column - 1] {
                    row -= 1;
                    column -= 1;
                    let old = at * block + row;
                    match runs.last_mut() {
                        Some(run) if run.old == old + 1 && run.new == column + 1 => {
                            *run = Run {
                                old,
                                new: column,
                                len: run.len + 1,
                            };
                        }
                        _ => runs.push(Run {
                            old,
                            new: column,
                            len: 1,
                        }),
                    }
                } else if rows[row * words + (column - 1) / 64] >> ((column - 1) % 64) & 1 == 1 {
                    column -= 1;
                } else {
                    row -= 1;
                }
            }
            self.rows = rows;
        }
        for &token in new {
            self.starts[token as usize] = NOWHERE;
        }
        runs
    }

    /// Makes the bits of the tokens of a sequence.
    fn mark(&mut self, tokens: &[u32], words: usize) {
        self.bits.clear();
        for (place, &token) in tokens.iter().enumerate() {
            let start = &mut self.starts[token as usize];
            if *start == NOWHERE {
                *start = self.bits.len() as u32;
                self.bits.resize(self.bits.len() + words, 0);
            }
            self.bits[*start as usize + place / 64] |= 1 << (place % 64);
        }
    }

    fn bits_of(&self, token: u32, words: usize) -> Option<&[u64]> {
        let start = self.starts[token as usize];
        (start != NOWHERE).then(|| &self.bits[start as usize..start as usize + words])
    }
}

/// From one row to the next, whose token has these bits.
fn advance(row: &mut [u64], bits: Option<&[u64]>) {
    let Some(bits) = bits else { return };
    let mut carry = false;
    for (word, &bits) in row.iter_mut().zip(bits) {
        let matching = *word & bits;
        let (sum, over) = word.overflowing_add(matching);
        let (sum, again) = sum.overflowing_add(u64::from(carry));
        carry = over || again;
        *word = sum | (*word & !bits);
    }
}
