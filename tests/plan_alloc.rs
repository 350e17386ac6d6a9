//! Planning in the steady state allocates nothing: an editor plans at every key stroke.

mod counting;

use counting::taken;
use pie_rope::{Edit, Plan, Rope, Rotations};

fn allocations(run: impl FnOnce()) -> usize {
    taken(run).1.allocations
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
