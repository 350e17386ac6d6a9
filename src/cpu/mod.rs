//! The CPU backend.

#[doc(hidden)]
pub mod arch;
