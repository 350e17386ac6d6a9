//! `include/pie_rope.h`, declared in Rust by `build.rs`.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};

// The functions that are declared are this library's, by their symbols.
use pie_rope as _;

include!(concat!(env!("OUT_DIR"), "/header.rs"));
