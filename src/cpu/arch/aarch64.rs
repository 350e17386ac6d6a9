//! NEON, which every AArch64 CPU has: eight pairs a step, in two registers of four lanes.
//!
//! Interleaved pairs are taken apart on their way in and put together on their way out. That costs
//! two permutations a register, no more than swapping the elements of each pair and changing every
//! other sign would (there is no multiply-add that alternates), and it needs each cos and sin in
//! one lane instead of two, so that twice as many pairs find room in the registers.

use super::generic::{self, Step};
use super::portable::{self, Scalar};
use super::{Kernels, Turn, Walk};
use half::{bf16, f16};
use std::arch::aarch64::*;
use std::marker::PhantomData;

pub(super) static KERNELS: Kernels = Kernels {
    name: "neon",
    turn: [
        [turn::<f32, false>, turn::<f32, true>],
        [turn::<f16, false>, turn::<f16, true>],
        [turn::<bf16, false>, turn::<bf16, true>],
    ],
    move_rows: generic::move_rows,
};

/// # Safety
///
/// As [`super::TurnFn`].
unsafe fn turn<E: Stored, const INTERLEAVED: bool>(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    turn: &Turn<'_>,
) {
    if turn.cos.len() >= Eight::<E, INTERLEAVED>::PAIRS {
        // SAFETY: the caller's conditions; a window holds at least one step.
        unsafe { generic::turn::<Eight<E, INTERLEAVED>>(dst, src, walk, turn) }
    } else {
        // SAFETY: the caller's conditions.
        unsafe { portable::turn::<E, INTERLEAVED>(dst, src, walk, turn) }
    }
}

/// The step of eight pairs, stored as `E`.
struct Eight<E, const INTERLEAVED: bool>(PhantomData<E>);

/// Eight f32.
type Wide = [float32x4_t; 2];

/// How eight or sixteen f32 are stored.
///
/// # Safety
///
/// The functions need eight elements at each pointer. Results to store have been through
/// [`one_nan`] with [`Stored::ONE_NAN`].
trait Stored: Scalar {
    /// A NaN whose upper bits are all set, and which is stored as the one of its type.
    const ONE_NAN: u32 = 0x7fff_ffff;

    unsafe fn load(from: *const u8) -> Wide;
    unsafe fn store(x: Wide, to: *mut u8);
    /// Loads four whole pairs from each pointer: their first elements, their second elements.
    unsafe fn load_pairs(x: *const u8, y: *const u8) -> (Wide, Wide);
    unsafe fn store_pairs(pairs: (Wide, Wide), x: *mut u8, y: *mut u8);
}

impl Stored for f32 {
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> Wide {
        // SAFETY: as the trait demands.
        unsafe {
            let from = from.cast::<float32x4_t>();
            [from.read_unaligned(), from.add(1).read_unaligned()]
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: Wide, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            let to = to.cast::<float32x4_t>();
            to.write_unaligned(x[0]);
            to.add(1).write_unaligned(x[1]);
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_pairs(x: *const u8, y: *const u8) -> (Wide, Wide) {
        // SAFETY: as the trait demands.
        unsafe {
            let (x, y) = (Self::load(x), Self::load(y));
            (
                [vuzp1q_f32(x[0], x[1]), vuzp1q_f32(y[0], y[1])],
                [vuzp2q_f32(x[0], x[1]), vuzp2q_f32(y[0], y[1])],
            )
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store_pairs((a, b): (Wide, Wide), x: *mut u8, y: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            Self::store([vzip1q_f32(a[0], b[0]), vzip2q_f32(a[0], b[0])], x);
            Self::store([vzip1q_f32(a[1], b[1]), vzip2q_f32(a[1], b[1])], y);
        }
    }
}

impl Stored for f16 {
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> Wide {
        // SAFETY: as the trait demands.
        unsafe { widen_f16(from.cast::<uint16x8_t>().read_unaligned()) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: Wide, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { to.cast::<uint16x8_t>().write_unaligned(round_to_f16(x)) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_pairs(x: *const u8, y: *const u8) -> (Wide, Wide) {
        // SAFETY: as the trait demands.
        unsafe {
            let x = x.cast::<uint16x8_t>().read_unaligned();
            let y = y.cast::<uint16x8_t>().read_unaligned();
            (widen_f16(vuzp1q_u16(x, y)), widen_f16(vuzp2q_u16(x, y)))
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store_pairs((a, b): (Wide, Wide), x: *mut u8, y: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            let (a, b) = (round_to_f16(a), round_to_f16(b));
            x.cast::<uint16x8_t>().write_unaligned(vzip1q_u16(a, b));
            y.cast::<uint16x8_t>().write_unaligned(vzip2q_u16(a, b));
        }
    }
}

/// In assembly because the type that the intrinsic takes, a vector of f16, is not stable. It is
/// exact, since nobody has asked the CPU to flush subnormals or to read f16 the alternative way.
#[cfg_attr(not(unoptimised), inline(always))]
fn widen_f16(x: uint16x8_t) -> Wide {
    let (low, high);
    // SAFETY: two instructions from register to register, which every AArch64 CPU has.
    unsafe {
        std::arch::asm!(
            "fcvtl {low:v}.4s, {x:v}.4h",
            "fcvtl2 {high:v}.4s, {x:v}.8h",
            x = in(vreg) x,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack),
        );
    }
    [low, high]
}

/// Rounds to nearest even, as the CPU does unless asked otherwise. In assembly for the reason of
/// [`widen_f16`].
#[cfg_attr(not(unoptimised), inline(always))]
fn round_to_f16([low, high]: Wide) -> uint16x8_t {
    let rounded;
    // SAFETY: two instructions from register to register, which every AArch64 CPU has.
    unsafe {
        std::arch::asm!(
            "fcvtn {rounded:v}.4h, {low:v}.4s",
            "fcvtn2 {rounded:v}.8h, {high:v}.4s",
            low = in(vreg) low,
            high = in(vreg) high,
            rounded = out(vreg) rounded,
            options(pure, nomem, nostack),
        );
    }
    rounded
}

impl Stored for bf16 {
    /// Without the lower bits, so that rounding carries nothing.
    const ONE_NAN: u32 = 0x7fff_0000;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> Wide {
        // SAFETY: as the trait demands.
        unsafe {
            let x = from.cast::<uint16x8_t>().read_unaligned();
            let zero = vdupq_n_u16(0);
            [
                vreinterpretq_f32_u16(vzip1q_u16(zero, x)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, x)),
            ]
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: Wide, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            let (low, high) = (vreinterpretq_u16_f32(x[0]), vreinterpretq_u16_f32(x[1]));
            let kept = vuzp2q_u16(low, high);
            let dropped = vuzp1q_u16(low, high);
            to.cast::<uint16x8_t>()
                .write_unaligned(round_to_bf16(kept, dropped));
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_pairs(x: *const u8, y: *const u8) -> (Wide, Wide) {
        // SAFETY: as the trait demands.
        unsafe {
            // The first of a pair is the lower half of its 32 bits.
            let x = x.cast::<uint32x4_t>().read_unaligned();
            let y = y.cast::<uint32x4_t>().read_unaligned();
            let first = |pairs| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
            let upper = vdupq_n_u32(0xffff_0000);
            let second = |pairs| vreinterpretq_f32_u32(vandq_u32(pairs, upper));
            ([first(x), first(y)], [second(x), second(y)])
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store_pairs((a, b): (Wide, Wide), x: *mut u8, y: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            let rounded = |a, b| {
                let (a, b) = (vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b));
                round_to_bf16(vtrn2q_u16(a, b), vtrn1q_u16(a, b))
            };
            x.cast::<uint16x8_t>().write_unaligned(rounded(a[0], b[0]));
            y.cast::<uint16x8_t>().write_unaligned(rounded(a[1], b[1]));
        }
    }
}

/// Rounds f32s to nearest even, given as their upper and their lower halves: adds one where the
/// lower half is more than half of its range, or just half and the upper one is odd. The carry runs
/// into the exponent, and from the largest finite number to infinity, as it should.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn round_to_bf16(kept: uint16x8_t, dropped: uint16x8_t) -> uint16x8_t {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe {
        let even = vbicq_u16(vdupq_n_u16(1), kept);
        // Without the one, a tie falls below the top bit; saturating, for zero stays zero.
        vsraq_n_u16::<15>(kept, vqsubq_u16(dropped, even))
    }
}

/// Puts `nan` in the place of every NaN.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn one_nan(x: Wide, nan: u32) -> Wide {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe {
        let nan = vreinterpretq_f32_u32(vdupq_n_u32(nan));
        [
            vbslq_f32(vceqq_f32(x[0], x[0]), x[0], nan),
            vbslq_f32(vceqq_f32(x[1], x[1]), x[1], nan),
        ]
    }
}

/// `x · y`
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn mul(x: Wide, y: Wide) -> Wide {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe { [vmulq_f32(x[0], y[0]), vmulq_f32(x[1], y[1])] }
}

/// `x · y + z`
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn mul_add(x: Wide, y: Wide, z: Wide) -> Wide {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe { [vfmaq_f32(z[0], x[0], y[0]), vfmaq_f32(z[1], x[1], y[1])] }
}

/// `−x`
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn neg(x: Wide) -> Wide {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe { [vnegq_f32(x[0]), vnegq_f32(x[1])] }
}

impl<E: Stored, const INTERLEAVED: bool> Step for Eight<E, INTERLEAVED> {
    const PAIRS: usize = 8;
    const SIZE: usize = size_of::<E>();
    const INTERLEAVED: bool = INTERLEAVED;
    /// Four would take twice the registers for results on their way out, and tables would have to be
    /// fetched again for every vector.
    const GROUP: usize = 2;
    type Table = (Wide, Wide);
    type Data = (Wide, Wide);
    type Turned = (Wide, Wide);
    /// A NaN in some lane if there was one anywhere.
    type Watch = float32x4_t;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table {
        // SAFETY: the caller vouches for eight values each.
        unsafe { (f32::load(cos.cast()), f32::load(sin.cast())) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() -> float32x4_t {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data {
        // SAFETY: the caller vouches for eight elements each.
        unsafe {
            if INTERLEAVED {
                E::load_pairs(a, b)
            } else {
                (E::load(a), E::load(b))
            }
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn turn(
        (a, b): Self::Data,
        &(cos, sin): &Self::Table,
        watch: &mut float32x4_t,
    ) -> Self::Turned {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe {
            // A subtracting multiply-add would do without the change of sign, but it negates its
            // product, or its result: where all cancels, that is the other zero.
            let x = mul_add(a, cos, neg(mul(b, sin)));
            let y = mul_add(b, cos, mul(a, sin));
            // This maximum is NaN where either operand is.
            let seen = vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(y[0], y[1]));
            *watch = vmaxq_f32(*watch, seen);
            (x, y)
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm(watch: float32x4_t) -> bool {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { !vmaxvq_f32(watch).is_nan() }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mend(_: Self::Data, _: &Self::Table, (x, y): Self::Turned) -> Self::Turned {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { (one_nan(x, E::ONE_NAN), one_nan(y, E::ONE_NAN)) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store((x, y): Self::Turned, to_a: *mut u8, to_b: *mut u8) {
        // SAFETY: the caller vouches for eight elements each.
        unsafe {
            if INTERLEAVED {
                E::store_pairs((x, y), to_a, to_b);
            } else {
                E::store(x, to_a);
                E::store(y, to_b);
            }
        }
    }
}
