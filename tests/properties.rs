//! What must hold whatever the numbers are.

mod support;

use half::{bf16, f16};
use pie_rope::{
    CacheLayout, Cpu, Edit, Element, ElementType, KeyLayout, Layer, LayerRef, ModelRope, Pairing,
    Plan, Rope, Rotations, Scaling, oracle,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{assert_same_bits, assert_within_ulps, bhsd, each};

const HEADS: usize = 3;
const DIM: usize = 64;

/// The deltas that others test, and some more.
const DELTAS: [i32; 12] = [
    -131_071, -1024, -10, -2, -1, 1, 30, 64, 1024, 1025, 131_072, 9_999_999,
];

fn random() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

trait Number: Element {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Number for f16 {
    fn from_f64(value: f64) -> f16 {
        f16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        f16::to_f64(self)
    }
}

impl Number for bf16 {
    fn from_f64(value: f64) -> bf16 {
        bf16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        bf16::to_f64(self)
    }
}

fn keys<T: Number>(rows: usize, random: &mut SmallRng) -> Vec<T> {
    let mut key = || T::from_f64(random.random_range(-2.0..2.0));
    (0..HEADS * rows * DIM).map(|_| key()).collect()
}

fn layout<T: Element>(rows: usize) -> KeyLayout<'static> {
    KeyLayout::bhsd(T::TYPE, [1, HEADS, rows, DIM])
}

fn ropes() -> [Rope; 2] {
    [Pairing::HalfSplit, Pairing::Interleaved].map(|pairing| {
        let rope = Rope::from_theta(10_000.0, DIM).unwrap();
        rope.with_pairing(pairing)
    })
}

/// Turns all rows by `delta`, from positions where both ends are positions.
fn turn<T: Number>(keys: &mut [T], rope: &Rope, delta: i32) {
    let rows = keys.len() / (HEADS * DIM);
    let first = 0.max(-delta);
    let old: Vec<i32> = (0..rows as i32).map(|row| first + row).collect();
    let new: Vec<i32> = old.iter().map(|position| position + delta).collect();
    let plan = Plan::from_positions(&old, &new).unwrap();
    let rotations = Rotations::new(&plan, rope).unwrap();
    let mut layers = [Layer::keys_only(keys)];
    Cpu::new()
        .rotate(&rotations, layout::<T>(rows), &mut layers)
        .unwrap();
}

/// The pairs of every head vector.
fn pairs<T: Number>(keys: &[T], rope: &Rope) -> Vec<(f64, f64)> {
    let of_vector = |vector: &[T]| -> Vec<(f64, f64)> {
        let pair = |j| {
            let (a, b) = oracle::pair(rope, j);
            (vector[a].to_f64(), vector[b].to_f64())
        };
        (0..rope.pairs()).map(pair).collect()
    };
    keys.chunks(DIM).flat_map(of_vector).collect()
}

/// Where the pair of an index is among all [`pairs`] of some rows.
fn pair_of(rows: usize, rope: &Rope) -> impl Fn(usize) -> String {
    let pairs = rope.pairs();
    move |index| {
        let (vector, pair) = (index / pairs, index % pairs);
        format!("head {}, row {}, pair {pair}", vector / rows, vector % rows)
    }
}

/// Units in the last place that one turn may lose: the bound that `tests/conformance` derives.
fn one_turn<T: Element>() -> f64 {
    if T::TYPE == ElementType::F32 {
        1.71
    } else {
        0.501
    }
}

fn norms_are_kept<T: Number>() {
    let mut random = random();
    for rope in ropes() {
        for delta in DELTAS {
            let before = keys::<T>(5, &mut random);
            let mut after = before.clone();
            turn(&mut after, &rope, delta);
            assert_ne!(
                bytemuck::cast_slice::<T, u8>(&before),
                bytemuck::cast_slice::<T, u8>(&after)
            );
            let (all_before, all_after) = (pairs(&before, &rope), pairs(&after, &rope));
            for (index, (before, after)) in each(&all_before, &all_after).enumerate() {
                let (before, after) = (before.0.hypot(before.1), after.0.hypot(after.1));
                // Both elements of the pair may be off by so much, at right angles to each other.
                let allowed = one_turn::<T>() * 2f64.sqrt() * oracle::ulp(T::TYPE, before);
                assert!(
                    (after - before).abs() <= allowed,
                    "{}, delta {delta}: {before} became {after}",
                    pair_of(5, &rope)(index)
                );
            }
        }
    }
}

#[test]
fn norms_are_kept_f32() {
    norms_are_kept::<f32>();
}

#[test]
fn norms_are_kept_f16() {
    norms_are_kept::<f16>();
}

#[test]
fn norms_are_kept_bf16() {
    norms_are_kept::<bf16>();
}

fn there_and_back<T: Number>() {
    let mut random = random();
    for rope in ropes() {
        for delta in DELTAS {
            let before = keys::<T>(5, &mut random);
            let mut after = before.clone();
            turn(&mut after, &rope, delta);
            turn(&mut after, &rope, -delta);
            // The first turn's errors of both elements are turned back into one, then the second's;
            // the pair may have crossed into the next binade in between, where a unit is twice as big.
            let allowed = one_turn::<T>() * (2f64.sqrt() * 2.0 + 1.0);
            let (after, before) = (pairs(&after, &rope), pairs(&before, &rope));
            assert_within_ulps(T::TYPE, allowed, &after, &before, |index| {
                format!("{}, there and back by {delta}", pair_of(5, &rope)(index))
            });
        }
    }
}

#[test]
fn there_and_back_f32() {
    there_and_back::<f32>();
}

#[test]
fn there_and_back_f16() {
    there_and_back::<f16>();
}

#[test]
fn there_and_back_bf16() {
    there_and_back::<bf16>();
}

#[test]
fn delta_zero_leaves_every_bit_alone() {
    let mut random = random();
    // Any bits at all, NaNs with their payloads and negative zeros among them.
    let before: Vec<f16> = (0..HEADS * 9 * DIM)
        .map(|_| f16::from_bits(random.random()))
        .collect();
    let mut after = before.clone();
    turn(&mut after, &ropes()[0], 0);
    assert_same_bits(&after, &before, bhsd([1, HEADS, 9, DIM]));
}

#[test]
fn splice_equals_copy_out_and_back() {
    let mut random = random();
    let (rows, capacity) = (700, 900);
    let edits = [
        Edit::insert(13, 100),
        Edit::delete(200..203),
        Edit::replace(300..380, 20),
        Edit::delete(600..690),
        Edit::insert(700, 9),
    ];
    let plan = Plan::from_edits(rows, &edits).unwrap();
    let layout = layout::<bf16>(capacity);
    for rope in ropes() {
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let keys = keys::<bf16>(capacity, &mut random);
        let values = keys.iter().rev().copied().collect::<Vec<_>>();
        let cpu = Cpu::new();

        let (mut spliced_keys, mut spliced_values) = (keys.clone(), values.clone());
        let mut layers = [Layer::new(&mut spliced_keys, &mut spliced_values)];
        cpu.splice(&rotations, layout, &mut layers).unwrap();

        let (mut copied_keys, mut copied_values) = (keys.clone(), values.clone());
        let source = [LayerRef {
            keys: &keys,
            values: Some(&values),
        }];
        let mut layers = [Layer::new(&mut copied_keys, &mut copied_values)];
        cpu.copy(&rotations, layout, &source, layout, &mut layers)
            .unwrap();

        assert!(spliced_keys != keys && spliced_values != values);
        let place = bhsd([1, HEADS, capacity, DIM]);
        assert_same_bits(&spliced_keys, &copied_keys, |i| {
            format!("keys, {}", place(i))
        });
        assert_same_bits(&spliced_values, &copied_values, |i| {
            format!("values, {}", place(i))
        });
    }
}

/// kvpress' test of its key re-rotation, for the real thing: prune then encode equals encode, prune,
/// re-rotate; plain and with yarn's frequencies.
#[test]
fn eviction_equals_encoding_what_is_left() {
    let mut random = random();
    let yarn = Scaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 32_768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    for (theta, scaling) in [(10_000.0, Scaling::Default), (500_000.0, yarn)] {
        let rope = &Rope::from_scaling(theta, DIM, &scaling, 0).unwrap();
        let rows = 64;
        let raw: Vec<Vec<f64>> = (0..rows)
            .map(|_| (0..DIM).map(|_| random.random_range(-1.0..1.0)).collect())
            .collect();
        let encode = |row: usize, position: usize| {
            let mut vector = raw[row].clone();
            oracle::rotate(&mut vector, rope, position as f64);
            vector
        };
        let mut cache: Vec<f32> = (0..rows)
            .flat_map(|row| encode(row, row))
            .map(|value| value as f32)
            .collect();

        let kept: Vec<usize> = (0..rows).filter(|_| random.random_bool(0.6)).collect();
        let plan = Plan::from_kept(rows, &kept).unwrap();
        let rotations = Rotations::new(&plan, rope).unwrap();
        let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, rows, DIM]);
        let layout = CacheLayout::keys_only(layout);
        let mut layers = [Layer::keys_only(&mut cache)];
        Cpu::new().splice(&rotations, layout, &mut layers).unwrap();

        let of_vector = |vector: Vec<f64>| -> Vec<(f64, f64)> {
            let pairs = (0..rope.pairs()).map(|pair| oracle::pair(rope, pair));
            pairs.map(|(a, b)| (vector[a], vector[b])).collect()
        };
        let positions = kept.iter().enumerate();
        let expected: Vec<_> = positions
            .flat_map(|(position, &row)| of_vector(encode(row, position)))
            .collect();
        let got = pairs(&cache[..kept.len() * DIM], rope);
        // Half a unit of each element from storing the key, turned; then the turn itself; twice
        // that if the pair's norm sits at the edge of a binade.
        let allowed = 2.0 * (0.5 * 2f64.sqrt() + 1.71);
        assert_within_ulps(ElementType::F32, allowed, &got, &expected, |index| {
            let (position, pair) = (index / rope.pairs(), index % rope.pairs());
            format!("row {} at position {position}, pair {pair}", kept[position])
        });
    }
}

/// As by decoding past a switch of frequencies: the keys before it are turned alone, then an edit turns all.
#[test]
fn keys_of_both_sides_of_a_switch_are_turned_in_two_steps() {
    let mut random = random();
    let [before, after] = [1e4, 1e6].map(|theta| Rope::from_theta(theta, DIM).unwrap());
    let [old, new] = [&before, &after].map(|rope| ModelRope::uniform(rope.clone(), 1));
    let (rows, switch) = (64, 40);
    let raw: Vec<Vec<f64>> = (0..rows)
        .map(|_| (0..DIM).map(|_| random.random_range(-1.0..1.0)).collect())
        .collect();
    let encode = |row: usize, rope: &Rope, position: usize| {
        let mut vector = raw[row].clone();
        oracle::rotate(&mut vector, rope, position as f64);
        vector
    };
    let mut cache: Vec<f32> = (0..rows)
        .flat_map(|row| encode(row, if row < switch { &before } else { &after }, row))
        .map(|value| value as f32)
        .collect();
    cache.resize((rows + 3) * DIM, 0.0);
    let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, rows + 3, DIM]);
    let layout = CacheLayout::keys_only(layout);

    let positions: Vec<i32> = (0..rows)
        .map(|row| if row < switch { row as i32 } else { -1 })
        .collect();
    let plan = Plan::from_positions(&positions, &positions).unwrap();
    let switched = Rotations::between(&plan, &old, &new).unwrap();
    let mut layers = [Layer::keys_only(&mut cache)];
    let cpu = Cpu::new();
    cpu.rotate(&switched, layout, &mut layers).unwrap();
    let plan = Plan::from_edits(rows, &[Edit::insert(10, 3)]).unwrap();
    let edit = Rotations::for_model(&plan, &new).unwrap();
    cpu.splice(&edit, layout, &mut layers).unwrap();

    let of_vector = |vector: Vec<f64>| -> Vec<(f64, f64)> {
        let pairs = (0..after.pairs()).map(|pair| oracle::pair(&after, pair));
        pairs.map(|(a, b)| (vector[a], vector[b])).collect()
    };
    let expected: Vec<_> = (10..rows)
        .flat_map(|row| of_vector(encode(row, &after, row + 3)))
        .collect();
    let got = pairs(&cache[13 * DIM..], &after);
    // As above, with a second turn.
    let allowed = 2.0 * (0.5 * 2f64.sqrt() + 2.0 * 1.71);
    let place = |index| format!("row {}", 10 + index / after.pairs());
    assert_within_ulps(ElementType::F32, allowed, &got, &expected, place);
}

/// A yarn model's keys carry its magnitude factor already: turning must not apply it again.
#[cfg(feature = "config")]
#[test]
fn magnitude_factors_never_change_a_norm() {
    let config = |scaling: &str| {
        format!(
            r#"{{ "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64,
                 "num_attention_heads": 1, "max_position_embeddings": 131072, "rope_theta": 10000.0,
                 "rope_scaling": {scaling} }}"#
        )
    };
    let ones = vec!["1.0"; DIM / 2].join(",");
    let scalings = [
        r#"{ "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
             "attention_factor": 1.5 }"#
            .to_string(),
        format!(
            r#"{{ "rope_type": "longrope", "factor": 32.0, "original_max_position_embeddings": 4096,
                  "short_factor": [{ones}], "long_factor": [{ones}] }}"#
        ),
    ];
    let mut random = random();
    for scaling in scalings {
        let model = pie_rope::ModelRope::from_config_json(&config(&scaling)).unwrap();
        let rope = model.layer(0).unwrap();
        let before = keys::<f32>(4, &mut random);
        let mut after = before.clone();
        turn(&mut after, rope, 777);
        let (all_before, all_after) = (pairs(&before, rope), pairs(&after, rope));
        for (index, (before, after)) in each(&all_before, &all_after).enumerate() {
            let (before, after) = (before.0.hypot(before.1), after.0.hypot(after.1));
            // 1.71 units in each of two elements: √2 · 1.71 · 2⁻²³.
            assert!(
                (after / before - 1.0).abs() < 3e-7,
                "{}: {before} became {after}",
                pair_of(4, rope)(index)
            );
        }
    }
}

/// What GPU backends upload is what the CPU reads row by row: the angles of the deltas, and where frequencies change
/// those of every row.
#[test]
fn tables_are_their_rows() {
    let old: Vec<i32> = (0..9).collect();
    let new: Vec<i32> = old.iter().map(|row| row * row).collect();
    let plan = Plan::from_positions(&old, &new).unwrap();
    for rope in ropes() {
        let slower = Rope::from_theta(30_000.0, DIM).unwrap();
        let slower = slower.with_pairing(rope.pairing());
        let model = |rope: &Rope| ModelRope::uniform(rope.clone(), 1);
        let ends = |delta: &i32| ((0, &rope), (*delta, &rope));
        let by_delta: Vec<_> = plan.deltas().iter().map(ends).collect();
        let ends = |(old, new): (&i32, &i32)| ((*old, &rope), (*new, &slower));
        let by_row: Vec<_> = old.iter().zip(&new).map(ends).collect();
        for (rotations, turns) in [
            (Rotations::new(&plan, &rope).unwrap(), by_delta),
            (
                Rotations::between(&plan, &model(&rope), &model(&slower)).unwrap(),
                by_row,
            ),
        ] {
            assert_eq!([rotations.old_rows(), rotations.new_rows()], [9, 9]);
            let table = &rotations.tables()[0];
            assert_eq!(table.rows(), turns.len());
            let mut rows = vec![];
            for (row, (old, new)) in turns.into_iter().enumerate() {
                let (cos, sin) = table.row(row);
                for pair in 0..rope.pairs() {
                    let angle = |(position, rope): (i32, &Rope)| {
                        f64::from(position) * rope.inv_freq()[pair]
                    };
                    let (s, c) = (angle(new) - angle(old)).sin_cos();
                    assert_eq!(
                        (cos[pair], sin[pair]),
                        (c as f32, s as f32),
                        "row {row}, pair {pair}"
                    );
                }
                rows.extend([cos, sin].concat());
            }
            assert_same_bits(table.as_slice(), &rows, |number| format!("number {number}"));
        }
    }
}
