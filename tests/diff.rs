//! The edits that are found between two token sequences: that they make one of the other, that they
//! are good, and that no input takes them long.

#[path = "../benches/support/longest.rs"]
mod longest;
#[path = "../benches/support/texts.rs"]
mod texts;

use pie_rope::{Edit, Plan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// The edits between two sequences: in old order, none without effect, a kept token between any two,
/// and what they keep is the same on both sides.
fn check(old: &[u32], new: &[u32]) -> Vec<Edit> {
    let edits = Edit::between(old, new);
    let (mut at_old, mut at_new) = (0, 0);
    for (i, edit) in edits.iter().enumerate() {
        assert!(edit.insert > 0 || !edit.range.is_empty(), "edit {i}");
        assert!(i == 0 || edit.range.start > at_old, "edit {i}");
        let kept = edit.range.start - at_old;
        assert_eq!(
            old[at_old..][..kept],
            new[at_new..][..kept],
            "before edit {i}"
        );
        (at_old, at_new) = (edit.range.end, at_new + kept + edit.insert);
    }
    assert_eq!(old[at_old..], new[at_new..], "behind the last edit");
    edits
}

/// Tokens to encode.
fn encode(edits: &[Edit]) -> usize {
    edits.iter().map(|edit| edit.insert).sum()
}

/// The fewest tokens to encode that there can be.
fn fewest(old: &[u32], new: &[u32]) -> usize {
    new.len() - longest::common(old, new)
}

/// Tokens to encode if only those are kept that are as far from the front as they were, up to some
/// token, and as far from the back behind it: the best such token, each of them tried.
fn in_place(old: &[u32], new: &[u32]) -> usize {
    let len = old.len().min(new.len());
    let back = |i: usize| old[old.len() - i] == new[new.len() - i];
    let mut behind = (1..=len).filter(|&i| back(i)).count();
    let mut kept = behind;
    let mut before = 0;
    for i in 0..len {
        before += usize::from(old[i] == new[i]);
        behind -= usize::from(back(len - i));
        kept = kept.max(before + behind);
    }
    new.len() - kept
}

/// The longest common subsequence, by definition.
fn common(old: &[u32], new: &[u32]) -> usize {
    let mut row = vec![0; new.len() + 1];
    for old in old {
        let mut diagonal = 0;
        for (j, new) in new.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if old == new {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[new.len()]
}

/// Tokens out of a vocabulary of some size, small ones most often.
fn tokens(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    (1..6u32, len).prop_flat_map(|(k, len)| vec(0..k, len))
}

/// Sequences made of pieces: some random, some that repeat a short motif, some that repeat an earlier
/// piece.
fn pieces() -> impl Strategy<Value = Vec<u32>> {
    let piece = (vec(0..400u32, 1..9), 0..3u8, 0..2000usize, any::<Index>());
    vec(piece, 0..12).prop_map(|pieces| {
        let mut tokens: Vec<u32> = Vec::new();
        for (motif, kind, len, at) in pieces {
            match kind {
                0 => tokens.extend(motif.iter().cycle().take(len)),
                1 => {
                    let scattered = |i: u32| (i + motif[0]).wrapping_mul(2_654_435_761) >> 20;
                    tokens.extend((0..len as u32).map(|i| scattered(i) % (motif[0] + 1)));
                }
                _ => {
                    let at = at.index(tokens.len() + 1);
                    tokens.extend_from_within(at..(at + len).min(tokens.len()));
                }
            }
        }
        tokens
    })
}

/// A random edit of a token list: old range (as fractions), new tokens.
fn mutations() -> impl Strategy<Value = Vec<(Index, usize, Vec<u32>)>> {
    vec((any::<Index>(), 0..9usize, vec(0..5000u32, 0..9)), 0..30)
}

fn mutated(tokens: &[u32], mutations: &[(Index, usize, Vec<u32>)]) -> Vec<u32> {
    let mut new = tokens.to_vec();
    for (at, remove, insert) in mutations {
        let at = at.index(new.len() + 1);
        new.splice(at..(at + remove).min(new.len()), insert.iter().copied());
    }
    new
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn short_sequences_get_good_edits(
        (old, new) in (tokens(0..60), tokens(0..60)),
        (longer, other) in (tokens(0..700), tokens(0..700)),
    ) {
        for (old, new) in [(&old, &new), (&old, &longer), (&longer, &new), (&longer, &other)] {
            let best = common(old, new);
            prop_assert_eq!(longest::common(old, new), best);
            let found = encode(&check(old, new));
            let least = new.len() - best;
            prop_assert!(found <= least + least / 5, "{} tokens to encode, not {}", found, least);
        }
    }

    #[test]
    fn few_edits_of_a_long_sequence_are_good(
        old in (1..5000u32).prop_flat_map(|k| vec(0..k, 6000..7000)),
        mutations in mutations(),
    ) {
        let new = mutated(&old, &mutations);
        let (found, least) = (encode(&check(&old, &new)), fewest(&old, &new));
        prop_assert!(found <= least + least / 2, "{} tokens to encode, not {}", found, least);
    }

    #[test]
    fn what_does_not_change_is_kept(mutations in mutations()) {
        let old: Vec<u32> = (10_000..14_000).collect();
        let new = mutated(&old, &mutations);
        let removed: usize = mutations.iter().map(|(_, remove, _)| remove).sum();
        let edits = check(&old, &new);
        prop_assert!(new.len() - encode(&edits) >= old.len() - removed);
        prop_assert!(edits.len() <= mutations.len());
    }

    #[test]
    fn no_comparison_in_place_is_better((old, new) in (pieces(), pieces()), shared in pieces()) {
        let (front, back) = ([&shared[..], &old].concat(), [&shared[..], &new].concat());
        for (old, new) in [(&old, &new), (&old, &front), (&front, &back), (&back, &old)] {
            prop_assert!(encode(&check(old, new)) <= in_place(old, new));
        }
    }

    #[test]
    fn a_plan_from_tokens_is_that_of_the_edits((old, new) in (tokens(0..99), tokens(0..99))) {
        let edits = check(&old, &new);
        prop_assert_eq!(
            Plan::from_tokens(&old, &new).unwrap(),
            Plan::from_edits(old.len(), &edits).unwrap()
        );
    }
}

/// Random edits of a text and the edits that undo them: at most half as many tokens to encode again as
/// with the best edits, and never more than in place. How many times as many there are at worst, and
/// of which.
fn nearly_the_best(
    text: &texts::Text,
    change: &texts::Change,
    tokens: usize,
    seed: u64,
) -> (f64, String) {
    let mut random = texts::random(seed);
    let old = (text.make)(tokens, &mut random);
    let new = (change.make)(text, &old, &mut random);
    let both = [("", &old, &new), (" undone", &new, &old)].map(|(undone, old, new)| {
        let (found, best) = (encode(&check(old, new)), fewest(old, new));
        let name = format!(
            "{} tokens of {}, {}{undone}, seed {seed}",
            tokens, text.name, change.name
        );
        assert!(
            found <= best + best / 2,
            "{name}: {found} tokens to encode, not {best}"
        );
        assert!(found <= in_place(old, new), "{name}: better in place");
        (found as f64 / best.max(1) as f64, name)
    });
    let [done, undone] = both;
    if done.0 >= undone.0 { done } else { undone }
}

fn print_worst(all: impl Iterator<Item = (f64, String)>) {
    let (ratio, name) = all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("at worst {ratio:.2} times the best: {name}");
}

/// A seed that no run before had; it is named where a test fails.
fn fresh_seed() -> u64 {
    rand::random()
}

/// Random edits of every kind in texts of every kind. Larger than what is always compared as a whole,
/// so that nothing but what is found in parts, and the band that is left for the rest, decide.
#[test]
fn random_edits_of_every_text_are_nearly_the_best() {
    let seed = fresh_seed();
    let texts = || {
        texts::TEXTS
            .iter()
            .flat_map(|text| texts::CHANGES.iter().map(move |c| (text, c)))
    };
    let small = (0..2).flat_map(|seed| {
        let tokens = 5000 + 6000 * seed as usize;
        texts().map(move |(text, change)| nearly_the_best(text, change, tokens, seed))
    });
    // As many of 5000 to 10 000 tokens as of 30 000 to 60 000.
    let fresh = texts().zip(0..).map(|((text, change), i)| {
        use rand::Rng;
        let seed = seed.wrapping_add(i);
        let size: f64 = texts::random(seed).random();
        nearly_the_best(text, change, (5000.0 * 12f64.powf(size)) as usize, seed)
    });
    print_worst(small.chain(fresh));
}

/// Edits that move the rest by tens of thousands of tokens, and change enough of it for windows to
/// lose it.
#[test]
fn what_moved_far_is_found_in_large_texts() {
    let seed = fresh_seed();
    let changes = || {
        let changes = texts::CHANGES.iter();
        changes.filter(|c| c.name.starts_with("a third") || c.name.starts_with("another"))
    };
    assert_eq!(changes().count(), 2);
    let all = texts::TEXTS
        .iter()
        .flat_map(|text| changes().map(move |change| (text, change)));
    print_worst(
        all.zip(0..)
            .map(|((text, change), i)| nearly_the_best(text, change, 60_000, seed.wrapping_add(i))),
    );
}

/// As large as the longest contexts that models have, and so far moved and so repetitive that parts do not find it.
#[test]
fn what_moved_far_is_found_in_the_largest_texts() {
    let text = texts::TEXTS.iter().find(|text| text.name == "noise of 2");
    let change = texts::CHANGES
        .iter()
        .find(|c| c.name.starts_with("a third"));
    let all = [nearly_the_best(
        text.unwrap(),
        change.unwrap(),
        314_000,
        fresh_seed(),
    )];
    print_worst(all.into_iter());
}

/// Where one sequence is short, the other may be of any length: the table is made block by block.
#[test]
fn a_short_sequence_is_compared_with_a_long_one_as_a_whole() {
    for text in texts::TEXTS {
        let mut random = texts::random(5);
        let long = (text.make)(60_000, &mut random);
        let short = (text.make)(1500, &mut random);
        assert_eq!(
            encode(&check(&long, &short)),
            fewest(&long, &short),
            "{}",
            text.name
        );
        assert_eq!(
            encode(&check(&short, &long)),
            fewest(&short, &long),
            "{}",
            text.name
        );
    }
}

#[test]
fn equal_sequences_need_no_edit() {
    let tokens: Vec<u32> = (0..3000).map(|i| i % 7).collect();
    assert_eq!(Edit::between(&tokens, &tokens), []);
    assert_eq!(Edit::between(&[], &[]), []);
    let plan = Plan::from_tokens(&tokens, &tokens).unwrap();
    assert_eq!(plan, Plan::from_edits(3000, &[]).unwrap());
}

#[test]
fn empty_to_full_and_back() {
    assert_eq!(Edit::between(&[], &[1, 2]), [Edit::insert(0, 2)]);
    assert_eq!(Edit::between(&[1, 2], &[]), [Edit::delete(0..2)]);
}

/// Two tokens changed, however far apart they are and whatever repeats between them.
#[test]
fn two_tokens_replaced_are_two_edits() {
    for period in [1, 2, 3, 4, 37] {
        for (n, places) in [
            (10_000, [100, 620]),
            (10_000, [1000, 9001]),
            (131_072, [7, 131_000]),
        ] {
            let old: Vec<u32> = (0..n).map(|i| i % period).collect();
            let mut new = old.clone();
            for at in places {
                new[at] = 99;
            }
            let expected = places.map(|at| Edit::replace(at..at + 1, 1));
            assert_eq!(check(&old, &new), expected, "period {period}");
            // By tokens of the pattern, the best edits may be others; they are no more.
            for at in places {
                new[at] = (old[at] + 1) % period;
            }
            let edits = check(&old, &new);
            assert!(
                encode(&edits) <= 2 && edits.len() <= 2,
                "period {period}: {edits:?}"
            );
        }
    }
}

#[test]
fn one_edit_among_repeated_tokens() {
    let (old, new) = (vec![7; 3000], vec![7; 2990]);
    assert_eq!(encode(&check(&old, &new)), 0);
}

/// An insertion and a removal between which the same token repeats can be one replacement.
#[test]
fn edits_that_can_meet_are_one() {
    let old = [1, 2, 3, 4, 9, 5, 5, 5, 1, 2, 3, 4];
    let new = [1, 2, 3, 4, 5, 5, 5, 5, 1, 2, 3, 4, 6];
    let end = Edit::insert(12, 1);
    assert_eq!(check(&old, &new), [Edit::replace(4..5, 1), end]);
    let (mut old, mut new) = (vec![7; 9000], vec![7; 9000]);
    old.splice(1000..1001, [1, 2]);
    new.splice(8000..8001, [3, 4]);
    let edits = check(&old, &new);
    assert_eq!((encode(&edits), edits.len()), (2, 2));
}

#[test]
fn a_block_that_moved_is_kept_or_encoded_whole() {
    for n in [4000, 40_000] {
        let old: Vec<u32> = (0..n as u32).collect();
        let mut new = old.clone();
        new.rotate_left(n * 3 / 8);
        assert_eq!(
            check(&old, &new),
            [Edit::delete(0..n * 3 / 8), Edit::insert(n, n * 3 / 8)]
        );
    }
}

/// Inputs on which a diff can take quadratic time, or overflow. That it takes none is tested where its
/// work is counted, beside the source.
#[test]
fn hostile_sequences_get_right_edits() {
    let n = 131_072u32;
    let noise = |seed: u64, vocabulary: u32| -> Vec<u32> {
        use rand::Rng;
        let mut random = texts::random(seed);
        (0..n).map(|_| random.random_range(0..vocabulary)).collect()
    };
    let up: Vec<u32> = (0..n).collect();
    let down: Vec<u32> = up.iter().rev().copied().collect();
    let every_second: Vec<u32> = up
        .iter()
        .map(|&i| if i % 2 == 1 { i + n } else { i })
        .collect();
    let mut cases = vec![
        ("nothing in common".into(), up.clone(), (n..2 * n).collect()),
        ("every second replaced".into(), up.clone(), every_second),
        ("reversed".into(), up, down),
    ];
    for vocabulary in [2, 100, 10_000] {
        let name = format!("noise of {vocabulary} tokens");
        cases.push((name, noise(1, vocabulary), noise(2, vocabulary)));
    }
    for text in texts::TEXTS {
        for change in texts::CHANGES
            .iter()
            .filter(|change| change.name.contains("20 %"))
        {
            let mut random = texts::random(9);
            let old = (text.make)(n as usize, &mut random);
            let new = (change.make)(text, &old, &mut random);
            cases.push((format!("{}, {}", text.name, change.name), old, new));
        }
    }
    for (name, old, new) in cases {
        let edits = check(&old, &new);
        println!("{name}: {} to encode", encode(&edits));
        if name == "every second replaced" {
            assert_eq!(encode(&edits), n as usize / 2);
        }
    }
}
