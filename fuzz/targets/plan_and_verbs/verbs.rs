//! The verbs against the definition, pair by pair.

use half::{bf16, f16};
use pie_rope::{
    Axis, CacheLayout, Cpu, Element, ElementType, KeyLayout, Layer, LayerRef, ModelRope, Pairing,
    Plan, Rope, Rotations, Strides, oracle,
};
use pie_rope_fuzz::{Noise, Source, watch};

use crate::LIMITS;
use crate::rows::{self, Fate, Rows};

trait Number: Element + PartialEq {
    fn from_bits(bits: u32) -> Self;
    fn bits(self) -> u32;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    fn from_bits(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

macro_rules! sixteen_bits {
    ($type:ty) => {
        impl Number for $type {
            fn from_bits(bits: u32) -> $type {
                <$type>::from_bits(bits as u16)
            }
            fn bits(self) -> u32 {
                self.to_bits().into()
            }
            fn from_f64(value: f64) -> $type {
                <$type>::from_f64(value)
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
        }
    };
}
sixteen_bits!(f16);
sixteen_bits!(bf16);

/// How far off a turned number may be, in units in the last place at the magnitude of its pair: what
/// `tests/conformance` derives.
fn allowed<T: Element>() -> f64 {
    match T::TYPE {
        ElementType::F32 => 1.71,
        ElementType::F16 | ElementType::BF16 => 0.501,
    }
}

pub fn any(source: &mut Source) {
    match source.number(0..=2) {
        0 => verb::<f32>(source),
        1 => verb::<f16>(source),
        _ => verb::<bf16>(source),
    }
}

/// How much there is of everything, in keys and values alike.
#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    heads: usize,
    dim: usize,
    rows: usize,
}

/// Where keys, or values, lie.
#[derive(Clone, Debug)]
struct Lie {
    strides: Strides,
    table: Option<Vec<u32>>,
    /// Elements of the buffer.
    len: usize,
}

impl Lie {
    /// Axes in any order, some with room between their steps. The second shares the buffer, if it is wanted: as one
    /// more axis, anywhere among the others.
    fn any(source: &mut Source, size: Size, noise: &mut Noise) -> (Lie, Lie) {
        let block = source.pick(&[1, 2, 3, 7, 16, size.rows]);
        let needed = size.rows.div_ceil(block);
        let blocks = needed + source.number(0..=needed.min(6));
        let table = source.chance(200).then(|| {
            let mut table: Vec<u32> = (0..blocks as u32).collect();
            noise.shuffle(&mut table);
            table.truncate(needed);
            table
        });
        let packs: Vec<_> = (1..=size.dim)
            .filter(|pack| size.dim.is_multiple_of(*pack))
            .collect();
        let pack = if source.chance(128) {
            source.pick(&packs)
        } else {
            size.dim
        };
        let lens = [size.batch, blocks, block, size.heads, size.dim / pack, 2];
        let mut order = [0, 1, 2, 3, 4, 5];
        noise.shuffle(&mut order);
        let mut axes = [Axis::new(0, 0); 6];
        let mut span = pack;
        for axis in order {
            let room = source.pick(&[0, 0, 1, 8]);
            axes[axis] = Axis::new(lens[axis], span + room);
            span += axes[axis].stride * (lens[axis] - 1);
        }
        let [batch, blocks, rows, heads, packs, both] = axes;
        let offset = source.number(0..=8);
        let strides = Strides {
            offset,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
        };
        let len = offset + span + source.number(0..=8);
        let keys = Lie {
            strides,
            table,
            len,
        };
        let mut values = keys.clone();
        values.strides.offset += both.stride;
        (keys, values)
    }

    /// The same lattice with a table of blocks that this one does not use, if there are enough of them.
    fn elsewhere(&self) -> Option<Lie> {
        let used = self.table.as_ref()?;
        let free = (0..self.strides.blocks.len as u32).filter(|block| !used.contains(block));
        let table: Vec<u32> = free.take(used.len()).collect();
        (table.len() == used.len()).then_some(Lie {
            table: Some(table),
            ..self.clone()
        })
    }

    fn layout<T: Element>(&self) -> KeyLayout<'_> {
        let layout = KeyLayout::strided(T::TYPE, self.strides);
        match &self.table {
            Some(table) => layout.with_table(table),
            None => layout,
        }
    }

    /// Something that is wrong, or another layout.
    fn change(&mut self, source: &mut Source) {
        let Strides {
            offset,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
        } = &mut self.strides;
        let kind = source.number(0..=5);
        let number = if source.chance(60) {
            source.wild()
        } else {
            source.number(0..=60)
        };
        let axis = source.pick(&[0, 1, 2, 3, 4]);
        let axis = [batch, blocks, rows, heads, packs]
            .into_iter()
            .nth(axis)
            .expect("one of five");
        match (kind, &mut self.table) {
            (0, _) => axis.len = number,
            (1, _) => axis.stride = number,
            (2, _) => *offset = number,
            (3, _) => *pack = number,
            (4, Some(table)) if !table.is_empty() => {
                let at = source.number(0..=table.len() - 1);
                table[at] = number as u32;
            }
            (_, Some(table)) => drop(table.pop()),
            (_, table) => *table = Some(vec![0, 1, 2]),
        }
    }

    fn index(&self, [batch, head, row, dim]: [usize; 4]) -> usize {
        let s = &self.strides;
        let block = row / s.rows.len;
        let block = self
            .table
            .as_ref()
            .map_or(block, |table| table[block] as usize);
        s.offset
            + batch * s.batch.stride
            + block * s.blocks.stride
            + row % s.rows.len * s.rows.stride
            + head * s.heads.stride
            + dim / s.pack * s.packs.stride
            + dim % s.pack
    }
}

/// Keys and values of a cache: where they lie, and what they are.
#[derive(Clone)]
struct Cache<T> {
    keys: Lie,
    values: Option<Lie>,
    /// In one buffer.
    packed: bool,
    layers: Vec<(Vec<T>, Vec<T>)>,
}

impl<T: Number> Cache<T> {
    fn any(source: &mut Source, size: Size, layers: usize, values: Option<bool>) -> Cache<T> {
        let mut noise = source.noise();
        let (keys, second) = Lie::any(source, size, &mut noise);
        let values = values.unwrap_or_else(|| source.chance(200));
        let packed = values && source.chance(80);
        let values = match source.byte() {
            _ if !values => None,
            _ if packed => Some(second),
            ..128 => Some(keys.clone()),
            _ => Some(Lie::any(source, size, &mut noise).0),
        };
        let kind = source.byte();
        let scale = 2f64.powi(source.pick(&[0, 1, -12, -20, -124, -140]));
        let mut buffer = |len: usize| -> Vec<T> {
            let mut number = || match kind {
                // Any bits at all, or some.
                ..40 => T::from_bits(noise.bits() as u32),
                40..120 if noise.below(40) == 0 => {
                    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0];
                    T::from_f64(special[noise.below(special.len())])
                }
                _ => T::from_f64(noise.unit() * scale),
            };
            (0..len).map(|_| number()).collect()
        };
        let of_values = values
            .as_ref()
            .filter(|_| !packed)
            .map_or(0, |values| values.len);
        let layers = (0..layers)
            .map(|_| (buffer(keys.len), buffer(of_values)))
            .collect();
        Cache {
            keys,
            values,
            packed,
            layers,
        }
    }

    fn layout(&self) -> CacheLayout<'_> {
        let keys = self.keys.layout::<T>();
        match &self.values {
            Some(values) => CacheLayout::new(keys, values.layout::<T>()),
            None => CacheLayout::keys_only(keys),
        }
    }
}

/// Each layer's buffers. `forgotten`: a layer whose values are not given.
fn lend<'a, T: Number>(
    buffers: &'a mut [(Vec<T>, Vec<T>)],
    cache: &Cache<T>,
    forgotten: Option<usize>,
) -> Vec<Layer<'a, T>> {
    let one = |(index, (keys, values)): (usize, &'a mut (Vec<T>, Vec<T>))| match cache.values {
        Some(_) if forgotten == Some(index) => Layer::keys_only(keys),
        None => Layer::keys_only(keys),
        Some(_) if cache.packed => Layer::packed(keys),
        Some(_) => Layer::new(keys, values),
    };
    buffers.iter_mut().enumerate().map(one).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Rotate,
    Splice,
    Copy,
    CopyWithin,
}

/// What the rotations are to do, layer by layer and row by row.
struct Job {
    /// Old and new rope of each layer.
    layers: Vec<Option<(Rope, Rope)>>,
    rows: Vec<Row>,
    /// Whether any layer's frequencies change: then all rows turn.
    changes: bool,
}

#[derive(Clone, Copy)]
struct Row {
    src: usize,
    dst: usize,
    old: i32,
    new: i32,
}

impl Job {
    fn turns(&self, row: &Row) -> bool {
        self.changes || row.old != row.new
    }

    fn affects(&self, row: &Row) -> bool {
        self.turns(row) || row.src != row.dst
    }
}

fn rope(source: &mut Source, dim: usize) -> Option<Rope> {
    let pairs = source.number(1..=dim / 2);
    let offset = match source.byte() {
        250.. => source.wild(),
        _ => source.number(0..=dim - 2 * pairs),
    };
    let rope = match source.byte() {
        ..120 => Rope::from_theta(source.pick(&[1e4, 1e6, 5e5, 2.0, 0.5]), 2 * pairs),
        _ => Rope::from_inv_freq((0..pairs).map(|_| source.double()).collect::<Vec<_>>()),
    };
    let pairing = source.pick(&[Pairing::HalfSplit, Pairing::Interleaved]);
    Some(rope.ok()?.with_pairing(pairing).with_offset(offset))
}

/// The same window with other frequencies.
fn switched(source: &mut Source, rope: &Rope) -> Option<Rope> {
    let factor = source.pick(&[1.0, 0.5, 0.25, 3.0, 0.1]);
    let inv_freq: Vec<_> = rope
        .inv_freq()
        .iter()
        .map(|frequency| frequency * factor)
        .collect();
    let new = Rope::from_inv_freq(inv_freq).ok()?;
    Some(new.with_pairing(rope.pairing()).with_offset(rope.offset()))
}

/// Rotations made in one of the ways that there are, and what they are to do.
fn rotations(
    source: &mut Source,
    plan: &Plan,
    rows: &Rows,
    dim: usize,
) -> Option<(Rotations, Job)> {
    let count = source.number(1..=3);
    let mut layers = Vec::new();
    let all_alike = source.chance(80);
    for _ in 0..count {
        layers.push(match layers.first() {
            Some(first) if all_alike => Clone::clone(first),
            _ if !all_alike && source.chance(40) => None,
            _ => {
                let rope = rope(source, dim)?;
                Some((rope.clone(), rope))
            }
        });
    }
    if !all_alike && source.chance(100) {
        for (_, new) in layers.iter_mut().flatten() {
            if source.chance(128) {
                *new = switched(source, new)?;
            }
        }
    }
    let old = ModelRope::from_layers(
        layers
            .iter()
            .map(|layer| layer.as_ref().map(|(old, _)| old.clone())),
    );
    let new = ModelRope::from_layers(
        layers
            .iter()
            .map(|layer| layer.as_ref().map(|(_, new)| new.clone())),
    );
    let changes = layers.iter().flatten().any(|(old, new)| old != new);
    let of = |plan: &Plan| match &layers[0] {
        Some((rope, _)) if all_alike => Rotations::new(plan, rope),
        _ if !changes => Rotations::for_model(plan, &new),
        _ => Rotations::between(plan, &old, &new),
    };
    let mut made =
        watch("rotations", LIMITS, || of(plan)).expect("a small plan, and ropes of one shape");
    if source.chance(60)
        && let Some((other, _)) = rows::any(source)
    {
        let mut updated = watch("rotations", LIMITS, || of(&other)).expect("a small plan");
        watch("update", LIMITS, || updated.update(plan)).expect("a small plan");
        assert_eq!(updated, made, "updated and new");
    }
    let kept = rows
        .fates
        .iter()
        .enumerate()
        .filter_map(|(dst, fate)| match *fate {
            Fate::Kept { src, old, new } => Some(Row { src, dst, old, new }),
            _ => None,
        });
    let mut job = Job {
        layers,
        rows: kept.collect(),
        changes,
    };
    while source.chance(60) {
        match source.number(0..=2) {
            0 if all_alike => {
                let same = made.select([source.wild()]).expect("any layer");
                assert_eq!(same, made);
            }
            0 => {
                let there = job.layers.len();
                let some: Vec<usize> = (0..source.number(0..=4))
                    .map(|_| source.number(0..=there))
                    .collect();
                let selected = watch("select", LIMITS, || made.select(some.iter().copied()));
                if some.iter().any(|layer| *layer >= there) {
                    assert!(selected.is_err());
                    continue;
                }
                made = selected.expect("layers of the model");
                job.layers = some
                    .iter()
                    .map(|layer| job.layers[*layer].clone())
                    .collect();
                assert_eq!(made.layers(), Some(some.len()));
            }
            1 => {
                let row = if source.chance(30) {
                    source.wild()
                } else {
                    source.number(0..=40)
                };
                made = watch("starting_at", LIMITS, || made.starting_at(row));
                job.rows.retain(|kept| kept.dst >= row);
            }
            _ => {
                made = watch("affected_only", LIMITS, || made.affected_only());
                let rows = std::mem::take(&mut job.rows);
                job.rows = rows.into_iter().filter(|row| job.affects(row)).collect();
            }
        }
        assert!(made.spans().iter().all(|span| span.len > 0));
        assert_eq!(
            made.spans().iter().map(|span| span.len).sum::<usize>(),
            job.rows.len()
        );
    }
    assert_eq!(
        (made.old_rows(), made.new_rows()),
        (rows.old_rows, rows.fates.len())
    );
    Some((made, job))
}

fn verb<T: Number>(source: &mut Source) {
    let dim = 2 * source.number(1..=24);
    let Some((plan, rows)) = rows::any(source) else {
        return;
    };
    let Some((rotations, job)) = rotations(source, &plan, &rows, dim) else {
        return;
    };
    let size = Size {
        batch: source.number(1..=2),
        heads: source.number(1..=4),
        dim,
        rows: rows.old_rows.max(rows.fates.len()).max(1),
    };
    let sets: Vec<_> = Cpu::INSTRUCTION_SETS
        .iter()
        .filter_map(|set| Cpu::with_instruction_set(set).ok())
        .collect();
    let cpu = &sets[source.number(0..=sets.len() - 1)];

    let mut src = Cache::<T>::any(source, size, job.layers.len(), None);
    let verb = source.pick(&[Verb::Rotate, Verb::Splice, Verb::Copy, Verb::CopyWithin]);
    let mut dst = match verb {
        Verb::Rotate | Verb::Splice => src.clone(),
        Verb::Copy => Cache::any(source, size, job.layers.len(), Some(src.values.is_some())),
        Verb::CopyWithin => {
            let keys = src.keys.elsewhere();
            let values = src.values.as_ref().map(Lie::elsewhere);
            let (Some(keys), Some(values)) =
                (keys, values.map_or(Some(None), |values| values.map(Some)))
            else {
                return;
            };
            Cache {
                keys,
                values,
                ..src.clone()
            }
        }
    };

    // One thing that is wrong, or may be.
    let mut sound = job
        .layers
        .iter()
        .flatten()
        .all(|(_, rope)| rope.window().end <= dim);
    let mut refused = !sound && !job.layers.is_empty();
    let mut forgotten = None;
    let in_place = matches!(verb, Verb::Rotate | Verb::Splice);
    match source.byte() {
        ..160 => {}
        160..200 => {
            sound = false;
            src.keys.change(source);
            if in_place {
                dst.keys = src.keys.clone();
            }
        }
        200..215 => {
            sound = false;
            dst.keys.change(source);
            if in_place {
                src.keys = dst.keys.clone();
            }
        }
        215..230 => {
            sound = false;
            if let Some(values) = &mut dst.values {
                values.change(source);
            }
            if in_place {
                src.values = dst.values.clone();
            }
        }
        230..240 => {
            if let Some((keys, values)) = dst.layers.last_mut() {
                sound = false;
                keys.truncate(source.number(0..=keys.len()));
                values.truncate(source.number(0..=values.len()));
                if verb != Verb::Copy {
                    src.layers = dst.layers.clone();
                }
            }
        }
        240..250 => {
            if dst.values.is_some() && !dst.layers.is_empty() {
                forgotten = Some(source.number(0..=dst.layers.len() - 1));
                sound &= verb == Verb::Rotate;
                refused |= verb != Verb::Rotate;
            }
        }
        _ => {
            sound = false;
            refused |= rotations.layers().is_some();
            dst.layers.push((Vec::new(), Vec::new()));
            if verb != Verb::Copy {
                src.layers = dst.layers.clone();
            }
        }
    }

    let mut after = dst.layers.clone();
    let result = {
        let mut layers = lend(&mut after, &dst, forgotten);
        let (from, to) = (src.layout(), dst.layout());
        let refs = src.layers.iter().map(|(keys, values)| LayerRef {
            keys,
            values: src
                .values
                .as_ref()
                .map(|_| if src.packed { &keys[..] } else { &values[..] }),
        });
        let refs: Vec<_> = refs.collect();
        watch("verb", LIMITS, || match verb {
            Verb::Rotate => cpu.rotate(&rotations, to, &mut layers),
            Verb::Splice => cpu.splice(&rotations, to, &mut layers),
            Verb::Copy => cpu.copy(&rotations, from, &refs, to, &mut layers),
            Verb::CopyWithin => cpu.copy_within(&rotations, from, to, &mut layers),
        })
    };
    let call = Call {
        verb,
        size,
        job: &job,
        src: &src,
        dst: &dst,
    };
    match result {
        Ok(()) => {
            assert!(!refused, "{verb:?}: a wrong call is not refused");
            call.check(&after);
        }
        Err(error) => {
            assert!(!sound, "{verb:?}: a sound call is refused: {error}");
            assert!(!error.to_string().is_empty());
            call.same(&after, &[], "refused");
        }
    }
}

/// A call that has been made.
struct Call<'a, T> {
    verb: Verb,
    size: Size,
    job: &'a Job,
    src: &'a Cache<T>,
    dst: &'a Cache<T>,
}

impl<T: Number> Call<'_, T> {
    /// What the verb has written is right, and it has written nothing else.
    fn check(&self, after: &[(Vec<T>, Vec<T>)]) {
        let mut written: Vec<_> = after
            .iter()
            .map(|(keys, values)| (vec![false; keys.len()], vec![false; values.len()]))
            .collect();
        let mut write = |layer: usize, values: bool, at: usize| {
            let (of_keys, of_values) = &mut written[layer];
            let here = if values { of_values } else { of_keys };
            assert!(!here[at], "layer {layer}, element {at} belongs to two rows");
            here[at] = true;
        };
        // Layouts that were changed may have other numbers of these.
        let (s, d) = (&self.src.keys.strides, &self.dst.keys.strides);
        let size = Size {
            batch: d.batch.len,
            heads: d.heads.len,
            dim: d.packs.len * d.pack,
            ..self.size
        };
        assert_eq!(
            (s.batch.len, s.heads.len, s.packs.len * s.pack),
            (size.batch, size.heads, size.dim)
        );
        let values = self
            .dst
            .values
            .as_ref()
            .zip(self.src.values.as_ref())
            .filter(|_| self.verb != Verb::Rotate);
        let rows = self.job.rows.iter().filter(|row| match self.verb {
            Verb::Rotate => self.job.turns(row),
            Verb::Splice => self.job.affects(row),
            Verb::Copy | Verb::CopyWithin => true,
        });
        for row in rows {
            let to = if self.verb == Verb::Rotate {
                row.src
            } else {
                row.dst
            };
            for (layer, ropes) in self.job.layers.iter().enumerate() {
                if self.verb == Verb::Rotate && ropes.is_none() {
                    continue;
                }
                let turn = ropes.as_ref().and_then(|(old, new)| turn(old, new, row));
                let (from, now) = (&self.src.layers[layer], &after[layer]);
                for at in 0..size.batch * size.heads {
                    let [before, after] =
                        [(&self.src.keys, row.src), (&self.dst.keys, to)].map(|(lie, row)| {
                            move |dim| lie.index([at / size.heads, at % size.heads, row, dim])
                        });
                    let mut turned = vec![false; size.dim];
                    for (pair, (cos, sin)) in turn.iter().flatten().enumerate() {
                        let (_, rope) = ropes.as_ref().expect("a turn has a rope");
                        let (a, b) = oracle::pair(rope, pair);
                        (turned[a], turned[b]) = (true, true);
                        let was = (from.0[before(a)].to_f64(), from.0[before(b)].to_f64());
                        let is = (now.0[after(a)].to_f64(), now.0[after(b)].to_f64());
                        let right = (was.0 * cos - was.1 * sin, was.1 * cos + was.0 * sin);
                        assert!(
                            close::<T>(was, is, right),
                            "{:?} {} layer {layer} row {} to {to}, {} to {}, {rope:?} pair {pair}: {was:?} became {is:?}, not {right:?}",
                            self.verb,
                            T::TYPE,
                            row.src,
                            row.old,
                            row.new,
                        );
                        write(layer, false, after(a));
                        write(layer, false, after(b));
                    }
                    for dim in (0..size.dim).filter(|dim| !turned[*dim]) {
                        // Where rows stay, what does not turn is not written at all.
                        if self.verb == Verb::Rotate {
                            break;
                        }
                        assert_eq!(
                            now.0[after(dim)].bits(),
                            from.0[before(dim)].bits(),
                            "key dimension {dim}"
                        );
                        write(layer, false, after(dim));
                    }
                }
                let Some((dst, src)) = values else { continue };
                // Values have numbers of their own, as their layout says.
                let s = &dst.strides;
                for at in 0..s.batch.len * s.heads.len * s.packs.len * s.pack {
                    let (vector, dim) = (at / (s.packs.len * s.pack), at % (s.packs.len * s.pack));
                    let [from_at, to_at] = [(src, row.src), (dst, to)].map(|(lie, row)| {
                        lie.index([vector / s.heads.len, vector % s.heads.len, row, dim])
                    });
                    let was = if self.src.packed {
                        from.0[from_at]
                    } else {
                        from.1[from_at]
                    };
                    let is = if self.dst.packed {
                        now.0[to_at]
                    } else {
                        now.1[to_at]
                    };
                    assert_eq!(
                        is.bits(),
                        was.bits(),
                        "value dimension {dim} of row {} to {to}",
                        row.src
                    );
                    write(layer, !self.dst.packed, to_at);
                }
            }
        }
        self.same(after, &written, "not of a row that is touched");
    }

    /// What is not written has every bit that it had.
    fn same(&self, after: &[(Vec<T>, Vec<T>)], written: &[(Vec<bool>, Vec<bool>)], what: &str) {
        for (layer, (before, after)) in self.dst.layers.iter().zip(after).enumerate() {
            for (half, before, after) in [
                ("keys", &before.0, &after.0),
                ("values", &before.1, &after.1),
            ] {
                for (at, (before, after)) in before.iter().zip(after).enumerate() {
                    let written = written.get(layer).is_some_and(|(keys, values)| match half {
                        "keys" => keys[at],
                        _ => values[at],
                    });
                    assert!(
                        written || before.bits() == after.bits(),
                        "{:?} {} layer {layer} {half}: element {at}, {what}, was {:#x} and is {:#x}",
                        self.verb,
                        T::TYPE,
                        before.bits(),
                        after.bits(),
                    );
                }
            }
        }
    }
}

/// The cosine and sine of every pair of a row, from the definition; none if the row does not turn in this layer.
fn turn(old: &Rope, new: &Rope, row: &Row) -> Option<Vec<(f64, f64)>> {
    if row.old == row.new && old == new {
        return None;
    }
    // A product and its rounding error, which are turned by one after the other: no angle is rounded.
    let by = |position: i32, frequency: f64, sign: f64| {
        let position = f64::from(position);
        let product = position * frequency;
        let rest = position.mul_add(frequency, -product);
        [sign * product, sign * rest]
    };
    let frequencies = old.inv_freq().iter().zip(new.inv_freq());
    let pairs = frequencies.map(|(&old, &new)| {
        let angles = [by(row.old, old, -1.0), by(row.new, new, 1.0)];
        angles
            .as_flattened()
            .iter()
            .fold((1.0, 0.0), |(cos, sin), angle| {
                let (s, c) = angle.sin_cos();
                (cos * c - sin * s, sin * c + cos * s)
            })
    });
    Some(pairs.collect())
}

/// Whether a pair has become what it should have, as exactly as is promised. Whatever is no number is not close.
fn close<T: Number>(was: (f64, f64), is: (f64, f64), right: (f64, f64)) -> bool {
    if !(was.0.is_finite() && was.1.is_finite()) {
        return !is.0.is_finite() && !is.1.is_finite();
    }
    let magnitude = was.0.hypot(was.1);
    let unit = oracle::ulp(T::TYPE, magnitude);
    let near = |is: f64, right: f64| {
        // Beyond the largest number of the type lies infinity.
        let largest = match T::TYPE {
            ElementType::F16 => 65504.0,
            ElementType::F32 | ElementType::BF16 => f64::from(f32::MAX),
        };
        (is - right).abs() <= allowed::<T>() * unit
            || is.is_infinite() && right.abs() >= largest * 0.99
    };
    // The largest floats: sums on the way may pass what an f32 holds.
    let huge = magnitude > f64::from(f32::MAX) / 4.0;
    huge || near(is.0, right.0) && near(is.1, right.1)
}
