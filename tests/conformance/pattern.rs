//! What happens to the rows of a case: edits, evictions, new positions, new frequencies.

use pie_rope::{Edit, ModelRope, Plan, Rotations};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::case::Case;

/// A way of changing a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Three tokens inserted: one delta, rows move right by less than a page.
    Insert,
    /// Five tokens deleted: one delta, rows move left.
    Delete,
    /// Insertions, deletions and a replacement of equal length at once: rows move both ways, and some
    /// neither move nor turn.
    Several,
    /// Every third row evicted, the rest renumbered: many short spans.
    Evict,
    /// Rows stay, all turn by one delta as large as there is, from the last positions.
    Far,
    /// Rows stay, every row turns by its own delta.
    Scattered,
    /// The frequencies changed: every row turns by its own angles, and edits besides, at small positions or at the
    /// last ones.
    Frequencies,
    /// Rows stay, some are free or another sequence's, and the frequencies changed for all others.
    Cells,
    /// Nothing happens.
    Nothing,
}

/// Layers of every case. The middle one has no rope, the last has another one than the first.
pub const LAYERS: usize = 3;

impl Pattern {
    pub const ALL: [Pattern; 9] = [
        Pattern::Insert,
        Pattern::Delete,
        Pattern::Several,
        Pattern::Evict,
        Pattern::Far,
        Pattern::Scattered,
        Pattern::Frequencies,
        Pattern::Cells,
        Pattern::Nothing,
    ];

    /// The pattern's plan for a sequence of `rows` rows, and the ropes at the old and new positions.
    pub fn scene(self, case: &Case, rows: usize, random: &mut SmallRng) -> Scene {
        // Anywhere, so that the first row that a call touches is in any page.
        let near = random.random_range(0..rows.max(1));
        let plan = match self {
            Pattern::Insert => Plan::from_edits(rows, &[Edit::insert(near, 3)]),
            Pattern::Delete => Plan::from_edits(rows, &[Edit::delete(near..(near + 5).min(rows))]),
            Pattern::Several => {
                let at = |eighth: usize| rows * eighth / 8;
                let edits = [
                    Edit::insert(at(1), 7),
                    Edit::delete(at(2)..at(3)),
                    Edit::replace(at(4)..(at(4) + 2).min(at(5)), 40),
                    Edit::replace(at(6)..at(7), at(7) - at(6)),
                    Edit::delete(at(7)..rows),
                ];
                Plan::from_edits_at(100_000, rows, &edits)
            }
            Pattern::Evict => {
                let kept: Vec<usize> = (0..rows).filter(|row| row % 3 != 1).collect();
                Plan::from_kept(rows, &kept)
            }
            Pattern::Far => {
                let delta = i32::MAX - rows as i32 - random.random_range(0..9);
                let new: Vec<i32> = (0..rows as i32).collect();
                let old: Vec<i32> = new.iter().map(|position| position + delta).collect();
                Plan::from_positions(&old, &new)
            }
            Pattern::Scattered => {
                let mut positions =
                    || -> Vec<i32> { (0..rows).map(|_| random.random_range(0..131_072)).collect() };
                Plan::from_positions(&positions(), &positions())
            }
            Pattern::Frequencies => {
                let edits = [
                    Edit::insert(rows / 8, 3),
                    Edit::delete(rows / 2..(rows / 2 + 9).min(rows)),
                ];
                let first = [4_000, i32::MAX - 1_000][random.random_range(0..2)];
                Plan::from_edits_at(first, rows, &edits)
            }
            Pattern::Cells => {
                let mut cells = || -> (i32, i32) {
                    match random.random_range(0..3) {
                        0 => (-1, -1),
                        1 => (
                            random.random_range(0..131_072),
                            random.random_range(0..131_072),
                        ),
                        _ => (7, 7),
                    }
                };
                let (old, new): (Vec<i32>, Vec<i32>) = (0..rows).map(|_| cells()).unzip();
                Plan::from_positions(&old, &new)
            }
            Pattern::Nothing => Plan::from_edits(rows, &[]),
        };
        // The first rope's frequencies may change, the last one's stay.
        let ropes = |theta: f64| {
            ModelRope::from_layers([Some(case.rope(theta)), None, Some(case.rope(500_000.0))])
        };
        let old = ropes(10_000.0);
        let new = if [Pattern::Frequencies, Pattern::Cells].contains(&self) {
            ropes(32_000.0)
        } else {
            old.clone()
        };
        Scene {
            plan: plan.expect("a sound plan"),
            old,
            new,
        }
    }
}

/// A plan and the ropes it is to be applied with.
pub struct Scene {
    pub plan: Plan,
    pub old: ModelRope,
    pub new: ModelRope,
}

impl Scene {
    pub fn rotations(&self) -> Rotations {
        Rotations::between(&self.plan, &self.old, &self.new).expect("ropes of one shape")
    }
}
