//! The one algorithm that every instruction set instantiates.
//!
//! # Mapping
//!
//! A [`Step`] is a handful of registers: it takes `PAIRS` pairs of one vector, turns and rounds
//! them, and puts them back. A vector of `p` pairs takes `⌈p / PAIRS⌉` steps. Where `PAIRS` does
//! not divide `p` the last step is moved back to end with the window, so it repeats some pairs of
//! the step before it. That needs no masks and no scalar tail, and it is exact, in place too,
//! because the last step is *loaded before the first one is stored*: both steps compute the same
//! bits for the pairs they share. Only a window of fewer than `PAIRS` pairs goes to a narrower
//! step.
//!
//! ```text
//! p = 40, PAIRS = 16      |  step 0  |  step 1  |
//!                                   |  step 2  |       loaded first, stored last
//! ```
//!
//! # Why
//!
//! - The number of steps is a constant of each instantiation, so a table row is loaded once, into
//!   registers as far as they reach, and stays there while thousands of vectors pass by.
//! - What a vector costs is memory. Hardware prefetchers give up at page boundaries and do not see
//!   through strides, so each vector asks for the lines of the one [`AHEAD`] bytes further on,
//!   following the walk rather than the addresses.

use super::{Turn, Walk};
use std::marker::PhantomData;

/// How far ahead of the reads memory is asked for, in bytes. Chosen by `benches/cpu_ceiling.rs`.
const AHEAD: usize = 2048;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Turns `PAIRS` pairs at once.
///
/// A step sees two places, `a` and `b`: for half-split pairs they are the same stretch of either
/// half; for interleaved pairs they are two successive stretches, each with whole pairs. Either
/// way each holds `PAIRS` elements.
///
/// # Safety
///
/// All functions need the instruction set that the implementation is written for; the pointers
/// must be valid for `PAIRS` elements.
pub(super) trait Step {
    /// Pairs per step.
    const PAIRS: usize;
    /// Bytes of an element.
    const SIZE: usize;
    /// Whether pairs are interleaved.
    const INTERLEAVED: bool;
    /// Cos and sin of one step's pairs, in the order that [`Step::turn`] wants.
    type Table: Copy;
    /// One step's elements.
    type Data: Copy;

    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table;
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data;
    unsafe fn turn(data: Self::Data, table: &Self::Table) -> Self::Data;
    unsafe fn store(data: Self::Data, a: *mut u8, b: *mut u8);
}

/// A register of f32 lanes, and how one stored type gets into it and out of it.
///
/// # Safety
///
/// All functions need the instruction set that the implementation is written for; the pointers
/// must be valid for `LANES` elements, and need no alignment.
pub(super) trait Lanes {
    const LANES: usize;
    /// Bytes of a stored element.
    const SIZE: usize;
    type F32: Copy;

    /// Widens `LANES` stored elements, exactly.
    unsafe fn load(from: *const u8) -> Self::F32;
    /// Rounds to nearest even. NaNs have been through [`Lanes::one_nan`].
    unsafe fn store(x: Self::F32, to: *mut u8);
    unsafe fn load_f32(from: *const f32) -> Self::F32;
    /// `LANES / 2` values, each twice.
    unsafe fn load_f32_twice(from: *const f32) -> Self::F32;
    unsafe fn mul(x: Self::F32, y: Self::F32) -> Self::F32;
    /// `x · y + z`
    unsafe fn mul_add(x: Self::F32, y: Self::F32, z: Self::F32) -> Self::F32;
    /// `x · y − z`
    unsafe fn mul_sub(x: Self::F32, y: Self::F32, z: Self::F32) -> Self::F32;
    /// `x · y − z` in even lanes, `x · y + z` in odd ones.
    unsafe fn mul_sub_add(x: Self::F32, y: Self::F32, z: Self::F32) -> Self::F32;
    /// Swaps each even lane with the odd one after it.
    unsafe fn swap(x: Self::F32) -> Self::F32;
    /// Makes every NaN one that is stored with a clear sign and all other bits set.
    unsafe fn one_nan(x: Self::F32, y: Self::F32) -> (Self::F32, Self::F32);
}

/// Half-split pairs: `a` in one register, `b` in another.
pub(super) struct Apart<L>(PhantomData<L>);

impl<L: Lanes> Step for Apart<L> {
    const PAIRS: usize = L::LANES;
    const SIZE: usize = L::SIZE;
    const INTERLEAVED: bool = false;
    type Table = (L::F32, L::F32);
    type Data = (L::F32, L::F32);

    #[inline(always)]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table {
        // SAFETY: the caller vouches for `PAIRS` values each, and for the instruction set.
        unsafe { (L::load_f32(cos), L::load_f32(sin)) }
    }

    #[inline(always)]
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data {
        // SAFETY: the caller vouches for `PAIRS` elements each, and for the instruction set.
        unsafe { (L::load(a), L::load(b)) }
    }

    #[inline(always)]
    unsafe fn turn((a, b): Self::Data, &(cos, sin): &Self::Table) -> Self::Data {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let turned_a = L::mul_sub(a, cos, L::mul(b, sin));
            let turned_b = L::mul_add(b, cos, L::mul(a, sin));
            L::one_nan(turned_a, turned_b)
        }
    }

    #[inline(always)]
    unsafe fn store((a, b): Self::Data, to_a: *mut u8, to_b: *mut u8) {
        // SAFETY: the caller vouches for `PAIRS` elements each, and for the instruction set.
        unsafe {
            L::store(a, to_a);
            L::store(b, to_b);
        }
    }
}

/// Interleaved pairs, whole pairs in each of two registers. The product comes from the pair's
/// other element; it is subtracted in even lanes and added in odd ones.
pub(super) struct Together<L>(PhantomData<L>);

impl<L: Lanes> Step for Together<L> {
    const PAIRS: usize = L::LANES;
    const SIZE: usize = L::SIZE;
    const INTERLEAVED: bool = true;
    type Table = [(L::F32, L::F32); 2];
    type Data = (L::F32, L::F32);

    #[inline(always)]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table {
        // SAFETY: the caller vouches for `PAIRS` values each, and for the instruction set.
        unsafe {
            let half = L::LANES / 2;
            [
                (L::load_f32_twice(cos), L::load_f32_twice(sin)),
                (
                    L::load_f32_twice(cos.add(half)),
                    L::load_f32_twice(sin.add(half)),
                ),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data {
        // SAFETY: the caller vouches for `PAIRS` elements each, and for the instruction set.
        unsafe { (L::load(a), L::load(b)) }
    }

    #[inline(always)]
    unsafe fn turn(
        (x, y): Self::Data,
        &[(cos_x, sin_x), (cos_y, sin_y)]: &Self::Table,
    ) -> Self::Data {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let turned_x = L::mul_sub_add(x, cos_x, L::mul(L::swap(x), sin_x));
            let turned_y = L::mul_sub_add(y, cos_y, L::mul(L::swap(y), sin_y));
            L::one_nan(turned_x, turned_y)
        }
    }

    #[inline(always)]
    unsafe fn store((x, y): Self::Data, to_x: *mut u8, to_y: *mut u8) {
        // SAFETY: the caller vouches for `PAIRS` elements each, and for the instruction set.
        unsafe {
            L::store(x, to_x);
            L::store(y, to_y);
        }
    }
}

/// Marks the branch it is called on as the unlikely one.
#[cold]
#[inline]
pub(super) fn cold() {}

/// Turns a walk whose windows have at least `S::PAIRS` pairs.
///
/// # Safety
///
/// As [`super::TurnFn`]; the instruction set is that of `S`; `turn.cos.len() >= S::PAIRS`.
#[inline(always)]
pub(super) unsafe fn turn<S: Step>(dst: *mut u8, src: *const u8, walk: &Walk, turn: &Turn<'_>) {
    // SAFETY: all conditions are passed on; each arm is taken for the number of steps it is for.
    unsafe {
        match turn.cos.len().div_ceil(S::PAIRS) {
            1 => turn_steps::<S, 1>(dst, src, walk, turn),
            2 => turn_steps::<S, 2>(dst, src, walk, turn),
            3 => turn_steps::<S, 3>(dst, src, walk, turn),
            4 => turn_steps::<S, 4>(dst, src, walk, turn),
            5 => turn_steps::<S, 5>(dst, src, walk, turn),
            6 => turn_steps::<S, 6>(dst, src, walk, turn),
            8 => turn_steps::<S, 8>(dst, src, walk, turn),
            _ => turn_long::<S>(dst, src, walk, turn),
        }
    }
}

/// Byte distances inside a window.
struct Window {
    /// From one step to the next.
    step: usize,
    /// From the first step to the last.
    last: usize,
    /// From a step's `a` to its `b`.
    half: isize,
}

impl Window {
    #[inline(always)]
    fn new<S: Step>(turn: &Turn<'_>) -> Window {
        let spread = if S::INTERLEAVED { 2 } else { 1 };
        Window {
            step: S::PAIRS * S::SIZE * spread,
            last: (turn.cos.len() - S::PAIRS) * S::SIZE * spread,
            half: if S::INTERLEAVED {
                S::PAIRS as isize
            } else {
                turn.half_stride
            } * S::SIZE as isize,
        }
    }
}

/// Turns a walk whose windows take `N` steps.
///
/// # Safety
///
/// As [`super::TurnFn`]; the instruction set is that of `S`; `N` is the number of pairs over
/// `S::PAIRS`, rounded up, and not zero.
#[inline(always)]
unsafe fn turn_steps<S: Step, const N: usize>(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    turn: &Turn<'_>,
) {
    let window = Window::new::<S>(turn);
    let last = turn.cos.len() - S::PAIRS;
    // SAFETY: step i < N - 1 covers the pairs from i · PAIRS to (i + 1) · PAIRS, all below the
    // number of pairs; the last covers the PAIRS that end with it. The caller vouches for the
    // windows that `visit` yields.
    unsafe {
        let tables: [S::Table; N] = std::array::from_fn(|i| {
            let first = if i + 1 < N { i * S::PAIRS } else { last };
            S::table(turn.cos.as_ptr().add(first), turn.sin.as_ptr().add(first))
        });
        visit(dst, src, walk, S::SIZE, |dst, src, ahead| {
            let end = src.add(window.last);
            let end = S::load(end, end.offset(window.half));
            for (i, table) in tables.iter().enumerate().take(N - 1) {
                let at = i * window.step;
                if at.is_multiple_of(LINE) {
                    prefetch(ahead.wrapping_add(at));
                    prefetch(ahead.wrapping_add(at).wrapping_offset(window.half));
                }
                let a = src.add(at);
                let turned = S::turn(S::load(a, a.offset(window.half)), table);
                let a = dst.add(at);
                S::store(turned, a, a.offset(window.half));
            }
            prefetch(ahead.wrapping_add(window.last));
            prefetch(ahead.wrapping_add(window.last).wrapping_offset(window.half));
            let a = dst.add(window.last);
            S::store(S::turn(end, &tables[N - 1]), a, a.offset(window.half));
        });
    }
}

/// Turns a walk whose windows take any number of steps, fetching the table for each.
///
/// # Safety
///
/// As [`super::TurnFn`]; the instruction set is that of `S`; `turn.cos.len() >= S::PAIRS`.
#[inline(always)]
pub(super) unsafe fn turn_long<S: Step>(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    turn: &Turn<'_>,
) {
    let window = Window::new::<S>(turn);
    let last = turn.cos.len() - S::PAIRS;
    let steps = turn.cos.len().div_ceil(S::PAIRS);
    // SAFETY: as in `turn_steps`.
    unsafe {
        let table =
            |first: usize| S::table(turn.cos.as_ptr().add(first), turn.sin.as_ptr().add(first));
        visit(dst, src, walk, S::SIZE, |dst, src, _| {
            let end = src.add(window.last);
            let end = S::load(end, end.offset(window.half));
            for i in 0..steps - 1 {
                let a = src.add(i * window.step);
                let turned = S::turn(S::load(a, a.offset(window.half)), &table(i * S::PAIRS));
                let a = dst.add(i * window.step);
                S::store(turned, a, a.offset(window.half));
            }
            let a = dst.add(window.last);
            S::store(S::turn(end, &table(last)), a, a.offset(window.half));
        });
    }
}

/// Calls `each(dst, src, ahead)` for every vector of a walk, where `ahead` is a later vector's
/// source, to be prefetched and not to be read.
///
/// # Safety
///
/// Every vector's first element lies in the allocation of `dst` or `src` respectively.
#[inline(always)]
unsafe fn visit(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    size: usize,
    mut each: impl FnMut(*mut u8, *const u8, *const u8),
) {
    let walk = walk.joined();
    let bytes = |elements: isize| elements * size as isize;
    let ahead = AHEAD.div_ceil(bytes(walk.src_inner).unsigned_abs().max(1)) as isize;
    let ahead = bytes(walk.src_inner) * ahead;
    for outer in 0..walk.outer as isize {
        // Wrapping, for the step past the last vector may leave the allocation; each vector that
        // is visited lies inside.
        let mut src = src.wrapping_offset(outer * bytes(walk.src_outer));
        let mut dst = dst.wrapping_offset(outer * bytes(walk.dst_outer));
        for _ in 0..walk.inner {
            each(dst, src, src.wrapping_offset(ahead));
            src = src.wrapping_offset(bytes(walk.src_inner));
            dst = dst.wrapping_offset(bytes(walk.dst_inner));
        }
    }
}

/// Asks for the cache line at `at`, which may be any address.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes no memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Moves the rows of a walk whose strides are in bytes.
///
/// # Safety
///
/// As [`super::MoveFn`].
pub(super) unsafe fn move_rows(dst: *mut u8, src: *const u8, walk: &Walk, bytes: usize) {
    // SAFETY: the caller vouches for each row.
    unsafe {
        visit(dst, src, walk, 1, |dst, src, _| {
            std::ptr::copy(src, dst, bytes)
        });
    }
}
