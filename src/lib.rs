//! Positional Integrity Encoding: turn cached rotary keys to new positions, in place.

pub mod error;
mod rope;

pub use error::{Error, Result};
pub use rope::{ModelRope, Pairing, Rope, Scaling};
