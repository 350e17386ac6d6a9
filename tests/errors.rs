//! Bad arguments are refused with an error that names them, and nothing is written.

mod support;

use pie_rope::{
    Axis, CacheLayout, Cpu, Edit, ElementType, Error, KeyLayout, Layer, LayerRef, ModelRope, Plan,
    RawLayer, Result, Rope, Rotations, Strides, oracle,
};
use support::{assert_same_bits, assert_within_ulps, bhsd};

const F32: ElementType = ElementType::F32;

/// 20 rows of 2 heads of 8, of which 16 are in use.
const ROWS: usize = 20;
const LEN: usize = 2 * ROWS * 8;

fn plan() -> Plan {
    Plan::from_edits(16, &[Edit::insert(4, 2)]).unwrap()
}

fn rotations() -> Rotations {
    Rotations::new(&plan(), &Rope::from_theta(10_000.0, 8).unwrap()).unwrap()
}

fn layout() -> KeyLayout<'static> {
    KeyLayout::bhsd(F32, [1, 2, ROWS, 8])
}

/// The same for a cache without values.
fn keys_only() -> CacheLayout<'static> {
    CacheLayout::keys_only(layout())
}

/// Fresh numbers, none of which is another's or one that is written down here.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|_| rand::random_range(1.0..2.0)).collect()
}

/// Runs a call on one layer's keys and values and expects it to be refused with `expected` in the text.
#[track_caller]
fn refused(expected: &str, call: impl Fn(&mut [f32], &mut [f32]) -> Result<()>) {
    let before = [numbers(LEN), numbers(LEN)];
    let [mut keys, mut values] = before.clone();
    let error = call(&mut keys, &mut values)
        .expect_err("it should have been refused")
        .to_string();
    assert!(
        error.contains(expected),
        "`{error}` does not say `{expected}`"
    );
    for (half, now, before) in [("keys", keys, &before[0]), ("values", values, &before[1])] {
        assert_same_bits(&now, before, |index| {
            format!("refused, but something was written: {half}, element {index}")
        });
    }
}

#[track_caller]
fn splice_refused<'t>(expected: &str, rotations: &Rotations, layout: impl Into<CacheLayout<'t>>) {
    let layout = layout.into();
    refused(expected, |keys, values| {
        Cpu::new().splice(rotations, layout, &mut [Layer::new(keys, values)])
    });
}

#[test]
fn the_sound_call_is_not_refused() {
    let before = [numbers(LEN), numbers(LEN)];
    let [mut keys, mut values] = before.clone();
    let mut layers = [Layer::new(&mut keys, &mut values)];
    Cpu::new()
        .splice(&rotations(), layout(), &mut layers)
        .unwrap();

    // Rows 4 to 15 go to 6 to 17 and turn by two positions; all else is as it was.
    let rope = Rope::from_theta(10_000.0, 8).unwrap();
    let [mut expected, mut moved] = before.clone();
    let (mut got_pairs, mut expected_pairs) = (Vec::new(), Vec::new());
    for (head, row) in (0..2).flat_map(|head| (4..16).map(move |row| (head, row))) {
        let from = (head * ROWS + row) * 8;
        let to = from + 2 * 8;
        moved[to..to + 8].copy_from_slice(&before[1][from..from + 8]);
        let mut key: Vec<f64> = before[0][from..from + 8]
            .iter()
            .map(|&x| x.into())
            .collect();
        oracle::turn(&mut key, (&rope, row as i32), (&rope, row as i32 + 2));
        for pair in 0..rope.pairs() {
            let (a, b) = oracle::pair(&rope, pair);
            expected_pairs.push((key[a], key[b]));
            got_pairs.push((keys[to + a].into(), keys[to + b].into()));
        }
        // Held to its numbers below.
        expected[to..to + 8].copy_from_slice(&keys[to..to + 8]);
    }
    assert_within_ulps(F32, 1.71, &got_pairs, &expected_pairs, |index| {
        let (row, pair) = (index / 4, index % 4);
        format!("head {}, row {}, pair {pair}", row / 12, 6 + row % 12)
    });
    assert_same_bits(&keys, &expected, bhsd([1, 2, ROWS, 8]));
    assert_same_bits(&values, &moved, bhsd([1, 2, ROWS, 8]));
}

#[test]
fn buffer_too_short() {
    let short = [2, ROWS + 1, 8];
    splice_refused(
        "layer 0, keys: it needs a buffer of 336 elements, this one has 320",
        &rotations(),
        KeyLayout::bhsd(F32, [1, short[0], short[1], short[2]]),
    );
    refused("layer 0, values", |keys, values| {
        Cpu::new().splice(
            &rotations(),
            layout(),
            &mut [Layer::new(keys, &mut values[..LEN - 1])],
        )
    });
    refused("layer 1, keys", |keys, values| {
        let mut layers = [Layer::keys_only(keys), Layer::keys_only(&mut values[1..])];
        Cpu::new().rotate(&rotations(), layout(), &mut layers)
    });
}

#[test]
fn sizes_that_overflow() {
    splice_refused(
        "does not fit a usize",
        &rotations(),
        KeyLayout::bhsd(F32, [usize::MAX, usize::MAX, ROWS, 8]),
    );
    splice_refused(
        "does not fit a usize",
        &rotations(),
        layout().with_offset(usize::MAX),
    );
    splice_refused(
        "does not fit a usize",
        &rotations(),
        KeyLayout::nhd(F32, [usize::MAX, 16, 2, 8]),
    );
}

#[test]
fn rows_that_overlap() {
    let strides = Strides {
        offset: 0,
        batch: Axis::new(1, 0),
        blocks: Axis::new(1, 0),
        rows: Axis::new(ROWS, 8),
        heads: Axis::new(2, 80),
        packs: Axis::new(1, 0),
        pack: 8,
    };
    splice_refused(
        "rows overlap",
        &rotations(),
        KeyLayout::strided(F32, strides),
    );
}

#[test]
fn more_rows_than_the_layout_has() {
    splice_refused(
        "the plan needs 18 rows, the layout has 17",
        &rotations(),
        KeyLayout::bhsd(F32, [1, 2, 17, 8]),
    );
}

#[test]
fn window_wider_than_the_head() {
    let rope = Rope::from_theta(10_000.0, 8).unwrap().with_offset(1);
    let rotations = Rotations::new(&plan(), &rope).unwrap();
    splice_refused(
        "the rope turns dimensions 1..9, the head dimension is 8",
        &rotations,
        layout(),
    );
}

#[test]
fn wrong_element_type() {
    splice_refused(
        "layers: slices of f32, but the layout is for bf16",
        &rotations(),
        KeyLayout::bhsd(ElementType::BF16, [1, 2, ROWS, 8]),
    );
}

#[test]
fn wrong_number_of_layers() {
    let model = ModelRope::uniform(Rope::from_theta(10_000.0, 8).unwrap(), 3);
    let rotations = Rotations::for_model(&plan(), &model).unwrap();
    splice_refused(
        "layers: 1 given, but the rotations are for a model of 3",
        &rotations,
        layout(),
    );
    let error = rotations.select([1, 3]).unwrap_err().to_string();
    assert_eq!(error, "layers: there is no layer 3 in a model of 3");
}

/// Gemma 4's layers have heads of 256 and of 512 dimensions: a group of them needs a layout that fits its own ropes.
#[test]
fn a_group_of_layers_with_narrower_heads() {
    let rope = |dim| Some(Rope::from_theta(10_000.0, dim).unwrap());
    let model = ModelRope::from_layers([rope(16), rope(8), None]);
    let rotations = Rotations::for_model(&plan(), &model).unwrap();
    let splice = |group: [usize; 2]| {
        let rotations = rotations.select(group).unwrap();
        let mut buffers = [(); 2].map(|()| (numbers(LEN), numbers(LEN)));
        let mut layers = buffers
            .each_mut()
            .map(|(keys, values)| Layer::new(keys, values));
        Cpu::new().splice(&rotations, layout(), &mut layers)
    };
    splice([1, 2]).unwrap();
    let error = splice([2, 0]).unwrap_err().to_string();
    assert!(error.contains("the rope turns dimensions 0..16, the head dimension is 8"));
}

#[test]
fn values_without_a_layout() {
    splice_refused(
        "layer 0 has values",
        &rotations(),
        CacheLayout::keys_only(layout()),
    );
}

#[test]
fn block_tables() {
    let pages = KeyLayout::nhd(F32, [5, 4, 2, 8]);
    splice_refused(
        "block table entry 2 is 5, there are 5 blocks",
        &rotations(),
        pages.with_table(&[0, 1, 5, 2, 3]),
    );
    splice_refused(
        "block table entry 4: block 1 is there twice",
        &rotations(),
        pages.with_table(&[0, 1, 2, 3, 1]),
    );
    splice_refused(
        "the plan needs 18 rows, the layout has 16",
        &rotations(),
        pages.with_table(&[0, 1, 2, 3]),
    );
    // A negative entry of an `i32` table.
    let table = [0, 1, -1, 2, 3];
    splice_refused(
        "block table entry 2 is -1, there are 5 blocks",
        &rotations(),
        pages.with_table(bytemuck::cast_slice(&table)),
    );
}

#[test]
fn table_entries_that_no_row_needs_are_not_looked_at() {
    let pages = KeyLayout::nhd(F32, [5, 4, 2, 8]);
    let before = [numbers(LEN), numbers(LEN)];
    let table = [0, 1, 2, 3, 4, u32::MAX, u32::MAX];
    let [with, without] = [&table[..], &table[..5]].map(|table| {
        let [mut keys, mut values] = before.clone();
        let mut layers = [Layer::new(&mut keys, &mut values)];
        Cpu::new()
            .splice(&rotations(), pages.with_table(table), &mut layers)
            .unwrap();
        [keys, values]
    });
    for ((with, without), before) in with.iter().zip(&without).zip(&before) {
        assert!(with != before);
        assert_same_bits(with, without, |index| format!("element {index}"));
    }
}

#[test]
fn keys_and_values_in_one_buffer_that_overlap() {
    let both = KeyLayout::bshd(F32, [1, ROWS, 2, 8]);
    for (keys, values) in [(0..4, 2..6), (0..4, 3..7), (0..8, 0..8)] {
        let layout = CacheLayout::new(
            both.narrow_dims(keys).unwrap(),
            both.narrow_dims(values).unwrap(),
        );
        let rotations = Rotations::new(&plan(), &Rope::from_theta(10_000.0, 4).unwrap()).unwrap();
        refused("keys and values share a buffer", |buffer, _| {
            Cpu::new().splice(&rotations, layout, &mut [Layer::packed(buffer)])
        });
    }
}

#[test]
fn copies_that_do_not_fit() {
    let source = numbers(LEN);
    let from = [LayerRef {
        keys: &source,
        values: None,
    }];
    refused("source and destination differ", |keys, _| {
        let other = KeyLayout::bhsd(F32, [1, 1, ROWS, 8]);
        Cpu::new().copy(
            &rotations(),
            keys_only(),
            &from,
            CacheLayout::keys_only(other),
            &mut [Layer::keys_only(keys)],
        )
    });
    refused("must both have values", |keys, values| {
        Cpu::new().copy(
            &rotations(),
            keys_only(),
            &from,
            layout(),
            &mut [Layer::new(keys, values)],
        )
    });
    refused(
        "dst: 2 layers to copy to, but 1 to copy from",
        |keys, values| {
            let mut layers = [Layer::keys_only(keys), Layer::keys_only(values)];
            Cpu::new().copy(&rotations(), keys_only(), &from, keys_only(), &mut layers)
        },
    );
    let pages = KeyLayout::nhd(F32, [10, 2, 2, 8]);
    refused(
        "a block is among those to copy from and those to copy to",
        |keys, _| {
            let plan = Plan::from_edits(7, &[Edit::delete(0..1)]).unwrap();
            let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
            let tables: [&[u32]; 2] = [&[0, 1, 2, 3], &[4, 5, 1]];
            let [src, dst] = tables.map(|table| CacheLayout::keys_only(pages.with_table(table)));
            Cpu::new().copy_within(&rotations, src, dst, &mut [Layer::keys_only(keys)])
        },
    );
    refused("may overlap", |keys, _| {
        let half = CacheLayout::keys_only(KeyLayout::bhsd(F32, [1, 2, 9, 8]));
        let plan = Plan::from_edits(8, &[Edit::delete(0..1)]).unwrap();
        let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
        Cpu::new().copy_within(
            &rotations,
            half,
            half.with_offset(40),
            &mut [Layer::keys_only(keys)],
        )
    });
}

/// A destination of no rows is too small, not a buffer that two share because empty slices have one address.
#[test]
fn a_copy_to_a_cache_that_is_empty() {
    let source = [numbers(LEN), numbers(LEN)];
    let from = [LayerRef {
        keys: &source[0],
        values: Some(&source[1]),
    }];
    let empty = KeyLayout::bhsd(F32, [1, 2, 0, 8]);
    let mut to = [Layer::new(&mut [], &mut [])];
    let error = Cpu::new().copy(&rotations(), layout(), &from, empty, &mut to);
    assert_eq!(
        error.unwrap_err().to_string(),
        "layout: dst: keys: the plan needs 18 rows, the layout has 0"
    );
}

#[test]
fn frequencies_of_another_shape() {
    let rope = Rope::from_theta(10_000.0, 8).unwrap();
    let old = ModelRope::uniform(rope.clone(), 2);
    let fewer = ModelRope::uniform(rope.clone(), 1);
    let moved = ModelRope::from_layers([Some(rope.clone()), Some(rope.clone().with_offset(2))]);
    let paired = rope.clone().with_pairing(pie_rope::Pairing::Interleaved);
    let paired = ModelRope::from_layers([Some(rope.clone()), Some(paired)]);
    let gone = ModelRope::from_layers([Some(rope), None]);
    let message = |new: &ModelRope| {
        Rotations::between(&plan(), &old, new)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&fewer),
        "rope: the old model has 2 layers, the new one 1"
    );
    for other in [moved, paired, gone] {
        assert_eq!(
            message(&other),
            "rope: layer 1: the old and the new rope differ in more than their frequencies"
        );
    }
}

#[test]
fn a_window_of_any_layer_wider_than_the_head() {
    let narrow = Rope::from_theta(10_000.0, 8).unwrap();
    let wide = Rope::from_theta(10_000.0, 10).unwrap();
    let model = ModelRope::from_layers([Some(narrow), Some(wide)]);
    let rotations = Rotations::for_model(&plan(), &model).unwrap();
    refused("the rope turns dimensions 0..10", |keys, values| {
        let mut layers = [Layer::keys_only(keys), Layer::keys_only(values)];
        Cpu::new().rotate(&rotations, layout(), &mut layers)
    });
}

#[test]
fn a_copy_into_a_table_with_a_block_twice() {
    let source = numbers(LEN);
    let from = [LayerRef {
        keys: &source,
        values: None,
    }];
    let pages = KeyLayout::nhd(F32, [5, 4, 2, 8]);
    refused("block table entry 3: block 1 is there twice", |keys, _| {
        let to = pages.with_table(&[0, 1, 2, 1, 3]);
        Cpu::new().copy(
            &rotations(),
            CacheLayout::keys_only(pages),
            &from,
            CacheLayout::keys_only(to),
            &mut [Layer::keys_only(keys)],
        )
    });
}

/// Half of an edit is none: what has values moves them, or its layout says that it has none.
#[test]
fn values_that_would_stay_behind() {
    const BEHIND: &str = "has no values, but the layout says where they lie";
    let packed = KeyLayout::packed_nhd(F32, [5, 2, 2, 8]);
    let plan = Plan::from_edits(6, &[Edit::insert(1, 2)]).unwrap();
    let packed_rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    refused(BEHIND, |buffer, _| {
        let mut layers = [Layer::keys_only(buffer)];
        Cpu::new().splice(&packed_rotations, packed, &mut layers)
    });
    refused(BEHIND, |keys, _| {
        Cpu::new().splice(&rotations(), layout(), &mut [Layer::keys_only(keys)])
    });
    refused(BEHIND, |keys, _| {
        let old = numbers(LEN);
        let from = [LayerRef {
            keys: &old,
            values: None,
        }];
        let mut layers = [Layer::keys_only(keys)];
        Cpu::new().copy(&rotations(), layout(), &from, layout(), &mut layers)
    });
    refused(BEHIND, |keys, values| {
        let mut other = numbers(LEN);
        let mut layers = [Layer::new(keys, values), Layer::keys_only(&mut other)];
        Cpu::new().splice(&rotations(), layout(), &mut layers)
    });
    refused("layer 1 has values, but the layout does not", |keys, _| {
        let (mut others, mut more) = (numbers(LEN), numbers(LEN));
        let mut layers = [Layer::keys_only(keys), Layer::new(&mut others, &mut more)];
        Cpu::new().splice(&rotations(), keys_only(), &mut layers)
    });
    // Keys alone, where the layout says so.
    let before = numbers(LEN);
    let (mut alone, mut keys, mut values) = (before.clone(), before.clone(), numbers(LEN));
    let mut layers = [Layer::keys_only(&mut alone)];
    Cpu::new()
        .splice(&rotations(), keys_only(), &mut layers)
        .unwrap();
    let mut layers = [Layer::new(&mut keys, &mut values)];
    Cpu::new()
        .splice(&rotations(), layout(), &mut layers)
        .unwrap();
    assert_ne!(alone, before);
    assert_same_bits(&alone, &keys, bhsd([1, 2, ROWS, 8]));
}

#[test]
fn keys_turn_where_they_are_without_their_values() {
    let [before, values_before] = [numbers(LEN), numbers(LEN)];
    let (mut keys, mut values, mut others) =
        (before.clone(), values_before.clone(), before.clone());
    let mut layers = [
        Layer::new(&mut keys, &mut values),
        Layer::keys_only(&mut others),
    ];
    Cpu::new()
        .rotate(&rotations(), layout(), &mut layers)
        .unwrap();
    assert!(keys != before);
    assert_same_bits(&keys, &others, bhsd([1, 2, ROWS, 8]));
    assert_same_bits(&values, &values_before, bhsd([1, 2, ROWS, 8]));
}

#[test]
fn rows_of_nothing() {
    splice_refused(
        "layer 0, keys: it has 0 heads of 8 dimensions",
        &rotations(),
        KeyLayout::bhsd(F32, [1, 0, ROWS, 8]),
    );
    splice_refused(
        "layer 0, keys: it has 2 heads of 0 dimensions",
        &rotations(),
        KeyLayout::bhsd(F32, [1, 2, ROWS, 0]),
    );
}

#[test]
fn values_copied_over_keys() {
    // Keys and values of one buffer: the keys go where the values are, which go elsewhere. Neither pair
    // overlaps by itself.
    let part = |start: usize| KeyLayout::bshd(F32, [1, 10, 1, 8]).with_offset(start);
    let (from, to) = (
        CacheLayout::new(part(0), part(80)),
        CacheLayout::new(part(80), part(160)),
    );
    let plan = Plan::from_edits(8, &[Edit::insert(4, 2)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    refused("keys and values share a buffer", |buffer, _| {
        Cpu::new().copy_within(&rotations, from, to, &mut [Layer::packed(buffer)])
    });
}

#[test]
fn keys_and_values_of_two_types() {
    let values = KeyLayout::bhsd(ElementType::F16, [1, 2, ROWS, 8]);
    splice_refused(
        "slices of f32, but the layout is for f16",
        &rotations(),
        CacheLayout::new(layout(), values),
    );
    // By address nothing but the layout says what the elements are.
    refused("keys are f32, values f16", |keys, more| {
        let layer = RawLayer {
            keys: keys.as_mut_ptr().cast(),
            keys_len: keys.len(),
            values: more.as_mut_ptr().cast(),
            values_len: more.len(),
        };
        // SAFETY: two slices, lent for the call, of at least as many elements as said.
        unsafe {
            Cpu::new().splice_raw(&rotations(), &CacheLayout::new(layout(), values), &[layer])
        }
    });
}

#[test]
fn part_of_a_packed_head() {
    // Packs of 4 dimensions: 4..12 are two whole ones, others cut one at either end.
    let pages = KeyLayout::x_packed(F32, [5, 2, 4, 2, 4]);
    for cut in [2..10, 4..10, 2..12] {
        let error = pages.narrow_dims(cut.clone()).unwrap_err().to_string();
        let expected = format!("dimensions {cut:?} cut a pack of 4");
        assert!(error.contains(&expected), "{error}");
    }
    for outside in [4..4, 4..20, 20..24] {
        let error = pages.narrow_dims(outside.clone()).unwrap_err().to_string();
        let expected = format!("dimensions {outside:?} are not inside the head dimension 16");
        assert!(error.contains(&expected), "{error}");
    }
    let narrow = pages.narrow_dims(4..12).unwrap();
    assert_eq!(narrow.head_dim(), 8);

    // The dimensions from 4 on turn as they would in the whole head, and no other is touched.
    let plan = Plan::from_positions(&[5, 6, 7], &[9, 9, 9]).unwrap();
    let rope = Rope::from_theta(10_000.0, 8).unwrap();
    let before: Vec<f32> = (0..LEN).map(|i| i as f32 + 0.5).collect();
    let (mut whole, mut part) = (before.clone(), before.clone());
    for (keys, layout, rope) in [
        (&mut whole, pages, rope.clone().with_offset(4)),
        (&mut part, narrow, rope),
    ] {
        let rotations = Rotations::new(&plan, &rope).unwrap();
        Cpu::new()
            .rotate(&rotations, layout, &mut [Layer::keys_only(keys)])
            .unwrap();
    }
    assert!(whole != before);
    assert_eq!(whole, part);
}

#[test]
fn an_empty_cache_is_copied_to_an_empty_one() {
    let empty = CacheLayout::keys_only(KeyLayout::bhsd(F32, [0, 2, ROWS, 8]));
    let from = [LayerRef::<f32> {
        keys: &[],
        values: None,
    }];
    let mut layers = [Layer::keys_only(&mut [])];
    Cpu::new()
        .copy(&rotations(), empty, &from, empty, &mut layers)
        .unwrap();
}

#[test]
fn threads_and_instruction_sets() {
    let error = Cpu::with_threads(usize::MAX).unwrap_err().to_string();
    assert!(error.contains("are more than 4096"), "{error}");
    let error = Cpu::with_threads(0).unwrap_err();
    assert!(matches!(
        error,
        Error::Argument {
            argument: "threads",
            ..
        }
    ));
    let error = Cpu::with_instruction_set("abacus").unwrap_err().to_string();
    assert!(error.starts_with("name: there is no abacus"), "{error}");
}

/// Turning keys where they are looks at no values: not at their table, their rows, or where they lie.
#[test]
fn values_that_do_not_fit_are_no_harm_to_a_rotation() {
    let keys_layout = KeyLayout::nhd(F32, [5, 4, 2, 8]);
    let tables: [&[u32]; 3] = [&[0, 1, 9, 2, 3], &[0, 1, 1, 2, 3], &[0]];
    for table in tables {
        let layout = CacheLayout::new(keys_layout, keys_layout.with_table(table));
        let before = [numbers(LEN), numbers(LEN)];
        let [mut keys, mut values] = before.clone();
        let mut layers = [Layer::new(&mut keys, &mut values)];
        Cpu::new()
            .rotate(&rotations(), layout, &mut layers)
            .unwrap();
        assert!(keys != before[0]);
        assert_same_bits(&values, &before[1], |index| format!("element {index}"));
        // Where they move, they are looked at.
        let mut layers = [Layer::new(&mut keys, &mut values)];
        let refused = Cpu::new().splice(&rotations(), layout, &mut layers);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("values: "), "{error}");
    }
}

/// Tables are compared by what they hold, wherever they lie.
#[test]
fn tables_of_keys_and_values_in_one_buffer() {
    let packed = KeyLayout::packed_nhd(F32, [5, 4, 1, 8]);
    let values = packed.values.unwrap();
    let (table, copy, other) = ([4, 0, 2, 1, 3], [4, 0, 2, 1, 3], [4, 0, 2, 3, 1]);
    let keys = packed.keys.with_table(&table);
    assert_eq!(keys, packed.keys.with_table(&copy));
    assert_ne!(keys, packed.keys.with_table(&other));
    assert_ne!(keys, packed.keys);
    assert_ne!(keys, values.with_table(&table));

    let splice = |values| {
        let mut buffer = numbers(LEN);
        let layout = CacheLayout::new(keys, values);
        Cpu::new().splice(&rotations(), layout, &mut [Layer::packed(&mut buffer)])
    };
    splice(values.with_table(&table)).unwrap();
    splice(values.with_table(&copy)).unwrap();
    // Keys and values are in different parts of every block, whichever it is.
    splice(values.with_table(&other)).unwrap();
}

#[test]
fn heads_that_are_not_there() {
    for outside in [0..3, 1..1, 2..3] {
        let error = layout().narrow_heads(outside.clone()).unwrap_err();
        assert!(
            error.to_string().contains(&format!("{outside:?}")),
            "{error}"
        );
    }
    assert_eq!(layout().narrow_heads(1..2).unwrap().heads(), 1);
}

/// From fewer blocks to more of the same buffer.
#[test]
fn a_copy_to_other_blocks_may_grow() {
    let pages = KeyLayout::nhd(F32, [10, 2, 2, 8]);
    let plan = Plan::from_edits(2, &[Edit::insert(1, 1)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    let (src, dst) = (pages.with_table(&[5]), pages.with_table(&[1, 9]));
    let before = [numbers(LEN), numbers(LEN)];
    let [mut keys, mut values] = before.clone();
    let mut layers = [Layer::new(&mut keys, &mut values)];
    Cpu::new()
        .copy_within(&rotations, src, dst, &mut layers)
        .unwrap();
    let row = |block: usize, row: usize| (2 * block + row) * 16..(2 * block + row + 1) * 16;
    let mut expected = before.clone();
    for (expected, before) in expected.iter_mut().zip(&before) {
        expected[row(1, 0)].copy_from_slice(&before[row(5, 0)]);
    }
    expected[1][row(9, 0)].copy_from_slice(&before[1][row(5, 1)]);
    assert_same_bits(&values, &expected[1], |index| format!("element {index}"));
    assert!(keys[row(9, 0)] != before[0][row(9, 0)] && keys[row(9, 0)] != before[0][row(5, 1)]);
    keys[row(9, 0)].copy_from_slice(&before[0][row(9, 0)]);
    assert_same_bits(&keys, &expected[0], |index| format!("element {index}"));
}
