//! Edits and plans.

use std::hash::{Hash, Hasher};

use pie_rope as core;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::raise;
use crate::numbers::{count, integers_as};

/// Replace the old tokens ``start`` to ``stop`` (half open) by ``inserted`` new ones.
///
/// Indices count the tokens before any edit of the same list. ``start == stop`` inserts before that token, or at the
/// end; ``inserted == 0`` deletes.
#[pyclass(frozen, eq, hash, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct Edit(pub(crate) core::Edit);

impl Hash for Edit {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0.range.clone(), self.0.insert).hash(state);
    }
}

#[pymethods]
impl Edit {
    /// For `pickle` and `copy`.
    fn __getnewargs__(&self) -> (usize, usize, usize) {
        (self.start(), self.stop(), self.inserted())
    }

    #[new]
    fn new(start: i64, stop: i64, inserted: i64) -> PyResult<Edit> {
        let range = count("start", start)?..count("stop", stop)?;
        let inserted = count("inserted", inserted)?;
        Ok(Edit(core::Edit::replace(range, inserted)))
    }

    /// Insert ``tokens`` tokens before old token ``at``.
    #[staticmethod]
    fn insert(at: i64, tokens: i64) -> PyResult<Edit> {
        let (at, tokens) = (count("at", at)?, count("tokens", tokens)?);
        Ok(Edit(core::Edit::insert(at, tokens)))
    }

    /// Delete the old tokens ``start`` to ``stop``.
    #[staticmethod]
    fn delete(start: i64, stop: i64) -> PyResult<Edit> {
        let range = count("start", start)?..count("stop", stop)?;
        Ok(Edit(core::Edit::delete(range)))
    }

    /// Replace the old tokens ``start`` to ``stop`` by ``tokens`` new ones.
    #[staticmethod]
    fn replace(start: i64, stop: i64, tokens: i64) -> PyResult<Edit> {
        let range = count("start", start)?..count("stop", stop)?;
        let tokens = count("tokens", tokens)?;
        Ok(Edit(core::Edit::replace(range, tokens)))
    }

    /// The edits that turn the tokens ``old`` into ``new``.
    #[staticmethod]
    fn between(
        py: Python<'_>,
        old: &Bound<'_, PyAny>,
        new: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<Edit>> {
        let (old, new) = (integers_as("old", old)?, integers_as("new", new)?);
        Ok(py
            .detach(|| core::Edit::between(&old, &new))
            .into_iter()
            .map(Edit)
            .collect())
    }

    /// First old token to remove.
    #[getter]
    fn start(&self) -> usize {
        self.0.range.start
    }

    /// The old token behind the last one to remove.
    #[getter]
    fn stop(&self) -> usize {
        self.0.range.end
    }

    /// How many new tokens take their place.
    #[getter]
    fn inserted(&self) -> usize {
        self.0.insert
    }

    fn __repr__(&self) -> String {
        format!(
            "Edit(start={}, stop={}, inserted={})",
            self.start(),
            self.stop(),
            self.inserted()
        )
    }
}

/// A run of rows that survive: ``len`` rows from ``src`` go to ``dst``, from ``old_position`` on to ``new_position`` on.
#[pyclass(frozen, eq, get_all, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct Span {
    /// First row before.
    src: usize,
    /// First row after.
    dst: usize,
    /// How many rows.
    len: usize,
    /// Position of the first row before.
    old_position: i32,
    /// Position of the first row after.
    new_position: i32,
}

#[pymethods]
impl Span {
    fn __repr__(&self) -> String {
        let Span {
            src,
            dst,
            len,
            old_position,
            new_position,
        } = self;
        format!(
            "Span(src={src}, dst={dst}, len={len}, old_position={old_position}, new_position={new_position})"
        )
    }
}

/// A run of rows to encode: rows ``row`` to ``row + len`` of the edited sequence, at ``position`` and on.
#[pyclass(frozen, eq, get_all, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct NewSpan {
    /// First row, counted after the edit: also the index of its token among the new ones.
    row: usize,
    /// How many rows.
    len: usize,
    /// Position of the first row.
    position: i32,
}

#[pymethods]
impl NewSpan {
    /// The rows as a slice: ``new_tokens[span.rows]`` are the tokens to encode.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("builtins")?
            .getattr("slice")?
            .call1((self.row, self.row + self.len))
    }

    /// The positions as a range: ``torch.tensor([*span.positions])`` are the ``position_ids``.
    #[getter]
    fn positions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let start = i64::from(self.position);
        py.import("builtins")?
            .getattr("range")?
            .call1((start, start + self.len as i64))
    }

    fn __repr__(&self) -> String {
        let NewSpan { row, len, position } = self;
        format!("NewSpan(row={row}, len={len}, position={position})")
    }
}

/// What has to happen to a cached sequence so that it becomes the new one: the rows that survive (:attr:`kept`), as
/// runs that move and turn together, and the rows to encode (:attr:`new_spans`).
#[pyclass(frozen, eq, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct Plan(pub(crate) core::Plan);

impl Plan {
    fn made(plan: core::Result<core::Plan>) -> PyResult<Plan> {
        plan.map(Plan).map_err(raise)
    }
}

#[pymethods]
impl Plan {
    /// The plan of ``edits`` to ``rows`` tokens, of which token ``i`` lies in row ``i``, at position
    /// ``first_position + i``.
    #[staticmethod]
    #[pyo3(signature = (rows, edits, *, first_position=0))]
    fn from_edits(rows: i64, edits: Vec<PyRef<'_, Edit>>, first_position: i64) -> PyResult<Plan> {
        let rows = count("rows", rows)?;
        count("first_position", first_position)?;
        let first_position = i32::try_from(first_position).map_err(|_| {
            PyValueError::new_err(format!(
                "first_position: {first_position} is more than {}",
                i32::MAX
            ))
        })?;
        let edits: Vec<_> = edits.iter().map(|edit| edit.0.clone()).collect();
        Plan::made(core::Plan::from_edits_at(first_position, rows, &edits))
    }

    /// The plan from the tokens ``old``, token ``i`` in row ``i`` at position ``i``, to the tokens ``new``.
    #[staticmethod]
    fn from_tokens(
        py: Python<'_>,
        old: &Bound<'_, PyAny>,
        new: &Bound<'_, PyAny>,
    ) -> PyResult<Plan> {
        let (old, new) = (integers_as("old", old)?, integers_as("new", new)?);
        Plan::made(py.detach(|| core::Plan::from_tokens(&old, &new)))
    }

    /// Rows stay where they are; row ``i`` goes from position ``old[i]`` to ``new[i]``. Where both are negative, it is left
    /// alone: free, or another sequence's.
    #[staticmethod]
    fn from_positions(old: &Bound<'_, PyAny>, new: &Bound<'_, PyAny>) -> PyResult<Plan> {
        Plan::made(core::Plan::from_positions(
            &integers_as("old", old)?,
            &integers_as("new", new)?,
        ))
    }

    /// Eviction: of ``rows`` rows those in ``kept`` stay, moved together, and are numbered anew from position 0 on.
    #[staticmethod]
    fn from_kept(rows: i64, kept: &Bound<'_, PyAny>) -> PyResult<Plan> {
        let rows = count("rows", rows)?;
        Plan::made(core::Plan::from_kept(rows, &integers_as("kept", kept)?))
    }

    /// Eviction with the positions given: row ``i`` is at position ``old[i]``; row ``kept[i]`` goes to ``new[i]``.
    #[staticmethod]
    fn from_kept_at(
        old: &Bound<'_, PyAny>,
        kept: &Bound<'_, PyAny>,
        new: &Bound<'_, PyAny>,
    ) -> PyResult<Plan> {
        let (old, kept, new) = (
            integers_as("old", old)?,
            integers_as("kept", kept)?,
            integers_as("new", new)?,
        );
        Plan::made(core::Plan::from_kept_at(&old, &kept, &new))
    }

    /// This plan and ``next`` after it, as one: keys then turn once, and round once.
    fn then(&self, next: &Plan) -> PyResult<Plan> {
        Plan::made(self.0.then(&next.0))
    }

    /// The plan for an engine that has moved the rows already: they stay, and turn.
    fn in_place(&self) -> Plan {
        Plan(self.0.in_place())
    }

    /// Every row that survives, in order of destination.
    #[getter]
    fn kept(&self) -> Vec<Span> {
        let spans = self.0.kept().iter();
        let spans = spans.map(
            |&core::Span {
                 src,
                 dst,
                 len,
                 old_position,
                 new_position,
             }| Span {
                src,
                dst,
                len,
                old_position,
                new_position,
            },
        );
        spans.collect()
    }

    /// The rows to encode, in order.
    #[getter]
    fn new_spans(&self) -> Vec<NewSpan> {
        let spans = self.0.new_spans().iter();
        spans
            .map(|&core::NewSpan { row, len, position }| NewSpan { row, len, position })
            .collect()
    }

    /// The distinct deltas of the kept spans, ascending, without zero.
    #[getter]
    fn deltas(&self) -> Vec<i32> {
        self.0.deltas().to_vec()
    }

    /// Rows of the sequence before.
    #[getter]
    fn old_rows(&self) -> usize {
        self.0.old_rows()
    }

    /// Rows of the sequence after, those still to be encoded included.
    #[getter]
    fn new_rows(&self) -> usize {
        self.0.new_rows()
    }

    fn __repr__(&self) -> String {
        let (old, new) = (self.old_rows(), self.new_rows());
        format!(
            "Plan(old_rows={old}, new_rows={new}, deltas={:?})",
            self.0.deltas()
        )
    }
}
