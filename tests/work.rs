//! What a call costs follows what it has to do, not a number in its arguments: memory is counted here, byte by byte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pie_rope::{
    CacheLayout, Cpu, Edit, ElementType, KeyLayout, Layer, ModelRope, Plan, Rope, Rotations,
};

thread_local! {
    // Constant and without a destructor, so that counting allocates nothing itself.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes on to the system's allocator as it came; counting touches no memory that is allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get() + layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.set(BYTES.get() + size);
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a call returns, and the bytes that it has allocated.
fn bytes<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = BYTES.get();
    let result = run();
    (result, BYTES.get() - before)
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
    assert!((50_000 * row..50_100 * row).contains(&table), "{table}");
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
    // What is shared is not written to.
    let mut update = all.clone();
    update
        .update(&Plan::from_edits(40, &[Edit::delete(0..3)]).unwrap())
        .unwrap();
    assert_eq!(update.tables()[0].rows(), 37);
    assert_eq!(all.tables()[0].rows(), 50_000);
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
        let (result, bytes) = bytes(|| Cpu::new().rotate(&rotations, layout, &mut layers));
        result.unwrap();
        assert!(bytes < 4_000, "{bytes} bytes");
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
    let (result, bytes) = bytes(|| unsafe { Cpu::new().splice_raw(&rotations, &layout, &[layer]) });
    result.unwrap();
    assert!(bytes < 4_000, "{bytes} bytes");
    assert_ne!(keys[8], 0.5);
}

/// The stride of an axis of one index is of no account, however large.
#[test]
fn a_stride_that_nobody_takes() {
    use pie_rope::{Axis, Strides};
    let one = Axis::new(1, usize::MAX);
    let strides = Strides {
        offset: 0,
        batch: one,
        blocks: one,
        rows: one,
        heads: Axis::new(2, 8),
        packs: one,
        pack: 8,
    };
    let layout = CacheLayout::keys_only(KeyLayout::strided(ElementType::F32, strides));
    let plan = Plan::from_positions(&[0], &[3]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(1e4, 8).unwrap()).unwrap();
    let mut keys: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let (before, mut plain) = (keys.clone(), keys.clone());
    let mut layers = [Layer::keys_only(&mut keys)];
    Cpu::new().splice(&rotations, layout, &mut layers).unwrap();
    let bhsd = CacheLayout::keys_only(KeyLayout::bhsd(ElementType::F32, [1, 2, 1, 8]));
    let mut layers = [Layer::keys_only(&mut plain)];
    Cpu::new().splice(&rotations, bhsd, &mut layers).unwrap();
    assert_eq!(keys, plain);
    assert_ne!(keys, before);
}
