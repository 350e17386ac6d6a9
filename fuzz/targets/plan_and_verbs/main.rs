//! Any edits, positions and cells, as plans, and what the verbs make of them on the CPU, on any layout and with wrong
//! arguments among the right ones. Everything is held to a model of this target's own: a plan to what becomes of each
//! row (`rows`), a cache to the definition in f64, pair by pair (`verbs`).

#![no_main]

mod rows;
mod verbs;

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pie_rope_fuzz::{Limits, Source};

/// All of it is small: the largest are tables of 40 rows, and two thousand tokens to compare.
const LIMITS: Limits = Limits {
    memory: 16 << 20,
    time: Duration::from_secs(2),
};

fuzz_target!(|data: &[u8]| {
    let mut source = Source::new(data);
    match source.byte() {
        ..24 => rows::tokens(&mut source),
        24..40 => rows::large(&mut source),
        40..80 => drop(rows::any(&mut source)),
        _ => verbs::any(&mut source),
    }
});
