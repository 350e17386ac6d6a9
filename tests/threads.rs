//! Many threads write the same bits as one.
#![cfg(feature = "rayon")]

#[allow(
    dead_code,
    reason = "only the cache shapes of the conformance suite are used here"
)]
#[path = "conformance/case.rs"]
mod case;

use case::{Cache, Half, Shape};
use half::f16;
use pie_rope::{Cpu, Edit, Element, Layer, LayerRef, ModelRope, Pairing, Plan, Rope, Rotations};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const ROWS: usize = 2500;
const LAYERS: usize = 3;
const DIM: usize = 64;

fn cache(shape: Shape, random: &mut SmallRng) -> [Cache; 2] {
    let block = shape.block().unwrap_or(1);
    let blocks = (ROWS + 100).div_ceil(block);
    let mut order: Vec<u32> = (0..2 * blocks as u32).collect();
    order.shuffle(random);
    [0, blocks].map(|start| Cache {
        shape,
        element: f16::TYPE,
        heads: if shape == Shape::Mla { 1 } else { 4 },
        dim: if shape == Shape::Mla { 512 + DIM } else { DIM },
        slots: 2 * blocks * block,
        offset: 0,
        table: shape.block().map(|_| order[start..start + blocks].to_vec()),
    })
}

type Buffers = Vec<(Vec<f16>, Option<Vec<f16>>)>;

fn layers(buffers: &mut Buffers, packed: bool) -> Vec<Layer<'_, f16>> {
    let mut all = Vec::new();
    for (keys, values) in buffers {
        all.push(match values {
            Some(values) => Layer::new(keys, values),
            None if packed => Layer::packed(keys),
            None => Layer::keys_only(keys),
        });
    }
    all
}

#[test]
fn three_threads_write_what_one_writes() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let edits = [
        Edit::insert(100, 50),
        Edit::delete(900..905),
        Edit::replace(1000..1100, 10),
        Edit::insert(2400, 3),
    ];
    let plan = Plan::from_edits(ROWS, &edits).unwrap();
    let (one, three) = (Cpu::with_threads(1).unwrap(), Cpu::with_threads(3).unwrap());
    assert_eq!((one.threads(), three.threads()), (1, 3));
    for shape in Shape::ALL {
        let [here, there] = cache(shape, &mut random);
        let offset = if shape == Shape::Mla { 512 } else { 0 };
        let rope = Rope::from_theta(10_000.0, DIM).unwrap().with_offset(offset);
        let other = rope.clone().with_pairing(Pairing::Interleaved);
        let model = ModelRope::from_layers([Some(rope), None, Some(other)]);
        let rotations = Rotations::for_model(&plan, &model).unwrap();
        let mut noise = |len: usize| -> Vec<f16> {
            (0..len).map(|_| f16::from_bits(random.random())).collect()
        };
        let before: Buffers = (0..LAYERS)
            .map(|_| {
                (
                    noise(here.len(Half::Keys).unwrap()),
                    here.len(Half::Values).map(&mut noise),
                )
            })
            .collect();
        let packed = shape.is_packed();
        for verb in ["rotate", "splice", "copy", "copy_within"] {
            if verb == "copy_within" && shape.block().is_none() {
                continue; // Needs a second place in the buffer; that it works is the conformance suite's.
            }
            let run = |cpu: &Cpu| {
                let mut after = before.clone();
                let source: Vec<_> = before
                    .iter()
                    .map(|(keys, values)| LayerRef {
                        keys,
                        values: values.as_deref().or(packed.then_some(keys)),
                    })
                    .collect();
                let mut layers = layers(&mut after, packed);
                match verb {
                    "rotate" => cpu.rotate(&rotations, here.layout(), &mut layers),
                    "splice" => cpu.splice(&rotations, here.layout(), &mut layers),
                    "copy" => cpu.copy(
                        &rotations,
                        here.layout(),
                        &source,
                        there.layout(),
                        &mut layers,
                    ),
                    _ => cpu.copy_within(&rotations, here.layout(), there.layout(), &mut layers),
                }
                .unwrap();
                drop(layers);
                let bits = |values: &[f16]| bytemuck::cast_slice::<f16, u16>(values).to_vec();
                after
                    .iter()
                    .map(|(keys, values)| (bits(keys), values.as_deref().map(bits)))
                    .collect::<Vec<_>>()
            };
            let alone = run(&one);
            assert!(
                alone[0].0 != bytemuck::cast_slice::<f16, u16>(&before[0].0),
                "{verb} {shape:?} did nothing"
            );
            for _ in 0..3 {
                assert!(run(&three) == alone, "{verb} {shape:?}");
            }
        }
    }
}
