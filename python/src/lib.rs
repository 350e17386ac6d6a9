//! The native part of the Python package: plans, ropes, and the verbs over tensors. See `pie_rope/__init__.py`.

mod cache;
mod call;
mod dlpack;
mod errors;
mod numbers;
mod plan;
mod rope;
mod run;
mod verbs;

use pyo3::prelude::*;

/// The native part of :mod:`pie_rope`.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::plan::{Edit, NewSpan, Plan, Span};
    #[pymodule_export]
    use super::rope::{ModelRope, Rope, Rotations};
    #[pymodule_export]
    use super::verbs::{check, copy, rotate, splice};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
