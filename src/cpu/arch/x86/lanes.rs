//! What the two widths have in common: a step made of registers of f32 lanes.

use crate::cpu::arch::generic::Step;
use std::marker::PhantomData;

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
    /// See [`Step::GROUP`].
    const GROUP: usize;
    type F32: Copy;
    /// Evidence of NaNs.
    type Watch: Copy;

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
    unsafe fn watch() -> Self::Watch;
    /// Adds whether `x` or `y` has a NaN.
    unsafe fn see(watch: Self::Watch, x: Self::F32, y: Self::F32) -> Self::Watch;
    unsafe fn calm(watch: Self::Watch) -> bool;
    /// Makes every NaN one that is stored with a clear sign and all other bits set.
    unsafe fn one_nan(x: Self::F32) -> Self::F32;
}

/// Half-split pairs: `a` in one register, `b` in another.
pub(super) struct Apart<L>(PhantomData<L>);

/// Interleaved pairs, whole pairs in each of two registers. The product comes from the pair's
/// other element; it is subtracted in even lanes and added in odd ones.
pub(super) struct Together<L>(PhantomData<L>);

/// What [`Apart`] and [`Together`] have in common.
macro_rules! two_registers {
    () => {
        const PAIRS: usize = L::LANES;
        const SIZE: usize = L::SIZE;
        const GROUP: usize = L::GROUP;
        type Data = (L::F32, L::F32);
        type Turned = (L::F32, L::F32);
        type Watch = L::Watch;

        #[cfg_attr(not(unoptimised), inline(always))]
        unsafe fn watch() -> Self::Watch {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { L::watch() }
        }

        #[cfg_attr(not(unoptimised), inline(always))]
        unsafe fn load(a: *const u8, b: *const u8) -> Self::Data {
            // SAFETY: the caller vouches for `PAIRS` elements each, and for the instruction set.
            unsafe { (L::load(a), L::load(b)) }
        }

        #[cfg_attr(not(unoptimised), inline(always))]
        unsafe fn calm(watch: Self::Watch) -> bool {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { L::calm(watch) }
        }

        #[cfg_attr(not(unoptimised), inline(always))]
        unsafe fn mend(_: Self::Data, _: &Self::Table, (x, y): Self::Turned) -> Self::Turned {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { (L::one_nan(x), L::one_nan(y)) }
        }

        #[cfg_attr(not(unoptimised), inline(always))]
        unsafe fn store((x, y): Self::Turned, to_a: *mut u8, to_b: *mut u8) {
            // SAFETY: the caller vouches for `PAIRS` elements each, and for the instruction set.
            unsafe {
                L::store(x, to_a);
                L::store(y, to_b);
            }
        }
    };
}

impl<L: Lanes> Step for Apart<L> {
    two_registers!();
    const INTERLEAVED: bool = false;
    type Table = (L::F32, L::F32);

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table {
        // SAFETY: the caller vouches for `PAIRS` values each, and for the instruction set.
        unsafe { (L::load_f32(cos), L::load_f32(sin)) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn turn(
        (a, b): Self::Data,
        &(cos, sin): &Self::Table,
        watch: &mut L::Watch,
    ) -> Self::Turned {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let turned_a = L::mul_sub(a, cos, L::mul(b, sin));
            let turned_b = L::mul_add(b, cos, L::mul(a, sin));
            *watch = L::see(*watch, turned_a, turned_b);
            (turned_a, turned_b)
        }
    }
}

impl<L: Lanes> Step for Together<L> {
    two_registers!();
    const INTERLEAVED: bool = true;
    type Table = [(L::F32, L::F32); 2];

    #[cfg_attr(not(unoptimised), inline(always))]
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

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn turn(
        (x, y): Self::Data,
        &[(cos_x, sin_x), (cos_y, sin_y)]: &Self::Table,
        watch: &mut L::Watch,
    ) -> Self::Turned {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let turned_x = L::mul_sub_add(x, cos_x, L::mul(L::swap(x), sin_x));
            let turned_y = L::mul_sub_add(y, cos_y, L::mul(L::swap(y), sin_y));
            *watch = L::see(*watch, turned_x, turned_y);
            (turned_x, turned_y)
        }
    }
}
