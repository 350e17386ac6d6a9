//! Positional Integrity Encoding: turn cached rotary keys to new positions, in place.

pub mod error;
mod plan;

pub use error::{Error, Result};
pub use plan::{Edit, NewSpan, Plan, Span};
