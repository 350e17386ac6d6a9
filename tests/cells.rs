//! Rows that a plan does not name keep every bit, by every way to make a plan and to use it: free cells, and those of
//! another sequence.

use pie_rope::{
    Cpu, Edit, ElementType, KeyLayout, Layer, LayerRef, ModelRope, Plan, Rope, Rotations,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const DIM: usize = 8;

/// Numbers that a turn by an angle of zero does not leave as they are: beside an infinity it makes a NaN, of two
/// zeros it changes a sign, and of a NaN the bits.
const FRAGILE: [u32; 4] = [0x8000_0000, 0x7f80_0000, 0xffc0_1234, 0xbf80_0000];

fn random() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// Rows of any bits, many of them fragile.
fn rows(rows: usize, random: &mut SmallRng) -> Vec<f32> {
    let mut bits = || match random.random_range(0..3) {
        0 => random.random::<f32>().to_bits(),
        _ => FRAGILE[random.random_range(0..FRAGILE.len())],
    };
    (0..rows * DIM).map(|_| f32::from_bits(bits())).collect()
}

fn row(keys: &[f32], row: usize) -> Vec<u32> {
    let row = &keys[row * DIM..][..DIM];
    row.iter().map(|key| key.to_bits()).collect()
}

/// Two layers, of which the first changes its frequencies.
fn models() -> [ModelRope; 2] {
    let rope = |theta| Some(Rope::from_theta(theta, DIM).unwrap());
    [1e4, 1e6].map(|theta| ModelRope::from_layers([rope(theta), rope(5e5)]))
}

/// Positions before and after; of a row that is left alone, any negative ones.
fn positions(rows: usize, random: &mut SmallRng) -> (Vec<i32>, Vec<i32>) {
    let mut pair = || match random.random_range(0..4) {
        0 => (-1, -random.random_range(1..9)),
        1 => (random.random_range(0..99), random.random_range(0..99)),
        2 => (i32::MAX, 0),
        _ => (5, 5),
    };
    (0..rows).map(|_| pair()).unzip()
}

#[test]
fn rows_that_no_span_names_keep_every_bit() {
    let mut random = random();
    for _ in 0..200 {
        let count = random.random_range(1..40);
        let (old, new) = positions(count, &mut random);
        let plan = Plan::from_positions(&old, &new).unwrap();
        assert_eq!((plan.old_rows(), plan.new_rows()), (count, count));
        let named: usize = plan.kept().iter().map(|span| span.len).sum();
        assert_eq!(named, old.iter().filter(|&&position| position >= 0).count());

        let [before, after] = models();
        let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, count, DIM]);
        for plan in [
            plan.clone(),
            plan.in_place(),
            plan.then(&Plan::from_positions(&new, &new).unwrap())
                .unwrap(),
        ] {
            for rotations in [
                Rotations::for_model(&plan, &before).unwrap(),
                Rotations::between(&plan, &before, &after).unwrap(),
            ] {
                let changed = rotations.table(0).unwrap().is_row_by_row();
                let start = [(); 4].map(|()| rows(count, &mut random));
                let [mut k0, mut v0, mut k1, mut v1] = start.clone();
                let onto = [(); 4].map(|()| rows(count, &mut random));
                let [mut k2, mut v2, mut k3, mut v3] = onto.clone();
                let cpu = Cpu::new();
                let source = [(&start[0], &start[1]), (&start[2], &start[3])];
                let source = source.map(|(keys, values)| LayerRef {
                    keys,
                    values: Some(values),
                });
                let mut copied = [Layer::new(&mut k2, &mut v2), Layer::new(&mut k3, &mut v3)];
                cpu.copy(&rotations, layout, &source, layout, &mut copied)
                    .unwrap();
                let mut layers = [Layer::new(&mut k0, &mut v0), Layer::new(&mut k1, &mut v1)];
                if random.random() {
                    cpu.rotate(&rotations, layout, &mut layers).unwrap();
                } else {
                    cpu.splice(&rotations, layout, &mut layers).unwrap();
                }
                for at in 0..count {
                    let place = format!("row {at}, from {} to {}", old[at], new[at]);
                    // The second layer's frequencies never change.
                    let stays = old[at] < 0 || old[at] == new[at];
                    if stays && !changed || old[at] < 0 {
                        assert_eq!(row(&k0, at), row(&start[0], at), "{place}");
                    } else {
                        assert_ne!(row(&k0, at), row(&start[0], at), "{place}");
                    }
                    if stays {
                        assert_eq!(row(&k1, at), row(&start[2], at), "{place}");
                    }
                    // A copy brings what has a position, turned or not, and nothing else.
                    let from = if old[at] < 0 { &onto } else { &start };
                    assert_eq!(row(&v2, at), row(&from[1], at), "{place}");
                    assert_eq!(row(&v3, at), row(&from[3], at), "{place}");
                    if old[at] < 0 {
                        assert_eq!(row(&k2, at), row(&onto[0], at), "{place}");
                        assert_eq!(row(&k3, at), row(&onto[2], at), "{place}");
                    }
                }
                assert_eq!(row(&v0, 0), row(&start[1], 0));
                assert_eq!(row(&v1, 0), row(&start[3], 0));
            }
        }
    }
}

/// What becomes of a row, one at a time: where it comes from and at which position it was, if the plan knows, and at
/// which it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Kept(usize, i32, i32),
    New(i32),
    Left,
}

fn fates(plan: &Plan) -> Vec<Fate> {
    let mut fates = vec![Fate::Left; plan.new_rows()];
    for span in plan.kept() {
        for i in 0..span.len {
            let step = i as i32;
            fates[span.dst + i] = Fate::Kept(
                span.src + i,
                span.old_position + step,
                span.new_position + step,
            );
        }
    }
    for span in plan.new_spans() {
        for i in 0..span.len {
            fates[span.row + i] = Fate::New(span.position + i as i32);
        }
    }
    fates
}

/// Plans compose row by row, whichever of them leaves a row alone.
#[test]
fn a_row_that_one_plan_leaves_alone_is_the_other_s() {
    let mut random = random();
    for _ in 0..500 {
        let count = random.random_range(1..20);
        // The first plan leaves rows at their own numbers, so that edits, and other positions, can follow.
        let (old, own): (Vec<i32>, Vec<i32>) = (0..count as i32)
            .map(|row| match random.random_range(0..3) {
                0 => (-1, -1),
                1 => (random.random_range(0..99), row),
                _ => (row, row),
            })
            .unzip();
        let first = Plan::from_positions(&old, &own).unwrap();
        let at = random.random_range(0..=count);
        let next = match random.random_range(0..3) {
            0 => Plan::from_edits(count, &[Edit::insert(at, 3)]).unwrap(),
            1 => Plan::from_edits(count, &[Edit::delete(at / 2..at)]).unwrap(),
            _ => {
                let (from, to): (Vec<i32>, Vec<i32>) = (0..count as i32)
                    .map(|row| match random.random() {
                        true => (row, random.random_range(0..99)),
                        false => (-1, -1),
                    })
                    .unzip();
                Plan::from_positions(&from, &to).unwrap()
            }
        };
        let (one, two) = (fates(&first), fates(&next));
        let expected: Vec<Fate> = two
            .iter()
            .enumerate()
            .map(|(row, &fate)| match fate {
                Fate::New(_) => fate,
                Fate::Left => one[row],
                Fate::Kept(src, from, to) => match one[src] {
                    Fate::Kept(src, from, _) => Fate::Kept(src, from, to),
                    Fate::New(_) => Fate::New(to),
                    Fate::Left => Fate::Kept(src, from, to),
                },
            })
            .collect();
        assert_eq!(fates(&first.then(&next).unwrap()), expected);
    }
    let left = Plan::from_positions(&[3, -1], &[4, -1]).unwrap();
    let error = left.then(&Plan::from_positions(&[5, 9], &[5, 9]).unwrap());
    assert_eq!(
        error.unwrap_err().to_string(),
        "plan: the first plan leaves row 0 at position 4, but the next takes it from position 5"
    );
}
