//! From a plan and a rope to what a kernel needs: which rows go where, and one f32 (cos, sin) row per
//! distinct delta.
//!
//! A key at position `p` was multiplied, pair by pair, by the rotation of angle `p · f`, where `f` is
//! the pair's inverse frequency. Undoing that and rotating to the new position is one rotation:
//!
//! ```text
//! R(p_new · f_new) · R(p_old · f_old)ᵀ = R(p_new · f_new − p_old · f_old)
//! ```
//!
//! The angle is composed before any cosine is taken, as the exact sum of two f64 (`angle.rs`), and its
//! cosine and sine are rounded to f32 once. Where the frequencies did not change it is
//! `(p_new − p_old) · f`: rows with the same delta share a table row, and an edit needs one to six of
//! them. Where they did change (LongRoPE's switch, dynamic NTK) every row has an angle of its own, so
//! the table has one row per row that the plan keeps, for each distinct pair of ropes.

mod angle;

use std::collections::HashMap;
use std::sync::Arc;

use self::angle::Runs;
use crate::{Error, ModelRope, Plan, Result, Rope, memory};

/// Where a span's rows of a table are: row `i` of the span turns by table row `first + i * step`.
/// [`TurnedSpan::turn`] says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Table row of the span's first row.
    pub first: u32,
    /// 0: the whole span turns by one row of the table. 1: each row by its own.
    pub step: u32,
}

/// A plan's span with the table rows that turn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedSpan {
    /// First row before.
    pub src: usize,
    /// First row after.
    pub dst: usize,
    /// Number of rows.
    pub len: usize,
    /// In the tables of ropes whose frequencies did not change: the row that turns all of the span. `None`: its
    /// positions stay.
    pub(crate) delta: Option<u32>,
    /// In the tables of ropes whose frequencies changed: the row of the span's first row; those of the others follow.
    /// `None`: there is no such table.
    pub(crate) own: Option<u32>,
}

impl TurnedSpan {
    /// How keys turn in a layer whose table this is; `None`: not at all, their bits stay as they are.
    pub fn turn(&self, table: &Table) -> Option<Turn> {
        if table.is_row_by_row() {
            self.own.map(|first| Turn { first, step: 1 })
        } else {
            self.delta.map(|first| Turn { first, step: 0 })
        }
    }

    /// Whether keys turn in any layer that has a rope.
    pub fn turns(&self) -> bool {
        self.delta.is_some() || self.own.is_some()
    }

    /// Whether a splice has anything to do here.
    pub fn is_affected(&self) -> bool {
        self.turns() || self.src != self.dst
    }

    /// The span without its first rows.
    fn skip(self, rows: usize) -> TurnedSpan {
        TurnedSpan {
            src: self.src + rows,
            dst: self.dst + rows,
            len: self.len - rows,
            // At most the rows of a table, which a `u32` counts.
            own: self.own.map(|first| first + rows as u32),
            ..self
        }
    }
}

/// The (cos, sin) rows of one rope: one for each distinct delta, or where its frequencies changed one for each row
/// that the plan keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    old: Rope,
    new: Rope,
    /// `rows × (pairs cosines, pairs sines)`. Shared with the rotations of some of the layers, or rows.
    cos_sin: Arc<Vec<f32>>,
    row_by_row: bool,
}

impl Table {
    /// The rope that the keys have after the turn.
    pub fn rope(&self) -> &Rope {
        &self.new
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.cos_sin.len() / (2 * self.new.pairs())
    }

    /// Row `row`: the cosines and the sines of every pair.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let pairs = self.new.pairs();
        self.cos_sin[row * 2 * pairs..][..2 * pairs].split_at(pairs)
    }

    /// All rows, each `pairs` cosines followed by `pairs` sines: what a GPU backend uploads.
    pub fn as_slice(&self) -> &[f32] {
        &self.cos_sin
    }

    fn new(old: &Rope, new: &Rope) -> Table {
        Table {
            old: old.clone(),
            new: new.clone(),
            cos_sin: Arc::default(),
            row_by_row: old.inv_freq() != new.inv_freq(),
        }
    }

    /// Whether each row that the plan keeps has a table row of its own, as its frequencies changed.
    pub fn is_row_by_row(&self) -> bool {
        self.row_by_row
    }

    /// How many numbers rows have, each `pairs` cosines and `pairs` sines.
    fn numbers(&self, rows: usize) -> usize {
        rows * 2 * self.new.pairs()
    }

    /// The rows that turn keys by `deltas`, one each.
    fn set_deltas(&mut self, deltas: &[i32]) {
        let width = self.numbers(1);
        let rows = unshared(&mut self.cos_sin);
        rows.resize(deltas.len() * width, 0.0);
        for (row, &delta) in rows.chunks_exact_mut(width).zip(deltas) {
            angle::row(row, (&self.new, 0), (&self.new, delta));
        }
    }

    /// The rows that turn every row of a plan's spans, `rows` in all.
    fn set_rows(&mut self, rows: usize, runs: &Runs, scratch: &mut [f64]) {
        let numbers = self.numbers(rows);
        let rows = unshared(&mut self.cos_sin);
        rows.resize(numbers, 0.0);
        runs.fill(rows, &self.old, &self.new, scratch);
    }
}

/// A list in place of one that is too short for `len` items, or that somebody shares; `None`: it is fine as it is. One
/// that has grown is half as long again at least, so that a cache that gains a row with each edit seldom makes a new one.
fn longer<T>(
    list: &mut Arc<Vec<T>>,
    len: usize,
    make: fn(usize) -> Result<Vec<T>>,
) -> Result<Option<Arc<Vec<T>>>> {
    let enough = match Arc::get_mut(list).map(|own| own.capacity()) {
        Some(capacity) if capacity >= len => return Ok(None),
        Some(capacity) => len.max(capacity + capacity / 2),
        None => len,
    };
    make(enough).map(|list| Some(Arc::new(list)))
}

/// A list that [`longer`] has seen to.
fn unshared<T>(list: &mut Arc<Vec<T>>) -> &mut Vec<T> {
    Arc::get_mut(list).expect("nobody shares what `longer` has seen to")
}

/// A plan made ready for the kernels, for one model. Made once per model, used for all of its layers;
/// [`update`](Rotations::update) makes the next edit's in the same memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotations {
    spans: Arc<Vec<TurnedSpan>>,
    old_rows: usize,
    new_rows: usize,
    tables: Vec<Table>,
    /// Each layer's table. `None`: any number of layers, all with table 0.
    layers: Option<Vec<Option<usize>>>,
}

impl Rotations {
    /// For a model whose layers all have the same rope; a verb then takes any number of layers.
    ///
    /// # Errors
    /// As [`update`](Rotations::update).
    pub fn new(plan: &Plan, rope: &Rope) -> Result<Rotations> {
        let mut rotations = Rotations::empty();
        rotations.tables.push(Table::new(rope, rope));
        rotations.update(plan)?;
        Ok(rotations)
    }

    /// For a model whose layers may have different ropes, or none. A verb then takes exactly the
    /// model's layers, in order; [`select`](Rotations::select) narrows to some of them.
    ///
    /// # Errors
    /// As [`update`](Rotations::update).
    pub fn for_model(plan: &Plan, model: &ModelRope) -> Result<Rotations> {
        Rotations::between(plan, model, model)
    }

    /// For a model whose frequencies changed between the time the keys were encoded (`old`) and now
    /// (`new`): LongRoPE's switch, dynamic NTK. Rows whose position stays turn as well.
    ///
    /// Every row is taken to have been encoded with `old`. Where some were encoded after the change
    /// already, as by decoding past a switch, turn the others alone first, where they are: `rotate` by
    /// `between` a plan of [`Plan::from_positions`] with each row at its own position, and at -1 those
    /// that have the new frequencies. What follows is an edit [for the new model](Rotations::for_model).
    /// (Under dynamic NTK each row that was decoded past the original length may have frequencies of its
    /// own; such rows cannot be turned together.)
    ///
    /// Every row has an angle of its own then: for each distinct pair of old and new rope, `8 · pairs`
    /// bytes for each row that the plan keeps, besides 16 for all of them. A model with one rope for
    /// all layers, 64 pairs and 131 072 rows: 67 MB. 64 layers with ropes of their own and 200 000 rows:
    /// 6.6 GB, and some seconds, most of them for the system to give the memory.
    ///
    /// # Errors
    /// [`Error::Rope`] if the two differ in anything but frequencies (layers, pairing, window), and as
    /// [`update`](Rotations::update).
    pub fn between(plan: &Plan, old: &ModelRope, new: &ModelRope) -> Result<Rotations> {
        if old.layers() != new.layers() {
            return Err(Error::Rope(format!(
                "the old model has {} layers, the new one {}",
                old.layers(),
                new.layers()
            )));
        }
        let mut rotations = Rotations::empty();
        // Layers share a table when they share both ropes.
        let mut known = HashMap::new();
        let mut layers = Vec::with_capacity(new.layers());
        for layer in 0..new.layers() {
            let key = (old.rope_index(layer), new.rope_index(layer));
            let (from, to) = match (old.layer(layer), new.layer(layer)) {
                (None, None) => {
                    layers.push(None);
                    continue;
                }
                (Some(from), Some(to)) if same_shape(from, to) => (from, to),
                _ => {
                    return Err(Error::Rope(format!(
                        "layer {layer}: the old and the new rope differ in more than their frequencies"
                    )));
                }
            };
            let table = *known.entry(key).or_insert_with(|| {
                rotations.tables.push(Table::new(from, to));
                rotations.tables.len() - 1
            });
            layers.push(Some(table));
        }
        rotations.layers = Some(layers);
        rotations.update(plan)?;
        Ok(rotations)
    }

    fn empty() -> Rotations {
        Rotations {
            spans: Arc::default(),
            old_rows: 0,
            new_rows: 0,
            tables: Vec::new(),
            layers: None,
        }
    }

    /// The same ropes with another plan, in the same memory: no allocation once it is large enough, but
    /// where frequencies changed for lists that are freed again.
    ///
    /// # Errors
    /// [`Error::Plan`] if the plan needs more than `u32::MAX` table rows, and [`Error::OutOfMemory`] if
    /// there is no memory for them; nothing has changed then.
    pub fn update(&mut self, plan: &Plan) -> Result<()> {
        let row_by_row = self.tables.iter().any(Table::is_row_by_row);
        let rows: usize = plan.kept().iter().map(|span| span.len).sum();
        let deltas = plan.deltas().len();
        let most = if row_by_row { rows } else { deltas };
        if u32::try_from(most).is_err() {
            return Err(Error::Plan(format!(
                "{most} different rotations are more than a table holds"
            )));
        }

        // All memory before anything changes.
        let mut fresh = Vec::new();
        let tables = self.tables.len();
        for (index, table) in self.tables.iter_mut().enumerate() {
            let numbers = table.numbers(if table.row_by_row { rows } else { deltas });
            if let Some(own) = longer(&mut table.cos_sin, numbers, memory::zeroed)? {
                if fresh.is_empty() {
                    fresh = memory::list(tables)?;
                }
                fresh.push((index, own));
            }
        }
        let mut runs = None;
        let mut scratch = Vec::new();
        let own_angles = self.tables.iter().filter(|table| table.row_by_row);
        if let Some(pairs) = own_angles.map(|table| table.new.pairs()).max() {
            let made = Runs::new(plan.kept())?;
            scratch = memory::zeroed(made.scratch(pairs))?;
            runs = Some(made);
        }
        if let Some(own) = longer(&mut self.spans, plan.kept().len(), memory::list)? {
            self.spans = own;
        }
        for (index, own) in fresh {
            self.tables[index].cos_sin = own;
        }

        self.old_rows = plan.old_rows();
        self.new_rows = plan.new_rows();
        for table in &mut self.tables {
            match &runs {
                Some(runs) if table.row_by_row => table.set_rows(rows, runs, &mut scratch),
                _ => table.set_deltas(plan.deltas()),
            }
        }

        let mut first = 0u32;
        let spans = unshared(&mut self.spans);
        spans.clear();
        spans.extend(plan.kept().iter().map(|span| {
            let own = runs.is_some().then_some(first);
            // Without tables of that kind they are not counted, and may be more.
            first = first.wrapping_add(span.len as u32);
            TurnedSpan {
                src: span.src,
                dst: span.dst,
                len: span.len,
                // A delta of 0 is not in the list.
                delta: plan
                    .deltas()
                    .binary_search(&span.delta())
                    .ok()
                    .map(|row| row as u32),
                own,
            }
        }));
        Ok(())
    }

    /// The same rotations for some of the model's layers, as a pipeline stage or a group of layers
    /// with a common layout needs them. Rotations of [`new`](Rotations::new), which fit any number of
    /// layers, are returned as they are.
    ///
    /// # Errors
    /// [`Error::Argument`] if a layer is not the model's.
    pub fn select(&self, layers: impl IntoIterator<Item = usize>) -> Result<Rotations> {
        let Some(all) = &self.layers else {
            return Ok(self.clone());
        };
        // Tables that no layer of the group has are left behind: its layout need not fit them.
        let mut tables = Vec::new();
        let mut known = vec![None; self.tables.len()];
        let mut pick = |layer: usize| {
            let table = all.get(layer).copied().ok_or_else(|| Error::Argument {
                argument: "layers",
                problem: format!("there is no layer {layer} in a model of {}", all.len()),
            })?;
            Ok(table.map(|table| {
                *known[table].get_or_insert_with(|| {
                    tables.push(self.tables[table].clone());
                    tables.len() - 1
                })
            }))
        };
        let layers = layers
            .into_iter()
            .map(&mut pick)
            .collect::<Result<Vec<_>>>()?;
        Ok(Rotations {
            spans: self.spans.clone(),
            tables,
            layers: Some(layers),
            ..*self
        })
    }

    /// The same rotations without the rows that neither turn nor move: what a splice touches. A copy of
    /// these alone is for a destination that holds all others already.
    pub fn affected_only(&self) -> Rotations {
        let affected = self.spans.iter().filter(|span| span.is_affected());
        self.with_spans(affected.copied().collect())
    }

    /// The same rotations without the rows before `row`, counted after the edit: for a copy between
    /// sequences that share the pages of their first rows, which must neither turn nor move.
    pub fn starting_at(&self, row: usize) -> Rotations {
        let before = self
            .spans
            .partition_point(|span| span.dst + span.len <= row);
        let mut rest = self.spans[before..].to_vec();
        if let Some(cut) = rest.first_mut() {
            *cut = cut.skip(row.saturating_sub(cut.dst));
        }
        self.with_spans(rest)
    }

    /// Some of the rows, with the same tables: these are shared, not copied.
    fn with_spans(&self, spans: Vec<TurnedSpan>) -> Rotations {
        Rotations {
            spans: Arc::new(spans),
            tables: self.tables.clone(),
            layers: self.layers.clone(),
            ..*self
        }
    }

    /// Every row that the plan keeps, in order of destination.
    pub fn spans(&self) -> &[TurnedSpan] {
        &self.spans
    }

    /// Rows before.
    pub fn old_rows(&self) -> usize {
        self.old_rows
    }

    /// Rows after, those still to be encoded included.
    pub fn new_rows(&self) -> usize {
        self.new_rows
    }

    /// The tables, one for each distinct rope.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// How many layers a verb takes; `None`: any number.
    pub fn layers(&self) -> Option<usize> {
        self.layers.as_ref().map(Vec::len)
    }

    /// The table of layer `layer`; `None` where the layer has no rope.
    ///
    /// # Panics
    /// If the rotations are for a model that has no such layer.
    pub fn table(&self, layer: usize) -> Option<&Table> {
        self.table_index(layer).map(|index| &self.tables[index])
    }

    /// Which of the [`tables`](Rotations::tables) is layer `layer`'s.
    pub(crate) fn table_index(&self, layer: usize) -> Option<usize> {
        match &self.layers {
            None => Some(0),
            Some(layers) => layers[layer],
        }
    }
}

fn same_shape(a: &Rope, b: &Rope) -> bool {
    a.pairing() == b.pairing() && a.window() == b.window()
}
