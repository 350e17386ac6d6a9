//! Planning in the steady state allocates nothing: an editor plans at every key stroke.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pie_rope::{Edit, Plan, Rope, Rotations};

thread_local! {
    // Constant and without a destructor, so that counting allocates nothing itself.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes on to the system's allocator as it came; counting touches no memory that
// is allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

#[test]
fn setting_edits_again_allocates_nothing() {
    let rows = 131_072;
    let one = [Edit::replace(60_000..60_005, 9)];
    // Out of order, so that sorting has something to do.
    let many: Vec<Edit> = (0..100)
        .map(|i| Edit::replace(i * 37 % 100 * 1000..i * 37 % 100 * 1000 + i % 5, i % 7))
        .collect();

    let mut plan = Plan::default();
    assert!(
        allocations(|| plan.set_edits(rows, &many).unwrap()) > 0,
        "the counter counts"
    );
    let steady = allocations(|| {
        for turn in 0..50 {
            plan.set_edits(rows, &one).unwrap();
            plan.set_edits_at(turn, rows, &many).unwrap();
        }
    });
    assert_eq!(steady, 0);
    assert_eq!(plan, Plan::from_edits_at(49, rows, &many).unwrap());
    assert!(plan.deltas().len() > 50, "{:?}", plan.deltas());
}

#[test]
fn the_next_edit_s_rotations_allocate_nothing() {
    let rows = 131_072;
    let edits = |shift: usize| {
        [
            Edit::insert(1000 + shift, 3 + shift),
            Edit::delete(50_000..50_007 + shift),
            Edit::replace(90_000..90_010, 20),
        ]
    };
    let rope = Rope::from_theta(100_000.0, 128).unwrap();
    let mut plan = Plan::from_edits(rows, &edits(0)).unwrap();
    let mut rotations = Rotations::new(&plan, &rope).unwrap();
    let steady = allocations(|| {
        for shift in 1..50 {
            plan.set_edits(rows, &edits(shift)).unwrap();
            rotations.update(&plan).unwrap();
        }
    });
    assert_eq!(steady, 0);
    assert_eq!(rotations, Rotations::new(&plan, &rope).unwrap());
}
