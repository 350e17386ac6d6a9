//! Positional Integrity Encoding: turn cached rotary keys to new positions, in place.

pub mod error;
pub use error::{Error, Result};
