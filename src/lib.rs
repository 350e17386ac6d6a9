//! Positional Integrity Encoding: turn cached rotary keys to new positions, in place.

mod check;
pub mod cpu;
mod element;
mod error;
mod layout;
pub mod oracle;
mod plan;
mod rope;
mod rotations;

pub use cpu::{Cpu, Layer, LayerRef, RawLayer};
pub use element::{Element, ElementType};
pub use error::{Error, Result};
pub use layout::{Axis, CacheLayout, KeyLayout, Strides};
pub use plan::{Edit, NewSpan, Plan, Span};
pub use rope::{ModelRope, Pairing, Rope};
pub use rotations::{Rotations, Table, Turn, TurnedSpan};
