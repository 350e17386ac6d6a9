//! What the targets share: a reader of the fuzzer's bytes, and a watch over the memory and time of a call.

pub mod header;
mod source;
mod watch;

pub use source::{Noise, Source};
pub use watch::{Limits, live, starve, watch};
