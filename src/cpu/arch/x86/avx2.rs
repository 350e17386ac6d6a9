//! AVX2 with FMA and F16C: eight lanes.

use super::lanes::{Apart, Lanes, Together};
use super::turns;
use crate::cpu::arch::Kernels;
use crate::cpu::arch::generic;
use crate::cpu::arch::portable::Pair;
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// The kernels, if this CPU can run them.
pub(super) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        name: "avx2",
        turn: [
            [f32_apart, f32_together],
            [f16_apart, f16_together],
            [bf16_apart, bf16_together],
        ],
        move_rows: generic::move_rows,
    };
    let runs = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    runs.then_some(&KERNELS)
}

turns! { "avx2,fma,f16c":
    f32_apart = Apart<Eight<f32>>, Pair<f32, false>;
    f32_together = Together<Eight<f32>>, Pair<f32, true>;
    f16_apart = Apart<Eight<f16>>, Pair<f16, false>;
    f16_together = Together<Eight<f16>>, Pair<f16, true>;
    bf16_apart = Apart<Eight<bf16>>, Pair<bf16, false>;
    bf16_together = Together<Eight<bf16>>, Pair<bf16, true>;
}

/// Eight f32 lanes, stored as `E`.
pub(super) struct Eight<E>(PhantomData<E>);

/// How eight f32 are stored.
///
/// # Safety
///
/// The functions need AVX2 and F16C, and eight elements at the pointer.
trait Stored {
    /// A NaN that [`Stored::store`] turns into the one with all value bits set.
    const NAN: i32 = 0x7fff_ffff;
    unsafe fn load(from: *const u8) -> __m256;
    unsafe fn store(x: __m256, to: *mut u8);
}

impl Stored for f32 {
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: __m256, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { _mm256_storeu_ps(to.cast(), x) }
    }
}

impl Stored for f16 {
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: __m256, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            _mm_storeu_si128(to.cast(), round_to_f16(x));
        }
    }
}

/// `vcvtps2ph`, rounding to nearest even, into a register.
///
/// In assembly because a compiler merges the intrinsic with the store that follows it, and the
/// merged form has less than half the throughput on Zen 4: 2.0 cycles against 0.75.
#[inline]
#[target_feature(enable = "avx,f16c")]
fn round_to_f16(x: __m256) -> __m128i {
    let rounded;
    // SAFETY: one instruction from register to register; F16C is enabled.
    unsafe {
        std::arch::asm!(
            "vcvtps2ph {}, {}, 0",
            out(xmm_reg) rounded,
            in(ymm_reg) x,
            options(pure, nomem, nostack),
        );
    }
    rounded
}

impl Stored for bf16 {
    /// Without the lower bits, so that rounding carries nothing.
    const NAN: i32 = 0x7fff_0000;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    /// Adds half of the dropped range, less one where the kept part is even, and drops. The carry
    /// runs into the exponent, and from the largest finite number to infinity, as it should.
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: __m256, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            let x = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
            let sum = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
            let kept = _mm256_srli_epi32::<16>(sum);
            let packed = _mm_packus_epi32(
                _mm256_castsi256_si128(kept),
                _mm256_extracti128_si256::<1>(kept),
            );
            _mm_storeu_si128(to.cast(), packed);
        }
    }
}

impl<E: Stored> Lanes for Eight<E> {
    const LANES: usize = 8;
    const SIZE: usize = size_of::<E>();
    const GROUP: usize = 4;
    type F32 = __m256;
    type Watch = __m256;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { E::load(from) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: __m256, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { E::store(x, to) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_f32(from: *const f32) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_f32_twice(from: *const f32) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe {
            let four = _mm_loadu_ps(from);
            _mm256_set_m128(_mm_unpackhi_ps(four, four), _mm_unpacklo_ps(four, four))
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul(x: __m256, y: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_mul_ps(x, y) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul_add(x: __m256, y: __m256, z: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_fmadd_ps(x, y, z) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul_sub(x: __m256, y: __m256, z: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_fmsub_ps(x, y, z) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul_sub_add(x: __m256, y: __m256, z: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_fmaddsub_ps(x, y, z) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn swap(x: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_permute_ps::<0b10_11_00_01>(x) }
    }

    /// All bits set where there was a NaN.
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_setzero_ps() }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn see(watch: __m256, x: __m256, y: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_or_ps(watch, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, y)) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm(watch: __m256) -> bool {
        // SAFETY: as the trait demands.
        unsafe { _mm256_movemask_ps(watch) == 0 }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn one_nan(x: __m256) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe {
            let nan = _mm256_castsi256_ps(_mm256_set1_epi32(E::NAN));
            _mm256_blendv_ps(x, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x))
        }
    }
}
