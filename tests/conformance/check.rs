//! One run: fresh data, the call, and every byte compared with what the oracle says.

use std::sync::Mutex;

use pie_rope::{ElementType, Rotations, oracle};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::backend::{Backend, Call, Layers};
use crate::buffer::{Buffer, GUARD};
use crate::case::{Cache, Case, Half, Verb};
use crate::pattern::{LAYERS, Pattern, Scene};

/// Largest error allowed, in units in the last place of the stored type at the magnitude of the pair.
pub const MAX_ULPS: f64 = 1.0;

/// The worst error seen so far, per element type.
#[derive(Default)]
pub struct Worst(Mutex<[f64; 3]>);

impl Worst {
    fn record(&self, element: ElementType, ulps: f64) {
        let mut worst = self.0.lock().expect("no panic while held");
        let slot = &mut worst[element as usize];
        *slot = slot.max(ulps);
    }

    pub fn get(&self) -> [(ElementType, f64); 3] {
        let worst = self.0.lock().expect("no panic while held");
        [ElementType::F32, ElementType::F16, ElementType::BF16].map(|e| (e, worst[e as usize]))
    }
}

/// Row counts of a case: one, and around powers of two; which power differs from pattern to pattern.
fn row_counts(pattern: Pattern) -> [usize; 3] {
    let power = 1 << (4 + pattern as usize % 4);
    [1, power, power + 1]
}

/// Runs all patterns and row counts of a case.
pub fn case(case: &Case, backend: &dyn Backend, seed: u64, worst: &Worst) -> Result<(), String> {
    for pattern in Pattern::ALL {
        for rows in row_counts(pattern) {
            let mut random = StdRng::seed_from_u64(seed ^ ((rows as u64) << 32 | pattern as u64));
            run(case, pattern, rows, backend, &mut random, worst)
                .map_err(|problem| format!("{pattern:?}, {rows} rows, seed {seed}: {problem}"))?;
        }
    }
    Ok(())
}

/// The caches of a run.
struct Stage {
    scene: Scene,
    rotations: Rotations,
    /// Where rows are, and come from.
    src: Cache,
    /// Where rows go, in a copy; the same as `src` otherwise.
    dst: Cache,
}

impl Stage {
    fn new(case: &Case, pattern: Pattern, rows: usize, random: &mut StdRng) -> Stage {
        let scene = pattern.scene(case, rows, random);
        let mut rotations = scene.rotations();
        if case.verb == Verb::CopyWithin {
            // Copies the affected rows alone, as when an unchanged prefix is shared.
            rotations = rotations.affected_only();
        }
        let capacity = scene.plan.old_rows().max(scene.plan.new_rows()).max(1) + 2;
        let shape = case.shape;
        let within = case.verb == Verb::CopyWithin;
        let offset = 8 * random.random_range(0..3);
        let (slots, tables) = match shape.block() {
            None => (capacity, [None, None]),
            Some(block) => {
                let needed = capacity.div_ceil(block);
                let mut blocks: Vec<u32> = (0..(2 * needed + 3) as u32).collect();
                blocks.shuffle(random);
                let second = if within { needed } else { 0 };
                let table = |start| Some(blocks[start..start + needed].to_vec());
                (blocks.len() * block, [table(0), table(second)])
            }
        };
        let [src_table, dst_table] = tables;
        let cache = |offset, table| Cache {
            shape,
            element: case.element,
            heads: shape.heads(),
            dim: case.stored_dim(),
            slots,
            offset,
            table,
        };
        let src = cache(offset, src_table);
        let dst = match case.verb {
            Verb::Rotate | Verb::Splice => src.clone(),
            Verb::Copy => cache(offset + 3, dst_table),
            // Without blocks, the destination is another part of the buffer.
            Verb::CopyWithin if shape.block().is_none() => {
                cache(src.len(Half::Keys).expect("keys"), None)
            }
            Verb::CopyWithin => cache(offset, dst_table),
        };
        Stage {
            scene,
            rotations,
            src,
            dst,
        }
    }

    fn layers(&self, element: ElementType, random: &mut StdRng) -> Vec<Layers> {
        let len = |half| self.src.len(half).max(self.dst.len(half));
        let mut buffer = |half| len(half).map(|len| Buffer::random(element, len, random));
        let mut layer = || Layers {
            keys: buffer(Half::Keys).expect("every cache has keys"),
            values: buffer(Half::Values),
        };
        (0..LAYERS).map(|_| layer()).collect()
    }
}

fn run(
    case: &Case,
    pattern: Pattern,
    rows: usize,
    backend: &dyn Backend,
    random: &mut StdRng,
    worst: &Worst,
) -> Result<(), String> {
    let stage = Stage::new(case, pattern, rows, random);
    let before = stage.layers(case.element, random);
    let mut src = before.clone();
    let apart = case.verb == Verb::Copy;
    let mut dst = if apart { stage.layers(case.element, random) } else { Vec::new() };
    let dst_before = if apart { dst.clone() } else { before.clone() };

    let call = Call {
        verb: case.verb,
        element: case.element,
        rotations: &stage.rotations,
        src_layout: stage.src.layout(),
        dst_layout: stage.dst.layout(),
        packed: case.shape.is_packed(),
    };
    backend.run(&call, &mut src, &mut dst).map_err(|error| format!("refused: {error}"))?;

    if apart {
        for (layer, (after, before)) in src.iter().zip(&before).enumerate() {
            let values = after.values.as_ref().zip(before.values.as_ref());
            for (after, before) in [(&after.keys, &before.keys)].into_iter().chain(values) {
                same_bytes(after, before).map_err(|p| format!("layer {layer}, source: {p}"))?;
            }
        }
    }
    let after = if apart { &dst } else { &src };
    for layer in 0..LAYERS {
        expect(case, &stage, layer, (&before[layer], &dst_before[layer]), &after[layer], worst)
            .map_err(|problem| format!("layer {layer}: {problem}"))?;
    }
    Ok(())
}

/// Compares one layer with what it should be: turned keys with the oracle, everything else bit for bit.
fn expect(
    case: &Case,
    stage: &Stage,
    layer: usize,
    (from, onto): (&Layers, &Layers),
    after: &Layers,
    worst: &Worst,
) -> Result<(), String> {
    let mut keys = onto.keys.clone();
    let mut values = onto.values.clone();
    let ropes = stage.scene.old.layer(layer).zip(stage.scene.new.layer(layer));
    let frequencies_changed = stage.scene.old != stage.scene.new;
    let moves = case.verb != Verb::Rotate;

    for span in stage.scene.plan.kept() {
        let turns = frequencies_changed || span.turns();
        let listed = turns || span.moves();
        // Copies take all rows, except that `copy_within` was told to take the affected ones alone.
        if !(listed || case.verb == Verb::Copy) || (!moves && !turns) {
            continue;
        }
        for step in 0..span.len {
            let (src_row, dst_row) = (span.src + step, if moves { span.dst } else { span.src } + step);
            let positions = (span.old_position + step as i32, span.new_position + step as i32);
            for batch in 0..case.shape.batch() {
                for head in 0..case.shape.heads() {
                    let row = Row { batch, head, src_row, dst_row };
                    row.carry(stage, Half::Keys, &from.keys, &mut keys);
                    match (&from.values, &mut values) {
                        (Some(from), Some(values)) if moves => {
                            row.carry(stage, Half::Values, from, values);
                        }
                        _ if moves && case.shape.is_packed() => {
                            row.carry(stage, Half::Values, &from.keys, &mut keys);
                        }
                        _ => {}
                    }
                    let Some((old, new)) = ropes.filter(|_| turns) else { continue };
                    let mut vector: Vec<f64> = (0..stage.src.dim)
                        .map(|dim| from.keys.get(row.src(stage, Half::Keys, dim)))
                        .collect();
                    oracle::turn(&mut vector, (old, positions.0), (new, positions.1));
                    for pair in 0..new.pairs() {
                        let (a, b) = oracle::pair(new, pair);
                        let index = (row.dst(stage, Half::Keys, a), row.dst(stage, Half::Keys, b));
                        let got = (after.keys.get(index.0), after.keys.get(index.1));
                        let expected = (vector[a], vector[b]);
                        let ulps = oracle::error_in_ulps(case.element, got, expected);
                        worst.record(case.element, ulps);
                        if ulps.is_nan() || ulps > MAX_ULPS {
                            return Err(format!(
                                "row {src_row} to {dst_row}, batch {batch}, head {head}, pair {pair}: \
                                 got {got:?}, expected {expected:?}, {ulps} units in the last place"
                            ));
                        }
                        // Found right within rounding: what is left to compare is everything else.
                        keys.set_raw(index.0, after.keys.raw(index.0));
                        keys.set_raw(index.1, after.keys.raw(index.1));
                    }
                }
            }
        }
    }
    same_bytes(&after.keys, &keys).map_err(|problem| format!("keys: {problem}"))?;
    if let (Some(after), Some(values)) = (&after.values, &values) {
        same_bytes(after, values).map_err(|problem| format!("values: {problem}"))?;
    }
    Ok(())
}

/// One head vector of one row on its way.
struct Row {
    batch: usize,
    head: usize,
    src_row: usize,
    dst_row: usize,
}

impl Row {
    fn src(&self, stage: &Stage, half: Half, dim: usize) -> usize {
        stage.src.index(half, self.batch, self.head, self.src_row, dim)
    }

    fn dst(&self, stage: &Stage, half: Half, dim: usize) -> usize {
        stage.dst.index(half, self.batch, self.head, self.dst_row, dim)
    }

    fn carry(&self, stage: &Stage, half: Half, from: &Buffer, to: &mut Buffer) {
        for dim in 0..stage.src.dim {
            to.set_raw(self.dst(stage, half, dim), from.raw(self.src(stage, half, dim)));
        }
    }
}

fn same_bytes(after: &Buffer, expected: &Buffer) -> Result<(), String> {
    let differs = after.bytes().iter().zip(expected.bytes()).position(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(byte) if byte < GUARD || byte >= GUARD + after.inner().len() => {
            Err(format!("guard byte {byte} was overwritten"))
        }
        Some(byte) => Err(format!(
            "element {} of {} is not what it should be",
            (byte - GUARD) / after.element.size(),
            after.len()
        )),
    }
}
