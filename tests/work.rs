//! What a call costs follows what it has to do, not a number in its arguments: memory is counted here, byte by byte.

mod counting;

use counting::taken;
use pie_rope::{
    CacheLayout, Cpu, Edit, ElementType, KeyLayout, Layer, ModelRope, Plan, Rope, Rotations,
};

/// What each request that may fail asks for besides, and gives back at once (`src/memory.rs`).
const SPARE: usize = 16 << 10;

/// What a call returns, and the bytes that it has asked for.
fn bytes<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let (result, taken) = taken(run);
    (result, taken.bytes)
}

/// On this thread, whose memory is counted; a pool of threads takes some when it starts.
fn cpu() -> Cpu {
    Cpu::with_threads(1).unwrap()
}

fn rope(theta: f64) -> Rope {
    Rope::from_theta(theta, 64).unwrap()
}

#[test]
fn rotations_of_some_rows_or_layers_share_their_tables() {
    let plan = Plan::from_edits(50_000, &[Edit::insert(10, 3)]).unwrap();
    let model = |theta| ModelRope::from_layers([Some(rope(theta)), Some(rope(5e5)), None]);
    let (all, table) = bytes(|| Rotations::between(&plan, &model(1e4), &model(1e6)).unwrap());
    // One table of a row for each row. The other layer's frequencies stay, so it has one row.
    let row = 2 * 32 * 4;
    assert!(
        (50_000 * row..50_200 * row + 12 * SPARE).contains(&table),
        "{table}"
    );
    assert_eq!(all.tables()[1].rows(), 1);
    for (name, some) in [
        ("select", bytes(|| all.select([0]).unwrap())),
        ("starting_at", bytes(|| all.starting_at(30_000))),
        ("affected_only", bytes(|| all.affected_only())),
        ("clone", bytes(|| all.clone())),
    ] {
        assert!(some.1 < 2_000, "{name}: {} bytes", some.1);
        assert_eq!(some.0.tables()[0].row(7), all.tables()[0].row(7), "{name}");
    }
    // What is shared is neither written to nor copied.
    let mut update = all.clone();
    let next = Plan::from_edits(40, &[Edit::delete(0..3)]).unwrap();
    let (updated, bytes) = bytes(|| update.update(&next));
    updated.unwrap();
    assert!(
        bytes < 37 * row + 20_000 + 6 * SPARE,
        "update: {bytes} bytes"
    );
    assert_eq!(update.tables()[0].rows(), 37);
    assert_eq!(all.tables()[0].rows(), 50_000);
}

/// An angle for each row costs its table and some bytes more, in whatever order the rows are.
#[test]
fn an_angle_for_each_row_costs_its_table() {
    const ROWS: i32 = 50_000;
    let model = |theta| ModelRope::from_layers([Some(rope(theta)), Some(rope(theta + 1.0))]);
    let (old, new) = (model(1e4), model(1e6));
    let row = 2 * 32 * 4;
    for by in [1, 7919] {
        let positions: Vec<i32> = (0..ROWS).map(|i| i * by % ROWS).collect();
        let plan = Plan::from_positions(&positions, &positions).unwrap();
        let (mut rotations, taken) = bytes(|| Rotations::between(&plan, &old, &new).unwrap());
        let table = ROWS as usize * row;
        assert!(
            (2 * table..2 * table + 64 * ROWS as usize).contains(&taken),
            "{taken}"
        );
        // Another plan needs no other tables.
        let (updated, taken) = bytes(|| rotations.update(&plan));
        updated.unwrap();
        assert!(taken < 20 * ROWS as usize, "update: {taken}");
        assert_eq!(rotations.tables().len(), 2);
        assert_eq!(rotations.tables()[1].rows(), ROWS as usize);
    }
    // One row more with each edit: new tables are seldom needed.
    let plans: Vec<Plan> = (1..300)
        .map(|row| Plan::from_edits(1000 + row, &[Edit::insert(5, 1)]).unwrap())
        .collect();
    let mut rotations = Rotations::between(&plans[0], &old, &new).unwrap();
    let tables = taken(|| {
        plans[1..]
            .iter()
            .for_each(|plan| rotations.update(plan).unwrap())
    });
    let lists = 299 * (1300 / 32 * 20 + 34 * 64 * 8 + 4 * SPARE);
    assert!(
        tables.1.bytes < 2 * 1500 * row + lists,
        "{} bytes",
        tables.1.bytes
    );
}

/// A pool of a million slots, of which an edit touches a few: neither the pool nor the table counts.
#[test]
fn a_call_looks_at_the_blocks_that_it_touches() {
    let slots = 1 << 20;
    let mut table: Vec<u32> = (0..slots as u32).rev().collect();
    // Entries of rows that do not turn are not looked at.
    table[100_000] = u32::MAX;
    let layout = KeyLayout::slots(ElementType::F32, [slots, 1, 4]).with_table(&table);
    let mut keys = vec![0.5f32; slots * 4];
    let rope = Rope::from_theta(1e4, 4).unwrap();
    let mut call = |plan: &Plan| {
        let rotations = Rotations::new(plan, &rope).unwrap();
        let mut layers = [Layer::keys_only(&mut keys)];
        let (result, bytes) = bytes(|| cpu().rotate(&rotations, layout, &mut layers));
        result.unwrap();
        assert!(bytes < 4_000 + 2 * SPARE, "{bytes} bytes");
    };
    let mut positions = vec![-1; 900_000];
    call(&Plan::from_positions(&positions, &positions).unwrap());
    for row in [0, 5, 899_999] {
        positions[row] = row as i32;
    }
    let new: Vec<i32> = positions
        .iter()
        .map(|&p| if p < 0 { p } else { p + 1 })
        .collect();
    call(&Plan::from_positions(&positions, &new).unwrap());
    assert!(keys[(slots - 6) * 4] != 0.5 && keys[(slots - 7) * 4] == 0.5);
}

/// A layout may claim more blocks than any memory has, if no row is in them.
#[test]
fn a_number_of_blocks_is_no_amount_of_memory() {
    let table = [1u32, 0, 2];
    // Blocks that lie in one place but for those of the table would overlap, so their stride is honest; the buffer's
    // length is not, as where an engine does not know it.
    let layout = KeyLayout::nhd(ElementType::F32, [1 << 50, 2, 1, 4]).with_table(&table);
    let mut keys = [0.5f32; 24];
    let layer = pie_rope::RawLayer {
        keys: keys.as_mut_ptr().cast(),
        keys_len: usize::MAX,
        values: std::ptr::null_mut(),
        values_len: 0,
    };
    let plan = Plan::from_edits(6, &[Edit::delete(0..1)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(1e4, 4).unwrap()).unwrap();
    let layout = CacheLayout::keys_only(layout);
    // SAFETY: the call touches rows 0 to 5, in blocks 0 to 2 of 8 elements each, which the array holds.
    let (result, bytes) = bytes(|| unsafe { cpu().splice_raw(&rotations, &layout, &[layer]) });
    result.unwrap();
    assert!(bytes < 4_000 + 2 * SPARE, "{bytes} bytes");
    assert_ne!(keys[8], 0.5);
}

/// The stride of an axis of one index is of no account, however large.
#[test]
fn a_stride_that_nobody_takes() {
    use pie_rope::{Axis, LayerRef, Strides};
    let rope = Rope::from_theta(1e4, 8).unwrap();
    let plans = [
        Plan::from_positions(&[0], &[3]).unwrap(),
        // Up and down, where there are two rows.
        Plan::from_edits(1, &[Edit::insert(0, 1)]).unwrap(),
        Plan::from_edits(2, &[Edit::delete(0..1)]).unwrap(),
    ];
    let edit = |plan: &Plan, strides: Strides| -> [Vec<f32>; 4] {
        let rotations = Rotations::new(plan, &rope).unwrap();
        let numbers = |from: u8| (from..from + 64).map(f32::from).collect::<Vec<_>>();
        let [mut keys, mut values, mut to, mut to_values] = [1, 2, 3, 4].map(numbers);
        let layout = KeyLayout::strided(ElementType::F32, strides);
        let layout = CacheLayout::new(layout, layout);
        let mut layers = [Layer::new(&mut keys, &mut values)];
        cpu().rotate(&rotations, layout, &mut layers).unwrap();
        cpu().splice(&rotations, layout, &mut layers).unwrap();
        let from = [LayerRef {
            keys: &keys[..],
            values: Some(&values[..]),
        }];
        let mut there = [Layer::new(&mut to, &mut to_values)];
        let copied = cpu().copy(&rotations, layout, &from, layout, &mut there);
        copied.unwrap();
        [keys, values, to, to_values]
    };
    let (two_rows, two_heads, two_packs) = (Axis::new(2, 16), Axis::new(2, 8), Axis::new(2, 4));
    for large in [usize::MAX, isize::MAX as usize, 1 << 63, 1 << 62, 1 << 61] {
        for axes in 0..8 {
            let strides = |stride| {
                let one = Axis::new(1, stride);
                let of = |bit: usize, two| if axes >> bit & 1 == 1 { two } else { one };
                let packs = of(2, two_packs);
                Strides {
                    offset: 0,
                    batch: one,
                    blocks: one,
                    rows: of(0, two_rows),
                    heads: of(1, two_heads),
                    packs,
                    pack: 8 / packs.len,
                }
            };
            for plan in &plans[..if axes & 1 == 1 { 3 } else { 1 }] {
                let found = edit(plan, strides(large));
                assert_eq!(found, edit(plan, strides(64)), "{:?}", strides(large));
                assert_ne!(found[0][..8], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
            }
        }
    }
}

/// Nothing to do is nothing to pay for, however many heads or sequences a layout claims.
#[test]
fn a_number_of_heads_is_no_amount_of_memory() {
    let mut keys = [0.5f32; 8];
    let layer = pie_rope::RawLayer {
        keys: keys.as_mut_ptr().cast(),
        keys_len: usize::MAX,
        values: std::ptr::null_mut(),
        values_len: 0,
    };
    let rotations = |plan: &Plan| Rotations::new(plan, &Rope::from_theta(1e4, 4).unwrap()).unwrap();
    let nothing = rotations(&Plan::from_edits(2, &[]).unwrap());
    let empty = rotations(&Plan::from_kept(2, &[]).unwrap());
    for [batch, heads] in [[1 << 40, 1], [1, 1 << 40], [1, 1 << 58]] {
        for layout in [
            KeyLayout::bhsd(ElementType::F32, [batch, heads, 2, 4]),
            KeyLayout::bshd(ElementType::F32, [batch, 2, heads, 4]),
        ] {
            let layout = CacheLayout::keys_only(layout);
            let cpu = cpu();
            // SAFETY: no row turns, moves or is copied, so nothing is read or written.
            let (result, bytes) = bytes(|| unsafe {
                cpu.rotate_raw(&nothing, &layout, &[layer])?;
                cpu.splice_raw(&nothing, &layout, &[layer])?;
                cpu.copy_raw(&empty, (&layout, &[layer]), (&layout, &[layer]))
            });
            result.unwrap();
            assert!(bytes < 10_000 + 6 * SPARE, "{bytes} bytes");
        }
    }
}

/// Keys and values of packed pages lie apart whatever their tables say, so no table is compared.
#[test]
fn packed_pages_by_two_tables() {
    let (blocks, block) = (9, 2);
    let tables: [Vec<u32>; 2] = [vec![3, 1, 7, 0], vec![2, 8, 1, 5]];
    let packed = KeyLayout::packed_nhd(ElementType::F32, [blocks, block, 1, 4]);
    let mut layout = packed.with_table(&tables[0]);
    layout.values = layout.values.map(|values| values.with_table(&tables[1]));
    let before: Vec<f32> = (0..blocks * 2 * block * 4).map(|i| i as f32).collect();
    let mut cache = before.clone();
    let plan = Plan::from_edits(7, &[Edit::insert(2, 1)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(1e4, 4).unwrap()).unwrap();
    let mut layers = [Layer::packed(&mut cache)];
    Cpu::new().splice(&rotations, layout, &mut layers).unwrap();
    let at = |row: usize, part: usize| {
        let block = tables[part][row / 2] as usize;
        (block * 4 + part * 2 + row % 2) * 4
    };
    for row in 2..7 {
        let (from, to) = (at(row, 1), at(row + 1, 1));
        assert_eq!(
            cache[to..to + 4],
            before[from..from + 4],
            "the value of row {row}"
        );
        let to = at(row + 1, 0);
        assert_ne!(
            cache[to..to + 4],
            before[to..to + 4],
            "the key of row {row}"
        );
    }
    assert_eq!(cache[at(1, 0)..][..4], before[at(1, 0)..][..4]);
}
