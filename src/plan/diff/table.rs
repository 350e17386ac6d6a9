//! The best edits by the table of all pairs of tokens, 64 entries at a time.
//!
//! Row `i` of the table says how many tokens the first `i` of one sequence share with the first
//! 0, 1, 2, … of the other. From one entry to the next the number grows by one or not at all, so a
//! row is a bit for each: 0 where it grows. The next row takes one addition for 64 entries, with
//! the bits of the places where its token is (Hyyrö, "Bit-parallel LCS-length computation
//! revisited", 2004). Only words in which the token is, or into which the addition carries, change:
//! of a token that is in few places no others are looked at.
//!
//! The way back from the last entry to the first goes through few parts of the table. So no more is
//! kept of it than each 256th row, and what each addition has carried into each 32nd word: from
//! these, the parts that the way goes through are made again.

use std::ops::Range;

use super::kept::{Kept, Run};
use super::work;

/// Rows of a part of the table, and words of each row.
const BLOCK: usize = 256;
const GROUP: usize = 32;

/// Pairs of tokens that are compared as a whole, two times 4096 tokens.
const PAIRS: usize = 1 << 24;

/// Side of wide windows, and pairs for each token of both sequences for which there is work once, in
/// one band or in all wide windows: two times 262 144 tokens can be compared as a whole.
const WIDE: usize = 1 << 17;

/// A longer sequence is not compared in one band: where bits start, `SELDOM` words for each token at most, stays far
/// below `SPARSE`.
const LONGEST: usize = SPARSE as usize / 64;

/// Of a sequence of at most so many tokens the table has a row's bits for all, however long the
/// other is.
const NARROW: usize = 2048;

/// The bits of a token are kept if it is in more places than there are words in a row, divided by
/// this. Of another the places are.
const SELDOM: usize = 4;

/// Rows that are made at once: their additions wait for each other's words, not for their ends.
const ROWS: usize = 4;

pub(super) struct Table {
    tokens: Vec<Places>,
    /// The places of all tokens of the sequence that has the columns, token by token.
    places: Vec<u32>,
    /// The bits of the tokens that are in many places: 1 where it is.
    bits: Vec<u64>,
    /// Each `BLOCK`th row, from the one before the first token on: the words in the band.
    rows: Vec<u64>,
    /// Where each of them starts.
    row_starts: Vec<usize>,
    /// Of each row a bit for each `GROUP`th word in the band: whether the addition carried into it.
    carries: Vec<u64>,
    /// The rows of one part of the table.
    part: Vec<u64>,
}

/// The places of one token.
#[derive(Clone, Copy)]
struct Places {
    /// Where they start in `places`, and how many there are.
    start: u32,
    len: u32,
    /// Where its bits start in `bits`, or `SPARSE`.
    bits: u32,
}

const SPARSE: u32 = u32::MAX;

impl Places {
    const NONE: Places = Places {
        start: 0,
        len: 0,
        bits: SPARSE,
    };
}

impl Table {
    /// For sequences of so many different tokens, numbered from 0 on.
    pub fn new(distinct: usize) -> Table {
        Table {
            tokens: vec![Places::NONE; distinct],
            places: Vec::new(),
            bits: Vec::new(),
            rows: Vec::new(),
            row_starts: Vec::new(),
            carries: Vec::new(),
            part: Vec::new(),
        }
    }

    /// Whether two sequences can be compared as a whole, in 64 steps for each token.
    pub fn holds(&self, old: usize, new: usize) -> bool {
        holds(old, new, PAIRS)
    }

    /// Whether two sequences that have at least so many tokens in common can be compared as a whole,
    /// once.
    pub fn holds_band(old: usize, new: usize, tokens: usize) -> bool {
        let band = (old + new - 2 * tokens).saturating_add(2 * 64 * GROUP);
        let pairs = old.max(new).saturating_mul(band.min(old.min(new)));
        pairs <= WIDE.saturating_mul(old + new) && old.max(new) <= LONGEST
    }

    /// The best that two sequences have in common, which is no less than so many tokens.
    pub fn whole(&mut self, old: &[u32], new: &[u32], tokens: usize) -> Kept {
        let mut kept = Kept::default();
        kept.extend_reversed(0, 0, &self.best(old, new, tokens));
        kept
    }

    /// What two sequences have in common, window by window.
    pub fn windows(&mut self, old: &[u32], new: &[u32]) -> Kept {
        let mut kept = Kept::default();
        self.compare_by(old, new, &mut kept, (0, 0), PAIRS);
        kept
    }

    /// The same in wide windows. They take `WIDE / 64` words for each token as a rule: half of each
    /// window is made again.
    pub fn wide_windows(&mut self, old: &[u32], new: &[u32]) -> Kept {
        let mut kept = Kept::default();
        self.compare_by(old, new, &mut kept, (0, 0), WIDE.saturating_mul(WIDE));
        kept
    }

    /// What two sequences have in common, whatever their length: as a whole if they can be compared
    /// so, or else window by window, where what lies in one window is not seen in another.
    pub fn compare(&mut self, old: &[u32], new: &[u32], kept: &mut Kept, at: (usize, usize)) {
        self.compare_by(old, new, kept, at, PAIRS);
    }

    /// [`compare`](Table::compare) in windows of so many pairs.
    fn compare_by(
        &mut self,
        old: &[u32],
        new: &[u32],
        kept: &mut Kept,
        at: (usize, usize),
        pairs: usize,
    ) {
        let (mut i, mut j) = (0, 0);
        loop {
            let (n, m) = (old.len() - i, new.len() - j);
            if holds(n, m, pairs) {
                let runs = self.best(&old[i..], &new[j..], 0);
                kept.extend_reversed(at.0 + i, at.1 + j, &runs);
                return;
            }
            // A window of the same proportions. What is found in its first half is good, for it
            // has another half to look ahead.
            let side = pairs as f64;
            let wide = ((side * n as f64 / m as f64).sqrt() as usize).clamp(2, n);
            let high = (pairs / wide).clamp(2, m);
            let runs = self.best(&old[i..i + wide], &new[j..j + high], 0);
            let (half_wide, half_high) = (wide / 2, high / 2);
            let mut next = (half_wide, half_high);
            for run in runs.iter().rev() {
                let room = half_wide
                    .saturating_sub(run.old)
                    .min(half_high.saturating_sub(run.new));
                let len = run.len.min(room);
                kept.push(at.0 + i + run.old, at.1 + j + run.new, len);
                if len < run.len {
                    let end = (run.old + len, run.new + len);
                    next = (end.0.min(half_wide), end.1.min(half_high));
                    break;
                }
            }
            i += next.0;
            j += next.1;
        }
    }

    /// The best that two sequences have in common, if it is no less than so many tokens: the last run
    /// first.
    fn best(&mut self, old: &[u32], new: &[u32], least: usize) -> Vec<Run> {
        if old.len() < new.len() {
            let mut runs = self.best(new, old, least);
            for run in &mut runs {
                (run.old, run.new) = (run.new, run.old);
            }
            return runs;
        }
        if new.is_empty() {
            return Vec::new();
        }
        let words = new.len().div_ceil(64);
        self.mark(new, words);
        let band = Band {
            left: old.len() - least,
            right: new.len() - least,
            words,
        };
        self.fill(old, words, &band);
        let runs = self.way_back(old, new, words, &band);
        for &token in new {
            self.tokens[token as usize] = Places::NONE;
        }
        runs
    }

    /// Finds the places of the tokens, and their bits.
    fn mark(&mut self, tokens: &[u32], words: usize) {
        for &token in tokens {
            self.tokens[token as usize].len += 1;
        }
        self.places.clear();
        self.places.resize(tokens.len(), 0);
        self.bits.clear();
        let mut free = 0;
        for &token in tokens {
            let token = &mut self.tokens[token as usize];
            if token.start == 0 {
                // One more than where they start until they are all there.
                token.start = free + 1;
                free += token.len;
                if token.len as usize * SELDOM > words {
                    token.bits = self.bits.len() as u32;
                    self.bits.resize(self.bits.len() + words, 0);
                }
                token.len = 0;
            }
        }
        for (place, &token) in tokens.iter().enumerate() {
            let token = &mut self.tokens[token as usize];
            self.places[(token.start - 1 + token.len) as usize] = place as u32;
            token.len += 1;
            if token.bits != SPARSE {
                self.bits[token.bits as usize + place / 64] |= 1 << (place % 64);
            }
        }
    }

    /// The places of a token in some words.
    fn places_of(&self, token: u32, words: Range<usize>) -> &[u32] {
        let Places { start, len, .. } = self.tokens[token as usize];
        let places = &self.places[(start.max(1) - 1) as usize..][..len as usize];
        let before = |word: usize| places.partition_point(|&at| (at as usize) < 64 * word);
        &places[before(words.start)..before(words.end)]
    }

    fn bits_of(&self, token: u32, words: usize) -> Option<&[u64]> {
        let start = self.tokens[token as usize].bits;
        (start != SPARSE).then(|| &self.bits[start as usize..][..words])
    }

    /// Makes all rows, and keeps each `BLOCK`th and the carries.
    fn fill(&mut self, old: &[u32], words: usize, band: &Band) {
        let stride = band.stride();
        let mut rows = std::mem::take(&mut self.rows);
        let mut carries = std::mem::take(&mut self.carries);
        rows.clear();
        self.row_starts.clear();
        carries.clear();
        carries.resize(old.len() * stride, 0);
        let mut row = vec![u64::MAX; words];
        let blocks = old.chunks(BLOCK).zip(carries.chunks_mut(BLOCK * stride));
        for (block, (tokens, carries)) in blocks.enumerate() {
            let inside = band.words(block);
            let first = inside.start;
            let row = &mut row[inside];
            self.row_starts.push(rows.len());
            rows.extend_from_slice(row);
            let mut at = 0;
            while at < tokens.len() {
                let carries = &mut carries[at * stride..];
                let bits = |i: usize| {
                    let bits = self.bits_of(*tokens.get(at + i)?, words)?;
                    Some(&bits[first..][..row.len()])
                };
                if let (Some(a), Some(b), Some(c), Some(d)) = (bits(0), bits(1), bits(2), bits(3)) {
                    advance::<ROWS>(row, [a, b, c, d], carries, stride);
                    at += ROWS;
                    continue;
                }
                if let Some(bits) = bits(0) {
                    advance::<1>(row, [bits], carries, stride);
                } else {
                    let places = self.places_of(tokens[at], first..first + row.len());
                    advance_few(row, first, places, false, |word| {
                        let group = word / GROUP;
                        carries[group / 64] |= u64::from(word % GROUP == 0) << (group % 64);
                    });
                }
                at += 1;
            }
        }
        self.rows = rows;
        self.carries = carries;
    }

    /// The way from the last entry to the first, part by part.
    fn way_back(&mut self, old: &[u32], new: &[u32], words: usize, band: &Band) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let (mut row, mut column) = (old.len(), new.len());
        while row > 0 && column > 0 {
            let (block, group) = ((row - 1) / BLOCK, (column - 1) / 64 / GROUP);
            let (first_row, first_word) = (block * BLOCK, group * GROUP);
            let wide = GROUP.min(words - first_word);
            self.make_part(&old[first_row..row], block, group, words, band);
            while row > first_row && column > first_word * 64 {
                let (word, bit) = ((column - 1) / 64 - first_word, (column - 1) % 64);
                if old[row - 1] == new[column - 1] {
                    row -= 1;
                    column -= 1;
                    match runs.last_mut() {
                        Some(run) if run.old == row + 1 && run.new == column + 1 => {
                            *run = Run {
                                old: row,
                                new: column,
                                len: run.len + 1,
                            };
                        }
                        _ => runs.push(Run {
                            old: row,
                            new: column,
                            len: 1,
                        }),
                    }
                } else if self.part[(row - first_row) * wide + word] >> bit & 1 == 1 {
                    column -= 1;
                } else {
                    row -= 1;
                }
            }
        }
        runs
    }

    /// Makes the rows of a part again, the one before its first token and those of its tokens.
    fn make_part(&mut self, tokens: &[u32], block: usize, group: usize, words: usize, band: &Band) {
        let stride = band.stride();
        let inside = band.words(block);
        let first = group * GROUP;
        let wide = GROUP.min(words - first);
        let mut part = std::mem::take(&mut self.part);
        part.clear();
        let row = self.row_starts[block] + first - inside.start;
        part.extend_from_slice(&self.rows[row..][..wide]);
        let group = group - inside.start / GROUP;
        for (i, &token) in tokens.iter().enumerate() {
            part.extend_from_within(i * wide..);
            let row = &mut part[(i + 1) * wide..];
            let carries = &self.carries[(block * BLOCK + i) * stride..][..stride];
            let carry = carries[group / 64] >> (group % 64) & 1 == 1;
            if let Some(bits) = self.bits_of(token, words) {
                let bits = &bits[first..][..wide];
                let mut carry = carry;
                for (word, &bits) in row.iter_mut().zip(bits) {
                    (*word, carry) = step(*word, bits, carry);
                }
                work::done(wide);
            } else {
                let places = self.places_of(token, first..first + wide);
                advance_few(row, first, places, carry, |_| {});
            }
        }
        self.part = part;
    }
}

/// Whether two sequences have at most so many pairs, or few columns.
fn holds(old: usize, new: usize, pairs: usize) -> bool {
    old.min(new) <= NARROW || old.saturating_mul(new) <= pairs
}

/// The entries that the way back can go through: so many columns left of the row's number, for it
/// skips so many tokens of the rows at most, and so many right of it. Where what is left of them in
/// a row is not changed any more, and what is right of them not yet, the others are as they would
/// be if no tokens were the same outside.
struct Band {
    left: usize,
    right: usize,
    /// Words of a row, outside and inside.
    words: usize,
}

impl Band {
    /// The words of the rows of a block, in whole groups.
    fn words(&self, block: usize) -> Range<usize> {
        let first = (block * BLOCK).saturating_sub(self.left);
        let end = (block + 1) * BLOCK + self.right;
        let (first, end) = (first / (64 * GROUP), end.div_ceil(64 * GROUP));
        first * GROUP..self.words.min(end * GROUP)
    }

    /// Words for a bit for each group of a row.
    fn stride(&self) -> usize {
        let wide = (self.left + BLOCK + self.right).div_ceil(64 * GROUP) + 1;
        wide.min(self.words.div_ceil(GROUP)).div_ceil(64)
    }
}

/// From one row to those of the next `N` tokens, which have these bits. Each has `stride`
/// words of `carries`.
fn advance<const N: usize>(row: &mut [u64], bits: [&[u64]; N], carries: &mut [u64], stride: usize) {
    work::done(N * row.len());
    let mut carry = [false; N];
    for (group, row) in row.chunks_mut(GROUP).enumerate() {
        for (i, &carry) in carry.iter().enumerate() {
            carries[i * stride + group / 64] |= u64::from(carry) << (group % 64);
        }
        let bits = bits.map(|bits| &bits[group * GROUP..][..row.len()]);
        for (at, word) in row.iter_mut().enumerate() {
            for (bits, carry) in bits.iter().zip(&mut carry) {
                (*word, *carry) = step(*word, bits[at], *carry);
            }
        }
    }
}

/// From one row, or its words from the `first` on, to that of the next token, which is in these
/// places. `carried` is called for each word that is carried into, counted from the first of these.
fn advance_few(
    row: &mut [u64],
    first: usize,
    places: &[u32],
    mut carry: bool,
    mut carried: impl FnMut(usize),
) {
    let (mut at, mut next) = (0, 0);
    let mut steps = 0;
    loop {
        if !carry {
            let Some(&place) = places.get(next) else {
                break;
            };
            at = place as usize / 64 - first;
        }
        let Some(word) = row.get_mut(at) else {
            break;
        };
        let mut bits = 0;
        while let Some(&place) = places.get(next)
            && place as usize / 64 == first + at
        {
            bits |= 1 << (place % 64);
            next += 1;
        }
        (*word, carry) = step(*word, bits, carry);
        at += 1;
        steps += 1;
        if carry && at < row.len() {
            carried(at);
        }
    }
    work::done(steps);
}

/// One word of the next row, and what is carried into the word behind it.
#[inline(always)]
fn step(word: u64, bits: u64, carry: bool) -> (u64, bool) {
    let (sum, over) = word.overflowing_add(word & bits);
    let (sum, again) = sum.overflowing_add(u64::from(carry));
    (sum | (word & !bits), over | again)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::longest::common;
    use super::*;

    const VOCABULARY: u32 = 1000;

    /// Half of the tokens are a few that are everywhere, so that a table has the bits of some and the places of others.
    fn noise(random: &mut SmallRng, len: usize) -> Vec<u32> {
        let mut token = |_| match random.random() {
            true => random.random_range(0..8),
            false => random.random_range(0..VOCABULARY),
        };
        (0..len).map(&mut token).collect()
    }

    /// The same tokens, but for one in so many: replaced, removed, or one more behind it.
    fn edited(random: &mut SmallRng, tokens: &[u32], one_in: u32) -> Vec<u32> {
        let mut edited = Vec::new();
        for &token in tokens {
            match random.random_range(0..3 * one_in) {
                0 => {}
                1 => edited.push(random.random_range(0..VOCABULARY)),
                2 => edited.extend([token, random.random_range(0..VOCABULARY)]),
                _ => edited.push(token),
            }
        }
        edited
    }

    /// How many tokens are kept, all of which are where they are said to be.
    fn kept(old: &[u32], new: &[u32], kept: &Kept) -> usize {
        let (mut i, mut j) = (0, 0);
        for run in kept.runs() {
            assert!(run.len > 0 && run.old >= i && run.new >= j, "{run:?}");
            (i, j) = (run.old + run.len, run.new + run.len);
            assert_eq!(old[run.old..i], new[run.new..j], "{run:?}");
        }
        kept.tokens()
    }

    #[test]
    fn as_a_whole_nothing_is_missed() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut table = Table::new(VOCABULARY as usize);
        // One more and one less than words, blocks and groups.
        for (old, new) in [
            (0, 5),
            (1, 1),
            (64, 63),
            (65, 64),
            (257, 65),
            (300, 700),
            (512, 512),
            (2300, 2047),
            (2300, 2049),
            (5000, 4600),
        ] {
            let (old, new) = (noise(&mut random, old), noise(&mut random, new));
            let like_old = edited(&mut random, &old, 10);
            for new in [new, like_old] {
                for (old, new) in [(&old, &new), (&new, &old)] {
                    let found = kept(old, new, &table.whole(old, new, 0));
                    assert_eq!(found, common(old, new), "{} {}", old.len(), new.len());
                }
            }
        }
    }

    /// No way but that from corner to corner is wanted, and nothing far from it is looked at.
    #[test]
    fn in_a_band_nothing_is_missed() {
        let mut random = SmallRng::seed_from_u64(2);
        let mut table = Table::new(VOCABULARY as usize);
        for (removed, one_in) in [(0, 1000), (3000, 100), (6000, 20)] {
            let old = noise(&mut random, 20_000);
            let mut new = edited(&mut random, &old, one_in);
            // The way starts in another part of the rows.
            new.drain(..removed);
            let most = common(&old, &new);
            for (old, new) in [(&old, &new), (&new, &old)] {
                for least in [most, most - 1, most - 500] {
                    work::taken();
                    assert_eq!(kept(old, new, &table.whole(old, new, least)), most);
                    // Whole groups of both ends of the band, in a block of rows, and parts that are made again.
                    let band = old.len() + new.len() - 2 * least + BLOCK + 2 * 64 * GROUP;
                    let words = old.len().max(new.len()) * (band / 64 + 2 * GROUP);
                    let work = work::taken();
                    assert!(work <= words, "{removed}, {least}: {work}, not {words}");
                }
            }
        }
    }

    /// The carries of a row take more than one word if it has more than 64 groups.
    #[test]
    fn in_long_rows_nothing_is_missed() {
        let mut random = SmallRng::seed_from_u64(3);
        for more in [0, 5000] {
            let len = 64 * 64 * GROUP + more;
            let new = noise(&mut random, len);
            // More rows than columns, of which only the last 500 change anything.
            let old = [vec![VOCABULARY; len], noise(&mut random, 500)].concat();
            let mut table = Table::new(VOCABULARY as usize + 1);
            let found = table.whole(&old, &new, 0);
            assert_eq!(kept(&old, &new, &found), common(&old, &new));
        }
    }

    #[test]
    fn all_words_are_counted() {
        let mut random = SmallRng::seed_from_u64(5);
        let mut tokens = |len, vocabulary| -> Vec<u32> {
            (0..len)
                .map(|_| random.random_range(0..vocabulary))
                .collect()
        };
        let mut table = Table::new(10_000);
        let mut work = |old: &[u32], new: &[u32]| {
            work::taken();
            table.whole(old, new, 0);
            work::taken()
        };
        // Every word of every row, and of each row a group of words once more, on the way back.
        let words = work(&tokens(6400, 8), &tokens(6400, 8));
        assert!((640_000..1_000_000).contains(&words), "{words}");
        // Only where the tokens are, and where that is carried to.
        let words = work(&tokens(6400, 10_000), &tokens(6400, 10_000));

        assert!((15_000..16_000).contains(&words), "{words}");
    }

    #[test]
    fn what_can_be_compared_as_a_whole() {
        let table = Table::new(0);
        assert!(table.holds(4096, 4096) && !table.holds(4096, 4097));
        assert!(table.holds(NARROW, 1 << 30) && table.holds(1 << 30, NARROW));
        assert!(!table.holds(NARROW + 1, 1 << 30) && table.holds(NARROW + 1, 8188));
        let holds = Table::holds_band;
        assert!(holds(262_144, 262_144, 0) && !holds(262_145, 262_145, 0));
        assert!(holds(600_000, 167_708, 0) && !holds(600_000, 167_709, 0));
        assert!(holds(167_708, 600_000, 0) && !holds(167_709, 600_000, 0));
        // What `Edit::between` says of what was removed and inserted.
        for len in [1 << 20, LONGEST] {
            assert!(holds(len, len, len - 129_024) && !holds(len, len, len - 129_025));
            assert!(holds(len, len - 126_976, len - 126_976));
        }
        // A sequence of 2²⁶ tokens is too long.
        assert!(holds(LONGEST, 10, 10) && LONGEST + 1 == 1 << 26);
        assert!(!holds(LONGEST + 1, 10, 10));
    }

    #[test]
    fn window_by_window_little_is_missed() {
        let mut random = SmallRng::seed_from_u64(4);
        let mut table = Table::new(VOCABULARY as usize);
        let old = noise(&mut random, 20_000);
        let new = edited(&mut random, &old, 20);
        // Every third token is gone: the way does not go from window to window by the same number of tokens in both.
        let thinned: Vec<u32> = old
            .chunks(3)
            .flat_map(|three| &three[1..])
            .copied()
            .collect();
        // What was inserted fills much of a window.
        let longer: Vec<u32> = old
            .chunks(3500)
            .flat_map(|part| [part, &noise(&mut random, 1200)].concat())
            .collect();
        for new in [new, thinned, longer] {
            for (old, new) in [(&old, &new), (&new, &old)] {
                work::taken();
                let found = kept(old, new, &table.windows(old, new));
                let work = work::taken();
                assert!(work <= 128 * (old.len() + new.len()), "{work}");
                let most = common(old, new);
                assert!(most - found <= most / 500, "{found}, not {most}");

                // As a part of something longer.
                let mut part = Kept::default();
                table.compare(old, new, &mut part, (100, 7));
                let shifted = |run: &Run| (run.old + 100, run.new + 7, run.len);
                let all = |kept: &Kept| {
                    kept.runs()
                        .iter()
                        .map(|run| (run.old, run.new, run.len))
                        .collect::<Vec<_>>()
                };
                let expected: Vec<_> = table.windows(old, new).runs().iter().map(shifted).collect();
                assert_eq!(all(&part), expected);
                // A wide window holds all of it.
                assert_eq!(kept(old, new, &table.wide_windows(old, new)), most);
            }
        }
    }
}
