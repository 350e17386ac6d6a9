//! Positional Integrity Encoding: turn cached rotary keys to new positions, in place.

pub mod error;
pub use error::{Error, Result};

mod cpu;
mod element;

pub use element::{Element, ElementType};

#[doc(hidden)]
pub use cpu::arch as __arch;
