//! AVX-512: sixteen lanes; with AVX512_BF16, thirty-two bf16 pairs a step.

use super::avx2::Eight;
use super::turns;
use crate::cpu::arch::Kernels;
use crate::cpu::arch::generic::{self, Apart, Lanes, Step, Together, cold};
use crate::cpu::arch::portable::Pair;
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::marker::PhantomData;

fn runs() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// The kernels, if this CPU can run them.
pub(super) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        name: "avx512",
        turn: [
            [f32_apart, f32_together],
            [f16_apart, f16_together],
            [bf16_apart, bf16_together],
        ],
        move_rows: generic::move_rows,
    };
    runs().then_some(&KERNELS)
}

/// The kernels that round to bf16 by instruction, if this CPU can run them.
pub(super) fn bf16_kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        name: "avx512bf16",
        turn: [
            [f32_apart, f32_together],
            [f16_apart, f16_together],
            [bf16_apart_ne, bf16_together_ne],
        ],
        move_rows: generic::move_rows,
    };
    (runs() && is_x86_feature_detected!("avx512bf16")).then_some(&KERNELS)
}

turns! { "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c":
    f32_apart = Apart<Sixteen<f32>>, Apart<Eight<f32>>, Pair<f32, false>;
    f32_together = Together<Sixteen<f32>>, Together<Eight<f32>>, Pair<f32, true>;
    f16_apart = Apart<Sixteen<f16>>, Apart<Eight<f16>>, Pair<f16, false>;
    f16_together = Together<Sixteen<f16>>, Together<Eight<f16>>, Pair<f16, true>;
    bf16_apart = Apart<Sixteen<bf16>>, Apart<Eight<bf16>>, Pair<bf16, false>;
    bf16_together = Together<Sixteen<bf16>>, Together<Eight<bf16>>, Pair<bf16, true>;
}

turns! { "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c":
    bf16_apart_ne = Bf16Apart, Apart<Sixteen<bf16>>, Apart<Eight<bf16>>, Pair<bf16, false>;
    bf16_together_ne = Bf16Together, Together<Eight<bf16>>, Pair<bf16, true>;
}

/// Sixteen f32 lanes, stored as `E`.
pub(super) struct Sixteen<E>(PhantomData<E>);

/// How sixteen f32 are stored.
///
/// # Safety
///
/// The functions need AVX-512 (F, BW, DQ, VL), and sixteen elements at the pointer.
trait Stored {
    /// A NaN that [`Stored::store`] turns into the one with all value bits set.
    const NAN: i32 = 0x7fff_ffff;
    unsafe fn load(from: *const u8) -> __m512;
    unsafe fn store(x: __m512, to: *mut u8);
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(x: __m512, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { _mm512_storeu_ps(to.cast(), x) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(x: __m512, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
    }
}

impl Stored for bf16 {
    const NAN: i32 = BF16_NAN;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store(x: __m512, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe {
            let kept = _mm512_srli_epi32::<16>(rounded(x));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(kept));
        }
    }
}

/// The one NaN of bf16, as f32.
const BF16_NAN: i32 = 0x7fff_0000;

/// Rounds to nearest even at the sixteenth bit, leaving the bits below it to be dropped: adds half
/// of what they can hold, less one where the kept part is even. The carry runs into the exponent,
/// and from the largest finite number to infinity, as it should. NaNs must be [`BF16_NAN`], from
/// which nothing carries.
#[inline(always)]
unsafe fn rounded(x: __m512) -> __m512i {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe {
        let x = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
        _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd)
    }
}

impl<E: Stored> Lanes for Sixteen<E> {
    const LANES: usize = 16;
    const SIZE: usize = size_of::<E>();
    type F32 = __m512;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { E::load(from) }
    }

    #[inline(always)]
    unsafe fn store(x: __m512, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { E::store(x, to) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f32_twice(from: *const f32) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe {
            let eight = _mm512_castps256_ps512(_mm256_loadu_ps(from));
            let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            _mm512_permutexvar_ps(twice, eight)
        }
    }

    #[inline(always)]
    unsafe fn mul(x: __m512, y: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_mul_ps(x, y) }
    }

    #[inline(always)]
    unsafe fn mul_add(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_fmadd_ps(x, y, z) }
    }

    #[inline(always)]
    unsafe fn mul_sub(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_fmsub_ps(x, y, z) }
    }

    #[inline(always)]
    unsafe fn mul_sub_add(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_fmaddsub_ps(x, y, z) }
    }

    #[inline(always)]
    unsafe fn swap(x: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(x) }
    }

    /// One comparison for both, since seldom any lane is NaN.
    #[inline(always)]
    unsafe fn one_nan(x: __m512, y: __m512) -> (__m512, __m512) {
        // SAFETY: as the trait demands.
        unsafe {
            if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, y) == 0 {
                return (x, y);
            }
            cold();
            (nan_to(E::NAN, x), nan_to(E::NAN, y))
        }
    }
}

/// Makes every NaN that one.
#[inline(always)]
unsafe fn nan_to(nan: i32, x: __m512) -> __m512 {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe {
        let nan = _mm512_castsi512_ps(_mm512_set1_epi32(nan));
        _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), nan)
    }
}

/// Thirty-two half-split bf16 pairs.
///
/// A bf16 is the upper half of an f32, so a register of thirty-two is the odd elements as they
/// stand (below them, bits to clear) and the even ones a shift away: cheaper than widening each
/// half. The rounding instruction packs two registers one after the other; one permutation puts
/// their elements back in turn.
struct Bf16Apart;

/// Even elements, and odd ones.
#[inline(always)]
unsafe fn split(x: __m512i) -> (__m512, __m512) {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe {
        let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)),
            _mm512_castsi512_ps(odd),
        )
    }
}

/// Rounds to bf16 and puts even and odd elements back in turn.
///
/// `vcvtne2ps2bf16` rounds to nearest even, but flushes subnormals; where there is one, or a NaN,
/// the rounding is done by integers.
#[inline(always)]
unsafe fn join(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: the caller is compiled for AVX-512 with BF16.
    unsafe {
        // Quiet NaN, subnormal, signalling NaN.
        const SPECIAL: i32 = 0x01 | 0x20 | 0x80;
        let special =
            _mm512_fpclass_ps_mask::<SPECIAL>(even) | _mm512_fpclass_ps_mask::<SPECIAL>(odd);
        if special != 0 {
            cold();
            let even = _mm512_srli_epi32::<16>(rounded(nan_to(BF16_NAN, even)));
            return _mm512_mask_mov_epi16(even, 0xaaaa_aaaa, rounded(nan_to(BF16_NAN, odd)));
        }
        let packed: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(odd, even));
        let order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
            4, 19, 3, 18, 2, 17, 1, 16, 0,
        );
        _mm512_permutexvar_epi16(order, packed)
    }
}

impl Step for Bf16Apart {
    const PAIRS: usize = 32;
    const SIZE: usize = 2;
    const INTERLEAVED: bool = false;
    /// Of the even pairs and of the odd ones.
    type Table = [(__m512, __m512); 2];
    type Data = (__m512i, __m512i);

    #[inline(always)]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table {
        // SAFETY: the caller vouches for 32 values each, and for the instruction set.
        unsafe {
            let parts = |from: *const f32| {
                let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
                let even =
                    _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
                (
                    _mm512_permutex2var_ps(low, even, high),
                    _mm512_permutex2var_ps(low, odd, high),
                )
            };
            let ((even_cos, odd_cos), (even_sin, odd_sin)) = (parts(cos), parts(sin));
            [(even_cos, even_sin), (odd_cos, odd_sin)]
        }
    }

    #[inline(always)]
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data {
        // SAFETY: the caller vouches for 32 elements each, and for the instruction set.
        unsafe { (_mm512_loadu_si512(a.cast()), _mm512_loadu_si512(b.cast())) }
    }

    #[inline(always)]
    unsafe fn turn((a, b): Self::Data, table: &Self::Table) -> Self::Data {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let ((even_a, odd_a), (even_b, odd_b)) = (split(a), split(b));
            let [(even_cos, even_sin), (odd_cos, odd_sin)] = *table;
            let turn = |a, b, cos, sin| {
                (
                    _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)),
                    _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)),
                )
            };
            let (even_a, even_b) = turn(even_a, even_b, even_cos, even_sin);
            let (odd_a, odd_b) = turn(odd_a, odd_b, odd_cos, odd_sin);
            (join(even_a, odd_a), join(even_b, odd_b))
        }
    }

    #[inline(always)]
    unsafe fn store((a, b): Self::Data, to_a: *mut u8, to_b: *mut u8) {
        // SAFETY: the caller vouches for 32 elements each, and for the instruction set.
        unsafe {
            _mm512_storeu_si512(to_a.cast(), a);
            _mm512_storeu_si512(to_b.cast(), b);
        }
    }
}

/// Sixteen interleaved bf16 pairs in one register: what [`split`] takes apart is the pairs.
struct Bf16Together;

impl Step for Bf16Together {
    const PAIRS: usize = 16;
    const SIZE: usize = 2;
    const INTERLEAVED: bool = true;
    type Table = (__m512, __m512);
    type Data = __m512i;

    #[inline(always)]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table {
        // SAFETY: the caller vouches for 16 values each, and for the instruction set.
        unsafe { (_mm512_loadu_ps(cos), _mm512_loadu_ps(sin)) }
    }

    #[inline(always)]
    unsafe fn load(a: *const u8, _: *const u8) -> __m512i {
        // SAFETY: the caller vouches for 16 pairs, and for the instruction set.
        unsafe { _mm512_loadu_si512(a.cast()) }
    }

    #[inline(always)]
    unsafe fn turn(pairs: __m512i, &(cos, sin): &Self::Table) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (a, b) = split(pairs);
            join(
                _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)),
                _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(pairs: __m512i, to_a: *mut u8, _: *mut u8) {
        // SAFETY: the caller vouches for 16 pairs, and for the instruction set.
        unsafe { _mm512_storeu_si512(to_a.cast(), pairs) }
    }
}
