//! Token sequences of every kind, and what becomes of them in an edit: for the test of the diff and
//! its benchmark.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A kind of text.
pub struct Text {
    pub name: &'static str,
    /// So many tokens of it.
    pub make: fn(usize, &mut SmallRng) -> Vec<u32>,
}

/// A kind of edit.
pub struct Change {
    pub name: &'static str,
    /// The new tokens, from old ones of this kind of text.
    pub make: fn(&Text, &[u32], &mut SmallRng) -> Vec<u32>,
}

pub fn random(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

pub const TEXTS: &[Text] = &[
    Text {
        name: "all different",
        make: |n, _| (0..n as u32).collect(),
    },
    Text {
        name: "prose",
        make: |n, random| (0..n).map(|_| zipf(50_000, random)).collect(),
    },
    Text {
        name: "pattern of 2",
        make: |n, _| (0..n).map(|i| i as u32 % 2).collect(),
    },
    Text {
        name: "pattern of 4",
        make: |n, _| (0..n).map(|i| i as u32 % 4).collect(),
    },
    Text {
        name: "noise of 2",
        make: |n, random| (0..n).map(|_| random.random_range(0..2)).collect(),
    },
    Text {
        name: "noise of 4",
        make: |n, random| (0..n).map(|_| random.random_range(0..4)).collect(),
    },
    Text {
        name: "periodic",
        make: |n, random| {
            let motif: Vec<u32> = (0..37).map(|_| random.random_range(0..20)).collect();
            motif.into_iter().cycle().take(n).collect()
        },
    },
    Text {
        name: "constant",
        make: |n, _| vec![7; n],
    },
    Text {
        name: "nearly constant",
        make: |n, random| (0..n).map(|_| random.random_ratio(1, 100).into()).collect(),
    },
    Text {
        name: "table",
        make: |n, random| {
            let cell = |cell: u32, random: &mut SmallRng| match cell {
                12 => 1002,
                _ if cell.is_multiple_of(2) => 1001,
                _ => 10 * cell + random.random_range(0..10),
            };
            (0..n).map(|i| cell(i as u32 % 13, random)).collect()
        },
    },
    Text {
        name: "generated code",
        make: |n, random| {
            let mut names = (0, 0);
            let mut token = |i: u32| {
                if i == 0 {
                    names = (2000 + zipf(200, random), 3000 + random.random_range(0..5));
                }
                match i {
                    3 | 12 | 20 | 29 => names.0,
                    6 | 18 | 31 => names.1,
                    _ => 100 + i,
                }
            };
            (0..n).map(|i| token(i as u32 % 37)).collect()
        },
    },
    Text {
        name: "log",
        make: |n, random| {
            let mut message = 0;
            let mut token = |i: usize| {
                let (line, column) = (i / 20, i % 20);
                if column == 0 {
                    message = 100 + 10 * random.random_range(0..8);
                }
                match column {
                    0 => 50,
                    1..7 => (line / 10usize.pow(6 - column as u32) % 10) as u32,
                    7..17 => message + column as u32,
                    _ => random.random_range(0..10),
                }
            };
            (0..n).map(&mut token).collect()
        },
    },
    Text {
        name: "sorted",
        make: |n, random| {
            let mut tokens: Vec<u32> = (0..n).map(|_| random.random_range(0..300)).collect();
            tokens.sort_unstable();
            tokens
        },
    },
];

pub const CHANGES: &[Change] = &[
    Change {
        name: "2 replaced",
        make: |_, old, random| {
            let mut new = old.to_vec();
            for _ in 0..2 {
                let at = random.random_range(0..old.len());
                new[at] = old[random.random_range(0..old.len())];
            }
            new
        },
    },
    Change {
        name: "0.1 % replaced",
        make: |_, old, random| replaced(old, 0.001, random),
    },
    Change {
        name: "2 % replaced",
        make: |_, old, random| replaced(old, 0.02, random),
    },
    Change {
        name: "20 % replaced",
        make: |_, old, random| replaced(old, 0.2, random),
    },
    Change {
        name: "half replaced",
        make: |_, old, random| replaced(old, 0.5, random),
    },
    Change {
        name: "half replaced by others",
        make: |_, old, random| {
            let other =
                |&token: &u32, random: &mut SmallRng| token + 100_000 * random.random_range(0..2);
            old.iter().map(|token| other(token, random)).collect()
        },
    },
    Change {
        name: "0.1 % edited",
        make: |_, old, random| edited(old, 0.001, random),
    },
    Change {
        name: "2 % edited",
        make: |_, old, random| edited(old, 0.02, random),
    },
    Change {
        name: "20 % edited",
        make: |_, old, random| edited(old, 0.2, random),
    },
    Change {
        name: "a quarter removed",
        make: |_, old, random| edited(&without_block(old, old.len() / 4, random), 0.0005, random),
    },
    Change {
        name: "a quarter removed, 2 % edited",
        make: |_, old, random| edited(&without_block(old, old.len() / 4, random), 0.02, random),
    },
    Change {
        name: "a third removed, 2 % edited",
        make: |_, old, random| edited(&without_block(old, old.len() / 3, random), 0.02, random),
    },
    Change {
        name: "a quarter added",
        make: |text, old, random| edited(&with_block(text, old, random), 0.0005, random),
    },
    Change {
        name: "a quarter added, 2 % edited",
        make: |text, old, random| edited(&with_block(text, old, random), 0.02, random),
    },
    Change {
        name: "another text prepended, 10 % removed",
        make: |_, old, random| {
            let other = &TEXTS[random.random_range(0..TEXTS.len())];
            let mut new = (other.make)(old.len() / 2, random);
            new.extend(old.iter().filter(|_| random.random_bool(0.9)));
            new
        },
    },
    Change {
        name: "halves exchanged",
        make: |_, old, random| {
            let mut new = old.to_vec();
            new.rotate_left(old.len() / 3 + random.random_range(0..old.len() / 3));
            new
        },
    },
    Change {
        name: "pieces added and removed",
        make: |text, old, random| {
            let mut new = old.to_vec();
            for _ in 0..10 {
                let len = random.random_range(0..old.len() / 40);
                let at = random.random_range(0..new.len() - len);
                new.drain(at..at + len);
                let at = random.random_range(0..new.len());
                let piece = (text.make)(random.random_range(0..old.len() / 40), random);
                new.splice(at..at, piece);
            }
            new
        },
    },
    Change {
        name: "all new",
        make: |text, old, random| (text.make)(old.len(), random),
    },
];

/// A number below `below`, small ones more often, as words are in prose.
fn zipf(below: u32, random: &mut SmallRng) -> u32 {
    f64::from(below).powf(random.random()) as u32
}

/// Single tokens replaced by others of the text, in a random place out of `share` of all.
fn replaced(old: &[u32], share: f64, random: &mut SmallRng) -> Vec<u32> {
    let token = |&token: &u32, random: &mut SmallRng| {
        if random.random_bool(share) {
            old[random.random_range(0..old.len())]
        } else {
            token
        }
    };
    old.iter().map(|old| token(old, random)).collect()
}

/// One to four tokens removed, added or both, before `share` of all.
fn edited(old: &[u32], share: f64, random: &mut SmallRng) -> Vec<u32> {
    let mut new = Vec::new();
    let mut at = 0;
    while at < old.len() {
        if random.random_bool(share) {
            let kind = random.random_range(0..3);
            let len = random.random_range(1..=4);
            if kind != 0 {
                new.extend((0..len).map(|_| old[random.random_range(0..old.len())]));
            }
            if kind != 1 {
                at += len;
                continue;
            }
        }
        new.push(old[at]);
        at += 1;
    }
    new
}

fn without_block(old: &[u32], len: usize, random: &mut SmallRng) -> Vec<u32> {
    let at = random.random_range(0..old.len() - len);
    [&old[..at], &old[at + len..]].concat()
}

fn with_block(text: &Text, old: &[u32], random: &mut SmallRng) -> Vec<u32> {
    let at = random.random_range(0..old.len());
    let block = (text.make)(old.len() / 4, random);
    [&old[..at], &block, &old[at..]].concat()
}
