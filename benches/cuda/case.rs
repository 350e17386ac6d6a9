//! What is measured: models, how their caches lie, edits, verbs, and the bytes that must move.

use std::fmt;
use std::ops::Range;

use pie_rope::{
    CacheLayout, CudaRawLayer, Edit, ElementType, KeyLayout, Pairing, Plan, Result, Rope,
    Rotations, Scaling,
};
use rand::seq::SliceRandom;

use crate::gpu::{Arena, Gpu};

/// Positions by which most edits move what comes after them.
pub const SHIFT: usize = 37;

/// Tokens that no edit comes before.
const START: usize = 16;

/// Tokens below which six edits would get into each other's way.
pub const LEAST_TOKENS: usize = 512;

/// The geometry of a published model.
pub struct Model {
    pub name: &'static str,
    pub layers: usize,
    /// Heads of keys and values.
    pub heads: usize,
    pub dim: usize,
    pub rope: Rope,
    /// A cache of multi-head latent attention has none.
    pub values: bool,
}

pub fn models() -> Result<Vec<Model>> {
    let linear = Rope::from_scaling(100_000.0, 128, &Scaling::Linear { factor: 4.0 }, 0)?;
    let llama3 = Scaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let yarn = Scaling::Yarn {
        factor: 40.0,
        original_max_position_embeddings: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let model = |name, layers, heads, rope| Model {
        name,
        layers,
        heads,
        dim: 128,
        rope,
        values: true,
    };
    let latent = Rope::from_scaling(10_000.0, 64, &yarn, 0)?;
    Ok(vec![
        model("DeepSeek-Coder 1.3B", 24, 16, linear.clone()),
        model("DeepSeek-Coder 6.7B", 32, 32, linear.clone()),
        model("DeepSeek-Coder 33B", 62, 8, linear),
        model(
            "Llama-3.1 8B",
            32,
            8,
            Rope::from_scaling(500_000.0, 128, &llama3, 0)?,
        ),
        Model {
            name: "DeepSeek-V3 MLA",
            layers: 61,
            heads: 1,
            dim: 576,
            rope: latent.with_pairing(Pairing::Interleaved).with_offset(512),
            values: false,
        },
    ])
}

impl Model {
    /// Bytes of all keys of `rows` rows.
    pub fn key_bytes(&self, element: ElementType, rows: usize) -> usize {
        self.layers * self.heads * self.dim * element.size() * rows
    }

    /// Bytes that a cache for these rows needs.
    pub fn bytes(&self, element: ElementType, rows: usize, values: bool) -> usize {
        self.key_bytes(element, rows) * if values && self.values { 2 } else { 1 }
    }

    /// How caches of this model may lie. With one head the two contiguous ways are one.
    pub fn lies(&self) -> Vec<Lie> {
        let all = [Lie::Heads, Lie::Rows, Lie::Pages(16), Lie::Pages(64)];
        all.into_iter()
            .filter(|lie| self.heads > 1 || *lie != Lie::Heads)
            .collect()
    }
}

/// How the rows of a layer lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// `[1, heads, seq, dim]`
    Heads,
    /// `[1, seq, heads, dim]`
    Rows,
    /// `[blocks, block, heads, dim]`, the blocks in no order at all.
    Pages(usize),
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lie::Heads => write!(f, "[1, heads, seq, dim]"),
            Lie::Rows => write!(f, "[1, seq, heads, dim]"),
            Lie::Pages(block) => write!(f, "pages of {block}"),
        }
    }
}

/// One sequence's cache.
pub struct Cache<'m> {
    pub model: &'m Model,
    pub element: ElementType,
    pub layers: Vec<CudaRawLayer>,
    lie: Lie,
    rows: usize,
    table: Vec<u32>,
}

/// Keys or values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Keys,
    Values,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Keys => "keys",
            Part::Values => "values",
        })
    }
}

impl<'m> Cache<'m> {
    pub fn new(
        arena: &mut Arena,
        model: &'m Model,
        element: ElementType,
        lie: Lie,
        rows: usize,
        values: bool,
    ) -> Cache<'m> {
        let elements = model.heads * model.dim * rows;
        let mut buffer = || arena.take(elements * element.size());
        let values = values && model.values;
        let layers = (0..model.layers).map(|_| CudaRawLayer {
            keys: buffer(),
            keys_len: elements,
            values: if values { buffer() } else { 0 },
            values_len: if values { elements } else { 0 },
        });
        let layers = layers.collect();
        let mut table = Vec::new();
        if let Lie::Pages(block) = lie {
            table.extend(0..rows.div_ceil(block) as u32);
            table.shuffle(&mut rand::rng());
        }
        Cache {
            model,
            element,
            layers,
            lie,
            rows,
            table,
        }
    }

    pub fn layout(&self) -> CacheLayout<'_> {
        let Model { heads, dim, .. } = *self.model;
        let (element, rows) = (self.element, self.rows);
        let keys = match self.lie {
            Lie::Heads => KeyLayout::bhsd(element, [1, heads, rows, dim]),
            Lie::Rows => KeyLayout::bshd(element, [1, rows, heads, dim]),
            Lie::Pages(block) => {
                KeyLayout::nhd(element, [rows / block, block, heads, dim]).with_table(&self.table)
            }
        };
        keys.into()
    }

    /// Where a head vector is.
    pub fn address(&self, layer: usize, part: Part, row: usize, head: usize) -> u64 {
        let Model { heads, dim, .. } = *self.model;
        let vector = match self.lie {
            Lie::Heads => head * self.rows + row,
            Lie::Rows => row * heads + head,
            Lie::Pages(block) => {
                let block_start = self.table[row / block] as usize * block;
                (block_start + row % block) * heads + head
            }
        };
        let buffers = &self.layers[layer];
        let start = match part {
            Part::Keys => buffers.keys,
            Part::Values => buffers.values,
        };
        start + (vector * dim * self.element.size()) as u64
    }

    pub fn parts(&self) -> &'static [Part] {
        if self.layers[0].values == 0 {
            &[Part::Keys]
        } else {
            &[Part::Keys, Part::Values]
        }
    }
}

/// What happened to the text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Near the start, so that nearly all rows are affected.
    Start,
    /// Six edits, with a delta each, of both signs.
    Six,
    /// So near the end that this many rows are left after it.
    Leaves(usize),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Start => write!(f, "one, near the start"),
            Change::Six => write!(f, "six"),
            Change::Leaves(rows) => write!(f, "one, {rows} rows before the end"),
        }
    }
}

impl Change {
    pub const ALL: [Change; 3] = [Change::Start, Change::Six, Change::Leaves(128)];

    /// The change of a text that has `rows` tokens after it, and the change back again: deltas alternate in sign, so
    /// that keys stay what they are.
    pub fn there_and_back(self, rope: &Rope, rows: usize) -> Result<[Rotations; 2]> {
        let edits = match self {
            Change::Start => vec![Edit::insert(START, SHIFT)],
            Change::Six => {
                let parts = [(0, 37), (20, 0), (3, 16), (40, 5), (0, 17), (9, 37)];
                let grown: usize = 40;
                let distance = (rows - grown) / parts.len();
                parts
                    .iter()
                    .enumerate()
                    .map(|(index, &(removed, inserted))| {
                        let at = START + index * distance;
                        Edit::replace(at..at + removed, inserted)
                    })
                    .collect()
            }
            Change::Leaves(left) => vec![Edit::insert(rows - SHIFT - left, SHIFT)],
        };
        let there = Plan::from_edits(old_rows(rows, &edits), &edits)?;
        let back = Plan::from_edits(rows, &inverse(&edits))?;
        // The rows before the first edit are left out: a copy would take them along.
        let affected = |plan| Rotations::new(plan, rope).map(|all| all.affected_only());
        Ok([affected(&there)?, affected(&back)?])
    }
}

/// Every row turns, and back again: the whole cache, whatever has changed.
pub fn whole_cache(rope: &Rope, rows: usize) -> Result<[Rotations; 2]> {
    let near: Vec<i32> = (0..rows as i32).collect();
    let far: Vec<i32> = near.iter().map(|row| row + SHIFT as i32).collect();
    Ok([
        Rotations::new(&Plan::from_positions(&near, &far)?, rope)?,
        Rotations::new(&Plan::from_positions(&far, &near)?, rope)?,
    ])
}

fn old_rows(new_rows: usize, edits: &[Edit]) -> usize {
    let removed: usize = edits.iter().map(|edit| edit.range.len()).sum();
    let inserted: usize = edits.iter().map(|edit| edit.insert).sum();
    new_rows + removed - inserted
}

/// What undoes some edits.
fn inverse(edits: &[Edit]) -> Vec<Edit> {
    let (mut removed, mut inserted) = (0, 0);
    let undo = |edit: &Edit| {
        let start = edit.range.start + inserted - removed;
        removed += edit.range.len();
        inserted += edit.insert;
        Edit::replace(start..start + edit.insert, edit.range.len())
    };
    edits.iter().map(undo).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Rotate,
    Splice,
    /// To another cache.
    Copy,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Rotate => "rotate",
            Verb::Splice => "splice",
            Verb::Copy => "copy",
        })
    }
}

impl Verb {
    pub const ALL: [Verb; 3] = [Verb::Rotate, Verb::Splice, Verb::Copy];

    pub fn with_values(self) -> bool {
        self != Verb::Rotate
    }

    /// Bytes of the caches that it takes.
    pub fn room(self, model: &Model, element: ElementType, rows: usize) -> usize {
        let cache = model.bytes(element, rows, self.with_values());
        if self == Verb::Copy { 2 * cache } else { cache }
    }

    /// Bytes that must be read and written.
    pub fn moved(self, model: &Model, element: ElementType, rotations: &Rotations) -> u64 {
        let window = model.rope.rotary_dim();
        let all = if model.values {
            2 * model.dim
        } else {
            model.dim
        };
        let spans = rotations.spans().iter();
        let elements = spans.map(|span| {
            let stays = self == Verb::Rotate || self == Verb::Splice && span.src == span.dst;
            span.len
                * match (stays, span.turns()) {
                    (true, false) => 0,
                    (true, true) => window,
                    (false, _) => all,
                }
        });
        let elements: usize = elements.sum();
        (2 * elements * model.layers * model.heads * element.size()) as u64
    }
}

/// What a verb works on: a cache, and another one to copy to.
pub struct Caches<'m> {
    pub verb: Verb,
    pub first: Cache<'m>,
    other: Option<Cache<'m>>,
}

impl<'m> Caches<'m> {
    pub fn new(
        arena: &mut Arena,
        verb: Verb,
        model: &'m Model,
        element: ElementType,
        lie: Lie,
        rows: usize,
    ) -> Caches<'m> {
        let mut cache = || Cache::new(arena, model, element, lie, rows, verb.with_values());
        Caches {
            verb,
            first: cache(),
            other: (verb == Verb::Copy).then(cache),
        }
    }

    /// Where rows are after the verb.
    pub fn after(&self) -> &Cache<'m> {
        self.other.as_ref().unwrap_or(&self.first)
    }

    /// Launches the verb, on all layers at once.
    ///
    /// # Panics
    /// If it is refused.
    pub fn call(&self, gpu: &Gpu, rotations: &Rotations) {
        self.call_on(gpu, rotations, 0..self.first.layers.len());
    }

    /// Launches the verb on some layers.
    ///
    /// # Panics
    /// If it is refused.
    pub fn call_on(&self, gpu: &Gpu, rotations: &Rotations, layers: Range<usize>) {
        let (cuda, stream, workspace) = (&gpu.cuda, gpu.stream.cu_stream(), gpu.workspace());
        let layout = self.first.layout();
        let from = &self.first.layers[layers.clone()];
        // SAFETY: caches are taken from one arena of the device's memory, so they do not overlap.
        let launched = unsafe {
            match self.verb {
                Verb::Rotate => cuda.rotate_raw(stream, rotations, &layout, from, workspace),
                Verb::Splice => cuda.splice_raw(stream, rotations, &layout, from, workspace),
                Verb::Copy => {
                    let to = (&self.after().layout(), &self.after().layers[layers]);
                    cuda.copy_raw(stream, rotations, (&layout, from), to, workspace)
                }
            }
        };
        launched.unwrap_or_else(|error| panic!("{}: {error}", self.verb));
    }
}
