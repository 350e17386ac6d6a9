//! One run: fresh data, the call, and every byte compared with what the oracle says.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use pie_rope::{ElementType, Rope, Rotations, oracle};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::backend::{Backend, Call, Layers};
use crate::buffer::{Buffer, GUARD, Keys};
use crate::case::{Cache, Case, Half, Verb};
use crate::pattern::{LAYERS, Pattern, Scene};
use crate::support::worse;

/// Largest error allowed against the oracle, in units in the last place of the stored type at the
/// magnitude `r` of the pair.
///
/// What the arithmetic, `a' = fma(a, cos, -(b * sin))`, can lose, in units of f32 at `r`:
///
/// - the table's cos and sin, each rounded to f32: `(|a| + |b|) · 2⁻²⁵ ≤ √2 · r · 2⁻²⁵`, at most √½;
/// - the product, rounded to f32: ½;
/// - the sum, rounded to f32: ½;
///
/// and a narrower type loses ½ of *its* unit when the sum is rounded to it, beside which the others vanish.
fn max_ulps(element: ElementType, f32_loss: f64) -> f64 {
    f64::sqrt(0.5) * f32_units(element) + max_kernel_ulps(element, f32_loss)
}

/// The same against the exact rotation by the table's own f32 values: what a kernel is answerable for.
/// In f32 this is one unit, or what the backend states ([`Backend::f32_loss`]).
fn max_kernel_ulps(element: ElementType, f32_loss: f64) -> f64 {
    let narrowing = if element == ElementType::F32 {
        0.0
    } else {
        0.5
    };
    f32_loss * f32_units(element) + narrowing
}

/// One unit of f32 in units of `element`.
fn f32_units(element: ElementType) -> f64 {
    oracle::ulp(ElementType::F32, 1.0) / oracle::ulp(element, 1.0)
}

/// The worst errors seen so far, per element type: against the oracle, and of the kernel alone.
pub struct Worst {
    seen: Mutex<[[f64; 2]; 3]>,
    f32_loss: f64,
}

impl Worst {
    /// None yet, of a backend with this [`Backend::f32_loss`].
    pub fn new(f32_loss: f64) -> Worst {
        Worst {
            seen: Mutex::default(),
            f32_loss,
        }
    }

    fn record(&self, element: ElementType, errors: [f64; 2]) {
        let mut worst = self.seen.lock().expect("no panic while held");
        for (worst, error) in worst[element as usize].iter_mut().zip(errors) {
            *worst = worse(*worst, error);
        }
    }

    /// A line per type.
    pub fn lines(&self) -> [String; 3] {
        let worst = self.seen.lock().expect("no panic while held");
        [ElementType::F32, ElementType::F16, ElementType::BF16].map(|element| {
            let [oracle, kernel] = worst[element as usize];
            format!(
                "{element:>4}: {oracle:.5} of at most {:.5}; by the table's own values {kernel:.5} of {:.5}",
                max_ulps(element, self.f32_loss),
                max_kernel_ulps(element, self.f32_loss)
            )
        })
    }
}

/// Row counts of a case: one, and around powers of two; which power differs from pattern to pattern.
fn row_counts(pattern: Pattern) -> [usize; 3] {
    let power = 1 << (4 + pattern as usize % 4);
    [1, power, power + 1]
}

/// Runs all patterns and row counts of a case.
pub fn case(
    case: &Case,
    backend: &dyn Backend,
    seed: u64,
    keys: &Keys,
    worst: &Worst,
) -> Result<(), String> {
    for pattern in Pattern::ALL {
        for rows in row_counts(pattern) {
            let mut hasher = DefaultHasher::new();
            (seed, case.to_string(), pattern as u64, rows).hash(&mut hasher);
            let mut random = SmallRng::seed_from_u64(hasher.finish());
            run(case, pattern, rows, backend, keys, &mut random, worst)
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
    /// Where the dimensions of a head vector are in keys and in values, at both ends.
    dims: [[Vec<usize>; 2]; 2],
}

impl Stage {
    fn new(case: &Case, pattern: Pattern, rows: usize, random: &mut SmallRng) -> Stage {
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
                let second = if within { needed } else { 0 };
                let mut blocks: Vec<u32> = (0..(second + needed + 3) as u32).collect();
                blocks.shuffle(random);
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
            // As well aligned as the source, to two elements, to one.
            Verb::Copy => cache(offset + [8, 2, 3][random.random_range(0..3)], dst_table),
            // Without blocks, the destination is another part of the buffer.
            Verb::CopyWithin if shape.block().is_none() => {
                cache(src.len(Half::Keys).expect("keys"), None)
            }
            Verb::CopyWithin => cache(offset, dst_table),
        };
        let dims = [Half::Keys, Half::Values].map(|half| [src.dims(half), dst.dims(half)]);
        Stage {
            scene,
            rotations,
            src,
            dst,
            dims,
        }
    }

    fn layers(&self, element: ElementType, keys: &Keys, random: &mut SmallRng) -> Vec<Layers> {
        let len = |half| self.src.len(half).max(self.dst.len(half));
        let mut layer = || Layers {
            keys: Buffer::keys(
                keys,
                element,
                len(Half::Keys).expect("every cache has keys"),
                random,
            ),
            values: len(Half::Values).map(|len| Buffer::noise(element, len, random)),
        };
        (0..LAYERS).map(|_| layer()).collect()
    }
}

fn run(
    case: &Case,
    pattern: Pattern,
    rows: usize,
    backend: &dyn Backend,
    keys: &Keys,
    random: &mut SmallRng,
    worst: &Worst,
) -> Result<(), String> {
    let stage = Stage::new(case, pattern, rows, random);
    let before = stage.layers(case.element, keys, random);
    let mut src = before.clone();
    let apart = case.verb == Verb::Copy;
    let mut dst = if apart {
        stage.layers(case.element, keys, random)
    } else {
        Vec::new()
    };
    let dst_before = if apart { dst.clone() } else { before.clone() };

    let call = Call {
        verb: case.verb,
        element: case.element,
        rotations: &stage.rotations,
        src_layout: stage.src.layout(),
        dst_layout: stage.dst.layout(),
        packed: case.shape.is_packed(),
        way: random.random(),
    };
    backend
        .run(&call, &mut src, &mut dst)
        .map_err(|error| format!("refused: {error}"))?;

    if apart {
        for (layer, (after, before)) in src.iter().zip(&before).enumerate() {
            same_layer(after, before, &stage.src)
                .map_err(|problem| format!("layer {layer}, source: {problem}"))?;
        }
    }
    let after = if apart { &dst } else { &src };
    for layer in 0..LAYERS {
        expect(
            case,
            &stage,
            layer,
            (&before[layer], &dst_before[layer]),
            &after[layer],
            worst,
        )
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
    as_many(&after.keys, &onto.keys).map_err(|problem| format!("keys: {problem}"))?;
    let mut keys = onto.keys.clone();
    let mut values = onto.values.clone();
    let ropes = stage
        .scene
        .old
        .layer(layer)
        .zip(stage.scene.new.layer(layer));
    let frequencies_changed = stage.scene.old != stage.scene.new;
    let moves = case.verb != Verb::Rotate;

    let allowed = [
        max_ulps(case.element, worst.f32_loss),
        max_kernel_ulps(case.element, worst.f32_loss),
    ];
    let mut errors = [0f64; 2];
    for span in stage.scene.plan.kept() {
        // Where its own frequencies did not change, a layer's keys turn only if their position does.
        let turns = span.turns() || ropes.is_some_and(|(old, new)| old != new);
        let listed = frequencies_changed || span.is_affected();
        // Copies take all rows, except that `copy_within` was told to take the affected ones alone.
        if !(listed || case.verb == Verb::Copy) || (!moves && !turns) {
            continue;
        }
        for step in 0..span.len {
            let (src_row, dst_row) = (
                span.src + step,
                if moves { span.dst } else { span.src } + step,
            );
            let positions = (
                span.old_position + step as i32,
                span.new_position + step as i32,
            );
            // All head vectors of the row turn alike.
            let turns = ropes.filter(|_| turns).map(|(old, new)| {
                let table = stage.rotations.table(layer).expect("a layer with a rope");
                let mut spans = stage.rotations.spans().iter();
                let turned = spans.find(|turned| turned.dst == span.dst);
                let turn = turned.and_then(|turned| turned.turn(table));
                let turn = turn.expect("a span that turns");
                let row = table.row(turn.first as usize + step * turn.step as usize);
                (
                    new,
                    exact(stage.src.dim, (old, positions.0), (new, positions.1)),
                    row,
                )
            });
            for batch in 0..case.shape.batch() {
                for head in 0..case.shape.heads() {
                    let row = Row {
                        batch,
                        head,
                        src_row,
                        dst_row,
                    };
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
                    let Some((rope, exact, table)) = &turns else {
                        continue;
                    };
                    let (src, dst) = row.at(stage, Half::Keys);
                    let [src_dims, dst_dims] = &stage.dims[Half::Keys as usize];
                    for (pair, &exact) in exact.iter().enumerate() {
                        let (a, b) = oracle::pair(rope, pair);
                        let original = (
                            from.keys.get(src + src_dims[a]),
                            from.keys.get(src + src_dims[b]),
                        );
                        let index = (dst + dst_dims[a], dst + dst_dims[b]);
                        let got = (after.keys.get(index.0), after.keys.get(index.1));
                        let expected = turned(original, exact);
                        let by_table = (f64::from(table.0[pair]), f64::from(table.1[pair]));
                        let error = [expected, turned(original, by_table)]
                            .map(|expected| oracle::error_in_ulps(case.element, got, expected));
                        errors = [worse(errors[0], error[0]), worse(errors[1], error[1])];
                        if !(error[0] <= allowed[0] && error[1] <= allowed[1]) {
                            return Err(format!(
                                "row {src_row} to {dst_row}, batch {batch}, head {head}, pair {pair}: \
                                 got {got:?}, expected {expected:?}, off by {error:?} units in the last \
                                 place of at most {allowed:?} (against the oracle, against the table)"
                            ));
                        }
                        // Found right within rounding: what is left to compare is everything else.
                        keys.copy(index.0, &after.keys, index.0, 1);
                        keys.copy(index.1, &after.keys, index.1, 1);
                    }
                }
            }
        }
    }
    worst.record(case.element, errors);
    same_layer(after, &Layers { keys, values }, &stage.dst)
}

/// One head vector of one row on its way.
struct Row {
    batch: usize,
    head: usize,
    src_row: usize,
    dst_row: usize,
}

impl Row {
    /// Its first element at both ends.
    fn at(&self, stage: &Stage, half: Half) -> (usize, usize) {
        let Row { batch, head, .. } = *self;
        (
            stage.src.index(half, batch, head, self.src_row, 0),
            stage.dst.index(half, batch, head, self.dst_row, 0),
        )
    }

    fn carry(&self, stage: &Stage, half: Half, from: &Buffer, to: &mut Buffer) {
        let (src, dst) = self.at(stage, half);
        let [src_dims, dst_dims] = &stage.dims[half as usize];
        let mut dim = 0;
        while dim < src_dims.len() {
            // As many as follow each other at both ends.
            let (source, destination) = (src_dims[dim], dst_dims[dim]);
            let rest = src_dims[dim..].iter().zip(&dst_dims[dim..]).enumerate();
            let run =
                rest.take_while(|&(step, (&s, &d))| (s, d) == (source + step, destination + step));
            let run = run.count();
            to.copy(dst + destination, from, src + source, run);
            dim += run;
        }
    }
}

/// The exact cosine and sine of every pair: what the oracle does to (1, 0).
fn exact(dims: usize, old: (&Rope, i32), new: (&Rope, i32)) -> Vec<(f64, f64)> {
    let pairs = || (0..new.0.pairs()).map(|pair| oracle::pair(new.0, pair));
    let mut vector = vec![0.0; dims];
    pairs().for_each(|(a, _)| vector[a] = 1.0);
    oracle::turn(&mut vector, old, new);
    pairs().map(|(a, b)| (vector[a], vector[b])).collect()
}

fn turned((x, y): (f64, f64), (cos, sin): (f64, f64)) -> (f64, f64) {
    (x * cos - y * sin, y * cos + x * sin)
}

/// Keys and values are what is expected, bit for bit, guards included.
fn same_layer(after: &Layers, expected: &Layers, cache: &Cache) -> Result<(), String> {
    same_bytes(&after.keys, &expected.keys, |index| {
        cache.place(Half::Keys, index)
    })
    .map_err(|problem| format!("keys: {problem}"))?;
    match (&after.values, &expected.values) {
        (None, None) => Ok(()),
        (Some(after), Some(expected)) => {
            same_bytes(after, expected, |index| cache.place(Half::Values, index))
                .map_err(|problem| format!("values: {problem}"))
        }
        (Some(_), None) => Err("there are values, and none are expected".into()),
        (None, Some(_)) => Err("there are no values".into()),
    }
}

/// There are as many elements as there should be, of the same type.
fn as_many(after: &Buffer, expected: &Buffer) -> Result<(), String> {
    let all = |buffer: &Buffer| (buffer.element, buffer.len());
    if all(after) == all(expected) && after.len() > 0 {
        return Ok(());
    }
    Err(format!(
        "{} elements of {}, not {} of {}",
        after.len(),
        after.element,
        expected.len(),
        expected.element
    ))
}

fn same_bytes(
    after: &Buffer,
    expected: &Buffer,
    place: impl FnOnce(usize) -> String,
) -> Result<(), String> {
    as_many(after, expected)?;
    let (got, wanted) = (after.bytes(), expected.bytes());
    if got == wanted {
        return Ok(());
    }
    // As long as the elements are many.
    let mut pairs = got.iter().zip(wanted);
    let byte = pairs
        .position(|(a, b)| a != b)
        .expect("bytes of one length");
    if byte < GUARD || byte >= GUARD + after.inner().len() {
        return Err(format!(
            "guard byte {byte} was overwritten: {:#04x}, not {:#04x}",
            got[byte], wanted[byte]
        ));
    }
    let index = (byte - GUARD) / after.element.size();
    let number = |buffer: &Buffer| format!("{} ({:#x})", buffer.get(index), buffer.bits(index));
    Err(format!(
        "element {index} of {}, {}, is not what it should be: got {}, expected {}",
        after.len(),
        place(index),
        number(after),
        number(expected)
    ))
}
