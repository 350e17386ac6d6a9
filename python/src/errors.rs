//! Rust's errors as Python's, with the same text.

use pie_rope::Error;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// What an argument or a configuration says wrong is a `ValueError`, what the device says is a `RuntimeError`, and a
/// device that is full is a `MemoryError`.
pub(crate) fn raise(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::OutOfMemory(_) => PyMemoryError::new_err(text),
        Error::NoAdapter(_) | Error::Limit(_) | Error::DeviceLost(_) | Error::Device(_) => {
            PyRuntimeError::new_err(text)
        }
        _ => PyValueError::new_err(text),
    }
}
