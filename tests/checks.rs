//! Which calls are refused: exactly those that definitions say, by blocks here, and by [`KeyLayout::is_disjoint`] where
//! rows are not in blocks (`layout.rs` holds that to elements). Small caches, right and wrong, at random; nothing is
//! written where a call is refused.

mod support;

use std::collections::{BTreeSet, HashSet};

use pie_rope::{
    Axis, CacheLayout, Cpu, Edit, ElementType, KeyLayout, Layer, LayerRef, Plan, Rope, Rotations,
    Strides,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::assert_same_bits;

/// Dimensions of the one head.
const DIM: usize = 2;

/// Blocks beside which those of a call are few.
const LARGE_POOL: usize = 1 << 14;

/// What a call does with rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Rotate,
    Splice,
    Copy,
    CopyWithin,
}

fn random() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// The rows that a call reads and those that it writes, in their sequences.
struct Touched {
    read: BTreeSet<usize>,
    written: BTreeSet<usize>,
}

impl Touched {
    fn of(verb: Verb, plan: &Plan, values: bool) -> Touched {
        let mut touched = Touched {
            read: BTreeSet::new(),
            written: BTreeSet::new(),
        };
        for span in plan.kept() {
            let does = match verb {
                Verb::Rotate => span.turns() && !values,
                Verb::Splice => span.turns() || span.moves(),
                Verb::Copy | Verb::CopyWithin => true,
            };
            if does {
                touched.read.extend(span.src..span.src + span.len);
                let to = if verb == Verb::Rotate {
                    span.src
                } else {
                    span.dst
                };
                touched.written.extend(to..to + span.len);
            }
        }
        touched
    }
}

/// The blocks that hold these rows; nothing if one of them is not there.
fn blocks(rows: &BTreeSet<usize>, table: &[u32], pool: &Pool) -> Option<BTreeSet<(usize, u32)>> {
    rows.iter()
        .map(|row| {
            let index = row / pool.block;
            let block = *table.get(index)?;
            ((block as usize) < pool.blocks).then_some((index, block))
        })
        .collect()
}

/// Whether no two places of a sequence are in one block.
fn distinct(blocks: &BTreeSet<(usize, u32)>) -> bool {
    let physical: HashSet<u32> = blocks.iter().map(|&(_, block)| block).collect();
    physical.len() == blocks.len()
}

struct Pool {
    blocks: usize,
    block: usize,
}

impl Pool {
    /// Whether a half of the cache can be called with by these tables, by the definition.
    fn is_sound(&self, verb: Verb, touched: &Touched, src: &[u32], dst: &[u32]) -> bool {
        match verb {
            Verb::Rotate | Verb::Splice => {
                let all = touched.read.union(&touched.written).copied().collect();
                blocks(&all, src, self).is_some_and(|all| distinct(&all))
            }
            Verb::Copy | Verb::CopyWithin => {
                let read = blocks(&touched.read, src, self);
                let written = blocks(&touched.written, dst, self);
                let (Some(read), Some(written)) = (read, written) else {
                    return false;
                };
                let physical = |of: &BTreeSet<(usize, u32)>| -> HashSet<u32> {
                    of.iter().map(|&(_, block)| block).collect()
                };
                let apart = distinct(&read) && physical(&read).is_disjoint(&physical(&written));
                distinct(&written) && (verb == Verb::Copy || apart)
            }
        }
    }

    /// A table for so many rows, more or less, of distinct blocks; seldom one that is wrong somewhere.
    fn table(&self, rows: usize, random: &mut SmallRng) -> Vec<u32> {
        let mut pool: Vec<u32> = (0..self.blocks as u32).collect();
        let mut len = rows.div_ceil(self.block);
        if random.random_ratio(1, 8) {
            len = len.saturating_sub(1);
        }
        let mut table: Vec<u32> = (0..len)
            .map(|_| match pool.len() {
                0 => random.random_range(0..self.blocks as u32),
                left => pool.swap_remove(random.random_range(0..left)),
            })
            .collect();
        if random.random_ratio(1, 4) && len > 0 {
            let at = random.random_range(0..len);
            table[at] = match random.random_range(0..3) {
                0 => self.blocks as u32 + random.random_range(0..2),
                1 => u32::MAX,
                _ => table[random.random_range(0..len)],
            };
        }
        table
    }
}

fn with_tables<'t>(bare: CacheLayout<'t>, [keys, values]: [&'t Vec<u32>; 2]) -> CacheLayout<'t> {
    let bare_values = bare.values.unwrap();
    CacheLayout::new(bare.keys.with_table(keys), bare_values.with_table(values))
}

fn random_plan(random: &mut SmallRng) -> Plan {
    let rows = random.random_range(0..12);
    if random.random_ratio(1, 3) {
        // Turned where they are, or left.
        let position = |random: &mut SmallRng| match random.random_ratio(1, 2) {
            true => -1,
            false => random.random_range(0..9),
        };
        let old: Vec<i32> = (0..rows).map(|_| position(random)).collect();
        let new: Vec<i32> = old
            .iter()
            .map(|&old| {
                if old < 0 {
                    old
                } else {
                    old + random.random_range(0..2)
                }
            })
            .collect();
        return Plan::from_positions(&old, &new).unwrap();
    }
    let mut edits = vec![];
    let mut at = 0;
    while at < rows && edits.len() < 3 {
        let start = random.random_range(at..rows + 1);
        let end = (start + random.random_range(0..3)).min(rows);
        edits.push(Edit::replace(start..end, random.random_range(0..4)));
        at = end + 1;
    }
    Plan::from_edits(rows, &edits).unwrap()
}

fn numbers(len: usize, random: &mut SmallRng) -> Vec<f32> {
    (0..len).map(|_| random.random_range(1.0..2.0)).collect()
}

/// One call, of one layer. One that is refused has written nothing.
fn call(
    verb: Verb,
    rotations: &Rotations,
    (src, dst): (CacheLayout<'_>, CacheLayout<'_>),
    packed: bool,
    len: usize,
    random: &mut SmallRng,
) -> Result<(), String> {
    let cpu = Cpu::new();
    let before = [numbers(len, random), numbers(len, random)];
    let [mut keys, mut values] = before.clone();
    let from = [numbers(len, random), numbers(len, random)];
    let mut layers = [match packed {
        true => Layer::packed(&mut keys),
        false => Layer::new(&mut keys, &mut values),
    }];
    let from = LayerRef {
        keys: &from[0],
        values: Some(&from[usize::from(!packed)]),
    };
    let result = match verb {
        Verb::Rotate => cpu.rotate(rotations, src, &mut layers),
        Verb::Splice => cpu.splice(rotations, src, &mut layers),
        Verb::Copy => cpu.copy(rotations, src, &[from], dst, &mut layers),
        Verb::CopyWithin => cpu.copy_within(rotations, src, dst, &mut layers),
    };
    result.map_err(|error| {
        assert_same_bits(&keys, &before[0], |index| format!("keys, element {index}"));
        assert_same_bits(&values, &before[1], |index| {
            format!("values, element {index}")
        });
        error.to_string()
    })
}

/// Keys and values in blocks, by one table or two, in one buffer or two; and by few blocks of a large pool, which are
/// counted another way.
#[test]
fn in_blocks() {
    let mut random = random();
    let rope = Rope::from_theta(10_000.0, DIM).unwrap();
    let (mut found, mut found_in_large) = ([[0; 2]; 4], [0; 2]);
    for _ in 0..30_000 {
        let plan = random_plan(&mut random);
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let rows = plan.old_rows().max(plan.new_rows());
        let block = random.random_range(1..4);
        let blocks = match random.random_ratio(1, 20) {
            true => LARGE_POOL,
            false => 2 * rows.div_ceil(block) + random.random_range(1..4),
        };
        let pool = Pool { blocks, block };
        // Those of keys and values, to read and to write.
        let tables: [Vec<u32>; 4] = std::array::from_fn(|_| pool.table(rows, &mut random));
        let [mut src, mut dst] = [[&tables[0], &tables[1]], [&tables[2], &tables[3]]];
        for end in [&mut src, &mut dst] {
            if random.random_ratio(1, 2) {
                end[1] = end[0];
            }
        }
        let packed = random.random();
        let bare = match packed {
            true => KeyLayout::packed_nhd(ElementType::F32, [blocks, block, 1, DIM]),
            false => {
                let keys = KeyLayout::nhd(ElementType::F32, [blocks, block, 1, DIM]);
                CacheLayout::new(keys, keys)
            }
        };
        let verb = match random.random_range(0..4) {
            0 => Verb::Rotate,
            1 => Verb::Splice,
            2 => Verb::Copy,
            _ => Verb::CopyWithin,
        };
        let sound = [false, true].into_iter().all(|values| {
            let touched = Touched::of(verb, &plan, values);
            let half = usize::from(values);
            pool.is_sound(verb, &touched, src[half], dst[half])
        });
        let len = blocks * block * DIM * (1 + usize::from(packed));
        let ends = (with_tables(bare, src), with_tables(bare, dst));
        let called = call(verb, &rotations, ends, packed, len, &mut random);
        assert_eq!(
            called.is_ok(),
            sound,
            "{verb:?}, {called:?}\n{plan:?}\n{blocks} blocks of {block}, packed {packed}, from {src:?}, to {dst:?}"
        );
        found[verb as usize][usize::from(sound)] += 1;
        found_in_large[usize::from(sound)] += usize::from(blocks == LARGE_POOL);
    }
    assert!(found.as_flattened().iter().all(|&n| n > 300), "{found:?}");
    assert!(
        found_in_large.iter().all(|&n| n > 100),
        "{found_in_large:?}"
    );
}

/// Rows one after the other, at four places of a buffer or of two: nothing that a call within it reads may be written.
#[test]
fn in_rows() {
    const ROWS: usize = 4;
    const LEN: usize = 80;
    let mut random = random();
    let rope = Rope::from_theta(10_000.0, DIM).unwrap();
    let mut found = [[0; 2]; 2];
    for _ in 0..30_000 {
        // Nothing to do, or something.
        let rows = if random.random_ratio(1, 8) { 0 } else { 3 };
        let plan = Plan::from_edits(rows, &[Edit::insert(rows / 2, 1)]).unwrap();
        let rotations = Rotations::new(&plan, &rope).unwrap();
        // Next to each other, or with room for another's in between.
        let stride = DIM * random.random_range(1..3);
        let [from, to, from_values, to_values] = std::array::from_fn(|_| {
            let offset = random.random_range(0..LEN - ROWS * stride);
            let one = Axis::new(1, 0);
            let strides = Strides {
                batch: one,
                blocks: one,
                rows: Axis::new(ROWS, stride),
                heads: one,
                packs: one,
                offset,
                pack: DIM,
            };
            KeyLayout::strided(ElementType::F32, strides)
        });
        let packed = random.random();
        let mut pairs = vec![];
        if packed {
            pairs.extend([(from, from_values), (to, to_values)]);
        }
        if rows > 0 {
            pairs.extend([(from, to), (from_values, to_values)]);
        }
        if rows > 0 && packed {
            pairs.extend([(from, to_values), (from_values, to)]);
        }
        let sound = pairs.iter().all(|(one, other)| one.is_disjoint(other));
        let ends = (
            CacheLayout::new(from, from_values),
            CacheLayout::new(to, to_values),
        );
        let called = call(Verb::CopyWithin, &rotations, ends, packed, LEN, &mut random);
        assert_eq!(
            called.is_ok(),
            sound,
            "{called:?}\n{rows} rows, packed {packed}, {ends:?}"
        );
        found[usize::from(packed)][usize::from(sound)] += 1;
    }
    assert!(found.as_flattened().iter().all(|&n| n > 300), "{found:?}");
}
