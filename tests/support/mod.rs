//! Comparisons that nothing passes by accident: no NaN, no sequence that is too short, none that is empty. What fails
//! is named: the first element that differs, where it is, and both values. `tests/comparisons.rs` holds them to that.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::fmt::Debug;

use bytemuck::NoUninit;
use pie_rope::{ElementType, oracle};

/// Each element with the other's at the same place.
///
/// # Panics
/// If one of the sequences is shorter than the other, or both are empty.
#[track_caller]
pub fn each<'a, A, B>(
    one: &'a [A],
    other: &'a [B],
) -> impl ExactSizeIterator<Item = (&'a A, &'a B)> {
    if let Err(problem) = as_many(one.len(), other.len()) {
        panic!("{problem}");
    }
    one.iter().zip(other)
}

/// Whether there is as much as expected, and anything at all.
fn as_many(got: usize, expected: usize) -> Result<(), String> {
    if got != expected {
        return Err(format!("got {got} of {expected} elements"));
    }
    if expected == 0 {
        return Err("there is nothing to compare".into());
    }
    Ok(())
}

/// Holds elements to what is expected, bit for bit. `place` says where the element of an index is.
///
/// # Errors
/// What differs first, and where; also if there are not as many as expected, or none.
pub fn same_bits<T: NoUninit + Debug>(
    got: &[T],
    expected: &[T],
    place: impl FnOnce(usize) -> String,
) -> Result<(), String> {
    as_many(got.len(), expected.len())?;
    let bytes = bytemuck::bytes_of::<T>;
    let mut pairs = got.iter().zip(expected);
    match pairs.position(|(got, expected)| bytes(got) != bytes(expected)) {
        None => Ok(()),
        Some(index) => {
            let (got, expected) = (&got[index], &expected[index]);
            Err(format!(
                "{}: got {got:?} ({}), expected {expected:?} ({})",
                place(index),
                hexadecimal(bytes(got)),
                hexadecimal(bytes(expected)),
            ))
        }
    }
}

/// Likewise, for tests.
///
/// # Panics
/// Where [`same_bits`] has an error.
#[track_caller]
pub fn assert_same_bits<T: NoUninit + Debug>(
    got: &[T],
    expected: &[T],
    place: impl FnOnce(usize) -> String,
) {
    if let Err(problem) = same_bits(got, expected, place) {
        panic!("{problem}");
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    // Little-endian.
    let digits = bytes.iter().rev().map(|byte| format!("{byte:02x}"));
    format!("0x{}", digits.collect::<String>())
}

/// Holds pairs to what is expected, within so many units in the last place at the magnitude of the pair
/// ([`oracle::error_in_ulps`]). Returns the largest error.
///
/// # Errors
/// Which pair is off first, and where; also if there are not as many as expected, or none.
pub fn within_ulps(
    element: ElementType,
    allowed: f64,
    got: &[(f64, f64)],
    expected: &[(f64, f64)],
    place: impl Fn(usize) -> String,
) -> Result<f64, String> {
    as_many(got.len(), expected.len())?;
    let mut worst = 0.0;
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = oracle::error_in_ulps(element, got, expected);
        // Not `error > allowed`, which a bound that is NaN passes.
        if error <= allowed {
            worst = worse(worst, error);
        } else {
            return Err(format!(
                "{}: got {got:?}, expected {expected:?}, off by {error} units in the last place of {element} \
                 of at most {allowed}",
                place(index)
            ));
        }
    }
    Ok(worst)
}

/// Likewise, for tests.
///
/// # Panics
/// Where [`within_ulps`] has an error.
#[track_caller]
pub fn assert_within_ulps(
    element: ElementType,
    allowed: f64,
    got: &[(f64, f64)],
    expected: &[(f64, f64)],
    place: impl Fn(usize) -> String,
) -> f64 {
    match within_ulps(element, allowed, got, expected, place) {
        Ok(worst) => worst,
        Err(problem) => panic!("{problem}"),
    }
}

/// The larger of two errors. A NaN is larger than any number: infinite.
pub fn worse(one: f64, other: f64) -> f64 {
    if one.is_nan() || other.is_nan() {
        return f64::INFINITY;
    }
    one.max(other)
}

/// Where an element of `[batch, heads, rows, dims]` is.
pub fn bhsd([_, heads, rows, dims]: [usize; 4]) -> impl Fn(usize) -> String {
    move |index| {
        let (vector, dim) = (index / dims, index % dims);
        let (row, lane) = (vector % rows, vector / rows);
        let (batch, head) = (lane / heads, lane % heads);
        format!("batch {batch}, head {head}, row {row}, dimension {dim}")
    }
}
