//! The definition, one pair at a time, in plain Rust.
//!
//! `f32::mul_add` is exact everywhere: an instruction where the target has one, a library call
//! where it does not. The conversions are those of the `half` crate.

use super::generic::{self, Step};
use super::{Kernels, Turn, Walk};
use half::{bf16, f16};
use std::marker::PhantomData;

pub(super) static KERNELS: Kernels = Kernels {
    name: "portable",
    turn: [
        [turn::<f32, false>, turn::<f32, true>],
        [turn::<f16, false>, turn::<f16, true>],
        [turn::<bf16, false>, turn::<bf16, true>],
    ],
    move_rows: generic::move_rows,
};

/// Turns pair after pair.
///
/// # Safety
///
/// As [`super::TurnFn`].
pub(super) unsafe fn turn<E: Scalar, const INTERLEAVED: bool>(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    turn: &Turn<'_>,
) {
    if !turn.cos.is_empty() {
        // SAFETY: the caller's conditions; a step of one pair always fits.
        unsafe { generic::turn_long::<Pair<E, INTERLEAVED>>(dst, src, walk, turn) }
    }
}

/// A stored type, one element at a time.
pub(super) trait Scalar: Copy {
    /// The NaN every result that is not a number is written as.
    const NAN: Self;
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;
}

impl Scalar for f32 {
    const NAN: f32 = f32::from_bits(0x7fff_ffff);
    #[cfg_attr(not(unoptimised), inline(always))]
    fn to_f32(self) -> f32 {
        self
    }
    #[cfg_attr(not(unoptimised), inline(always))]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Scalar for f16 {
    const NAN: f16 = f16::from_bits(0x7fff);
    #[cfg_attr(not(unoptimised), inline(always))]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[cfg_attr(not(unoptimised), inline(always))]
    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }
}

impl Scalar for bf16 {
    const NAN: bf16 = bf16::from_bits(0x7fff);
    #[cfg_attr(not(unoptimised), inline(always))]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[cfg_attr(not(unoptimised), inline(always))]
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
}

/// The step of one pair.
pub(super) struct Pair<E, const INTERLEAVED: bool>(PhantomData<E>);

impl<E: Scalar, const INTERLEAVED: bool> Step for Pair<E, INTERLEAVED> {
    const PAIRS: usize = 1;
    const SIZE: usize = size_of::<E>();
    const INTERLEAVED: bool = INTERLEAVED;
    type Table = (f32, f32);
    const GROUP: usize = 4;
    type Data = (E, E);
    type Turned = (E, E);
    type Watch = ();

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() {}

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm((): ()) -> bool {
        true
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mend(_: (E, E), _: &(f32, f32), turned: (E, E)) -> (E, E) {
        turned
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn table(cos: *const f32, sin: *const f32) -> (f32, f32) {
        // SAFETY: the caller vouches for one element each.
        unsafe { (*cos, *sin) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(a: *const u8, b: *const u8) -> (E, E) {
        // SAFETY: the caller vouches for one element each; they need not be aligned.
        unsafe {
            (
                a.cast::<E>().read_unaligned(),
                b.cast::<E>().read_unaligned(),
            )
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn turn((a, b): (E, E), &(cos, sin): &(f32, f32), (): &mut ()) -> (E, E) {
        let (a, b) = (a.to_f32(), b.to_f32());
        let round = |value: f32| {
            if value.is_nan() {
                E::NAN
            } else {
                E::from_f32(value)
            }
        };
        (
            round(a.mul_add(cos, -(b * sin))),
            round(b.mul_add(cos, a * sin)),
        )
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store((a, b): (E, E), to_a: *mut u8, to_b: *mut u8) {
        // SAFETY: the caller vouches for one element each; they need not be aligned.
        unsafe {
            to_a.cast::<E>().write_unaligned(a);
            to_b.cast::<E>().write_unaligned(b);
        }
    }
}
