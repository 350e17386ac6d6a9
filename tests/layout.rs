//! Whether two views of one buffer share an element, held to the elements themselves, one by one.

use std::collections::HashSet;

use pie_rope::{Axis, ElementType, KeyLayout, Strides};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const F32: ElementType = ElementType::F32;

/// Every element that a lattice can name, by the definition.
fn elements(strides: &Strides) -> HashSet<usize> {
    let axes = [
        strides.batch,
        strides.blocks,
        strides.rows,
        strides.heads,
        strides.packs,
        Axis::new(strides.pack, 1),
    ];
    axes.iter()
        .fold(HashSet::from([strides.offset]), |all, axis| {
            let steps = (0..axis.len).map(|index| index * axis.stride);
            steps
                .flat_map(|step| all.iter().map(move |element| element + step))
                .collect()
        })
}

fn random_strides(random: &mut SmallRng) -> Strides {
    let mut axis = || match random.random_range(0..3) {
        0 => Axis::new(1, random.random_range(0..40)),
        _ => Axis::new(random.random_range(1..4), random.random_range(0..24)),
    };
    Strides {
        batch: axis(),
        blocks: axis(),
        rows: axis(),
        heads: axis(),
        packs: axis(),
        offset: random.random_range(0..30),
        pack: random.random_range(1..4),
    }
}

/// What is called disjoint is, in any two lattices: of one kind, as a packed cache has them, or of two.
#[test]
fn disjoint_views_share_no_element() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut found = [0; 2];
    for _ in 0..60_000 {
        let one = random_strides(&mut random);
        let mut other = match random.random() {
            true => one,
            false => random_strides(&mut random),
        };
        other.offset = random.random_range(0..60);
        if random.random_ratio(1, 4) {
            other.pack = random.random_range(1..4);
        }
        let views = [one, other].map(|strides| KeyLayout::strided(F32, strides));
        let disjoint = views[0].is_disjoint(&views[1]);
        assert_eq!(
            disjoint,
            views[1].is_disjoint(&views[0]),
            "{one:?}, {other:?}"
        );
        if disjoint {
            let shared = elements(&one).intersection(&elements(&other)).count();
            assert_eq!(shared, 0, "{one:?}, {other:?}");
        }
        found[usize::from(disjoint)] += 1;
    }
    assert!(found.iter().all(|&number| number > 1_000), "{found:?}");
}

/// In doubt they are not; of what caches are there is none.
#[test]
fn what_caches_have_is_known_to_be_disjoint() {
    let half = KeyLayout::bhsd(F32, [2, 3, 5, 8]);
    // One behind the other, of one shape or two.
    assert!(half.is_disjoint(&half.with_offset(2 * 3 * 5 * 8)));
    assert!(half.is_disjoint(&KeyLayout::bshd(F32, [1, 9, 2, 4]).with_offset(2 * 3 * 5 * 8)));
    assert!(!half.is_disjoint(&half.with_offset(2 * 3 * 5 * 8 - 1)));
    // Interleaved: by block, and by dimension.
    let packed = KeyLayout::packed_nhd(F32, [4, 5, 3, 8]);
    assert!(packed.keys.is_disjoint(&packed.values.unwrap()));
    let both = KeyLayout::bshd(F32, [1, 5, 3, 16]);
    let part = |dims| both.narrow_dims(dims).unwrap();
    assert!(part(0..8).is_disjoint(&part(8..16)));
    assert!(part(0..8).is_disjoint(&part(10..14)));
    assert!(!part(0..9).is_disjoint(&part(8..16)));
}
