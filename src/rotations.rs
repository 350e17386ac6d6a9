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
//! The angle is composed in f64 before any cosine is taken and rounded to f32 once. Where the
//! frequencies did not change it is `(p_new − p_old) · f`: rows with the same delta share a table row,
//! and an edit needs one to six of them. Where they did change (LongRoPE's switch, dynamic NTK) every
//! row has an angle of its own, so the table has one row per cache row.

use crate::{Error, ModelRope, Plan, Result, Rope};

/// Where the table rows of a span are: row `i` of the span turns by table row `first + i * step`.
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
    /// How keys turn; `None`: not at all, their bits stay as they are.
    pub turn: Option<Turn>,
}

impl TurnedSpan {
    /// Whether a splice has anything to do here.
    pub fn is_affected(&self) -> bool {
        self.turn.is_some() || self.src != self.dst
    }
}

/// The (cos, sin) rows of one rope. All tables of a [`Rotations`] number their rows alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    old: Rope,
    new: Rope,
    /// `rows × (pairs cosines, pairs sines)`.
    cos_sin: Vec<f32>,
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

    fn changes_frequencies(&self) -> bool {
        self.old.inv_freq() != self.new.inv_freq()
    }

    /// Appends the row that turns a key from `old_position` to `new_position`.
    fn push(&mut self, old_position: i32, new_position: i32) {
        let angles = |(old, new): (&f64, &f64)| {
            // Equal frequencies: one product of the exact difference, not a difference of products.
            if old == new {
                (f64::from(new_position) - f64::from(old_position)) * new
            } else {
                f64::from(new_position) * new - f64::from(old_position) * old
            }
        };
        let pairs = self.new.pairs();
        let start = self.cos_sin.len();
        self.cos_sin.resize(start + 2 * pairs, 0.0);
        let (cos, sin) = self.cos_sin[start..].split_at_mut(pairs);
        let frequencies = self.old.inv_freq().iter().zip(self.new.inv_freq());
        for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(frequencies.map(angles)) {
            let (s, c) = angle.sin_cos();
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}

/// A plan made ready for the kernels, for one model. Made once per model, used for all of its layers;
/// [`update`](Rotations::update) makes the next edit's in the same memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotations {
    spans: Vec<TurnedSpan>,
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
    /// [`Error::Plan`] if the plan needs more than `u32::MAX` table rows.
    pub fn new(plan: &Plan, rope: &Rope) -> Result<Rotations> {
        let mut rotations = Rotations::empty();
        rotations.tables.push(Table {
            old: rope.clone(),
            new: rope.clone(),
            cos_sin: Vec::new(),
        });
        rotations.update(plan)?;
        Ok(rotations)
    }

    /// For a model whose layers may have different ropes, or none. A verb then takes exactly the
    /// model's layers, in order; [`select`](Rotations::select) narrows to some of them.
    ///
    /// # Errors
    /// [`Error::Plan`] if the plan needs more than `u32::MAX` table rows.
    pub fn for_model(plan: &Plan, model: &ModelRope) -> Result<Rotations> {
        Rotations::between(plan, model, model)
    }

    /// For a model whose frequencies changed between the time the keys were encoded (`old`) and now
    /// (`new`): LongRoPE's switch, dynamic NTK. Rows whose position stays turn as well.
    ///
    /// # Errors
    /// [`Error::Rope`] if the two differ in anything but frequencies (layers, pairing, window), and
    /// [`Error::Plan`] if the plan needs more than `u32::MAX` table rows.
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
        let mut known = Vec::new();
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
            let table = known.iter().position(|&k| k == key).unwrap_or_else(|| {
                known.push(key);
                rotations.tables.push(Table {
                    old: from.clone(),
                    new: to.clone(),
                    cos_sin: Vec::new(),
                });
                known.len() - 1
            });
            layers.push(Some(table));
        }
        rotations.layers = Some(layers);
        rotations.update(plan)?;
        Ok(rotations)
    }

    fn empty() -> Rotations {
        Rotations {
            spans: Vec::new(),
            old_rows: 0,
            new_rows: 0,
            tables: Vec::new(),
            layers: None,
        }
    }

    /// The same ropes with another plan, in the same memory: no allocation once it is large enough.
    ///
    /// # Errors
    /// [`Error::Plan`] if the plan needs more than `u32::MAX` table rows; nothing has changed then.
    pub fn update(&mut self, plan: &Plan) -> Result<()> {
        let row_by_row = self.tables.iter().any(Table::changes_frequencies);
        let table_rows = if row_by_row {
            plan.kept().iter().map(|span| span.len).sum()
        } else {
            plan.deltas().len()
        };
        if u32::try_from(table_rows).is_err() {
            return Err(Error::Plan(format!(
                "{table_rows} different rotations are more than a table holds"
            )));
        }

        self.old_rows = plan.old_rows();
        self.new_rows = plan.new_rows();
        for table in &mut self.tables {
            table.cos_sin.clear();
            if row_by_row {
                for span in plan.kept() {
                    for row in 0..span.len as i32 {
                        table.push(span.old_position + row, span.new_position + row);
                    }
                }
            } else {
                for &delta in plan.deltas() {
                    table.push(0, delta);
                }
            }
        }

        let mut first = 0;
        self.spans.clear();
        self.spans.extend(plan.kept().iter().map(|span| {
            let turn = if row_by_row {
                let turn = Turn { first, step: 1 };
                first += span.len as u32;
                Some(turn)
            } else {
                // A delta of 0 is not in the list.
                let row = plan.deltas().binary_search(&span.delta()).ok();
                row.map(|row| Turn {
                    first: row as u32,
                    step: 0,
                })
            };
            TurnedSpan {
                src: span.src,
                dst: span.dst,
                len: span.len,
                turn,
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
        let mut affected = self.clone();
        affected.spans.retain(TurnedSpan::is_affected);
        affected
    }

    /// The same rotations without the rows before `row`, counted after the edit: for a copy between
    /// sequences that share the pages of their first rows, which must neither turn nor move.
    pub fn starting_at(&self, row: usize) -> Rotations {
        let mut rest = self.clone();
        for span in &mut rest.spans {
            let skipped = row.saturating_sub(span.dst).min(span.len);
            span.src += skipped;
            span.dst += skipped;
            span.len -= skipped;
            if let Some(turn) = &mut span.turn {
                // At most the rows of a table, which a `u32` counts.
                turn.first += turn.step * skipped as u32;
            }
        }
        rest.spans.retain(|span| span.len > 0);
        rest
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
