//! The three verbs, as Python calls them.

use pyo3::prelude::*;

use crate::cache::{Cache, Part, check_apart};
use crate::call::Call;
use crate::errors::raise;
use crate::numbers::table;
use crate::rope::Rotations;
use crate::run::{Verb, run};

/// Turn keys where they lie: row ``src`` of every span, in every layer.
///
/// See the module's documentation for tensors, layouts, block tables, streams and workspaces.
#[pyfunction]
#[pyo3(signature = (rotations, keys, *, layout="bhsd", block_table=None, stream=None, workspace=None))]
pub(crate) fn rotate(
    rotations: &Rotations,
    keys: &Bound<'_, PyAny>,
    layout: &str,
    block_table: Option<&Bound<'_, PyAny>>,
    stream: Option<&Bound<'_, PyAny>>,
    workspace: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let call = Call::new("keys", keys, stream, workspace)?;
    let cache = in_place(&call, keys, None, (layout, None), block_table)?;
    run(&call, &rotations.0, &cache, &cache, Verb::Rotate)
}

/// Move rows inside their buffers and turn keys on the way; values move along. ``None`` says that there are none, as in a
/// latent attention: values that are merely left out would stay behind.
///
/// See the module's documentation for tensors, layouts, block tables, streams and workspaces.
#[pyfunction]
#[pyo3(signature = (
    rotations, keys, values, *, layout="bhsd", values_layout=None, block_table=None, stream=None, workspace=None
))]
#[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn splice(
    rotations: &Rotations,
    keys: &Bound<'_, PyAny>,
    values: Option<&Bound<'_, PyAny>>,
    layout: &str,
    values_layout: Option<&str>,
    block_table: Option<&Bound<'_, PyAny>>,
    stream: Option<&Bound<'_, PyAny>>,
    workspace: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let call = Call::new("keys", keys, stream, workspace)?;
    let cache = in_place(&call, keys, values, (layout, values_layout), block_table)?;
    run(&call, &rotations.0, &cache, &cache, Verb::Splice)
}

/// Copy every row that the plan keeps to other tensors, or to other pages of the same ones, and turn keys on the way.
/// ``None`` says that there are no values. All tensors are named, as any order of four could be mistaken.
///
/// See the module's documentation for tensors, layouts, block tables, streams and workspaces.
#[pyfunction]
#[pyo3(signature = (
    rotations, *, src_keys, dst_keys, src_values, dst_values, layout="bhsd", values_layout=None,
    dst_layout=None, dst_values_layout=None, block_table=None, dst_block_table=None, stream=None, workspace=None
))]
#[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn copy(
    rotations: &Rotations,
    src_keys: &Bound<'_, PyAny>,
    dst_keys: &Bound<'_, PyAny>,
    src_values: Option<&Bound<'_, PyAny>>,
    dst_values: Option<&Bound<'_, PyAny>>,
    layout: &str,
    values_layout: Option<&str>,
    dst_layout: Option<&str>,
    dst_values_layout: Option<&str>,
    block_table: Option<&Bound<'_, PyAny>>,
    dst_block_table: Option<&Bound<'_, PyAny>>,
    stream: Option<&Bound<'_, PyAny>>,
    workspace: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let call = Call::new("src_keys", src_keys, stream, workspace)?;
    let values_layout = values_layout.unwrap_or(layout);
    let dst_values_layout = dst_values_layout.or(dst_layout).unwrap_or(values_layout);
    let src = Cache::borrow(
        &call,
        Part::new("src_keys", src_keys, layout),
        src_values.map(|values| Part::new("src_values", values, values_layout)),
        table("block_table", block_table)?,
        false,
    )?;
    let dst = Cache::borrow(
        &call,
        Part::new("dst_keys", dst_keys, dst_layout.unwrap_or(layout)),
        dst_values.map(|values| Part::new("dst_values", values, dst_values_layout)),
        table("dst_block_table", dst_block_table)?,
        true,
    )?;
    check_apart(&dst.parts(), &src.parts())?;
    run(&call, &rotations.0, &src, &dst, Verb::Copy)
}

/// Raise what a verb would raise for these tensors, whatever the plan, and do nothing.
#[pyfunction]
#[pyo3(signature = (keys, values=None, *, layout="bhsd", values_layout=None))]
pub(crate) fn check(
    keys: &Bound<'_, PyAny>,
    values: Option<&Bound<'_, PyAny>>,
    layout: &str,
    values_layout: Option<&str>,
) -> PyResult<()> {
    let call = Call::new("keys", keys, None, None)?;
    let cache = in_place(&call, keys, values, (layout, values_layout), None)?;
    for part in cache.parts() {
        for (_, len) in part.buffers() {
            part.layout.check(len).map_err(raise)?;
        }
    }
    Ok(())
}

/// A cache that is worked on in place.
fn in_place<'py>(
    call: &Call<'py>,
    keys: &Bound<'py, PyAny>,
    values: Option<&Bound<'py, PyAny>>,
    (layout, values_layout): (&str, Option<&str>),
    block_table: Option<&Bound<'py, PyAny>>,
) -> PyResult<Cache<'py>> {
    let values_layout = values_layout.unwrap_or(layout);
    let cache = Cache::borrow(
        call,
        Part::new("keys", keys, layout),
        values.map(|values| Part::new("values", values, values_layout)),
        table("block_table", block_table)?,
        true,
    )?;
    check_apart(&cache.parts(), &[])?;
    Ok(cache)
}
