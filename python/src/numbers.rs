//! Integers, and lists of them: counts, token ids, positions, block tables.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;

/// A number of tokens, rows, layers or dimensions, or one of them. Python counts below zero, from the end; nothing here
/// does.
pub(crate) fn count(name: &str, number: i64) -> PyResult<usize> {
    usize::try_from(number)
        .map_err(|_| PyValueError::new_err(format!("{name}: it is {number}, and counts from 0")))
}

/// Every integer of a sequence, or of anything with `tolist` (arrays, tensors; one on a GPU is waited for).
pub(crate) fn integers(name: &str, numbers: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    let list = if numbers.hasattr("tolist")? {
        numbers.call_method0("tolist")?
    } else {
        numbers.clone()
    };
    let wrong = |_| PyTypeError::new_err(format!("{name}: it must be a flat sequence of integers"));
    let items = list.try_iter().map_err(wrong)?;
    let py = numbers.py();
    let integer = |item: PyResult<Bound<'_, PyAny>>| {
        let item = item?;
        item.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(py) {
                PyValueError::new_err(format!("{name}: {item} is out of range"))
            } else {
                wrong(error)
            }
        })
    };
    items.map(integer).collect()
}

/// The same, of a type that holds them.
pub(crate) fn integers_as<T: TryFrom<i64>>(
    name: &str,
    numbers: &Bound<'_, PyAny>,
) -> PyResult<Vec<T>> {
    let fit = |(index, number)| {
        T::try_from(number)
            .map_err(|_| PyValueError::new_err(format!("{name}: entry {index} is {number}")))
    };
    integers(name, numbers)?
        .into_iter()
        .enumerate()
        .map(fit)
        .collect()
}

/// A block table. An entry that is no block number, as in the padding of a table, becomes one that no cache has: it is
/// refused if a row needs it.
pub(crate) fn table(name: &str, numbers: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Vec<u32>>> {
    let Some(numbers) = numbers else {
        return Ok(None);
    };
    let entries = integers(name, numbers)?.into_iter();
    Ok(Some(
        entries
            .map(|entry| u32::try_from(entry).unwrap_or(u32::MAX))
            .collect(),
    ))
}
