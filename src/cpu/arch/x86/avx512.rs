//! AVX-512: sixteen lanes; with AVX512_BF16, thirty-two bf16 pairs a step.

use super::avx2::Eight;
use super::lanes::{Apart, Lanes, Together};
use super::turns;
use crate::cpu::arch::generic::{self, Step};
use crate::cpu::arch::portable::Pair;
use crate::cpu::arch::{Kernels, Turn, TurnFn, Walk};
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
            [bf16_apart_any, bf16_together_any],
        ],
        move_rows: generic::move_rows,
    };
    (runs() && is_x86_feature_detected!("avx512bf16")).then_some(&KERNELS)
}

turns! { "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c":
    f32_apart = Apart<Sixteen<f32>>, Apart<Eight<f32>>, Pair<f32, false>;
    f32_together = Together<Sixteen<f32>>, Together<Eight<f32>>, Pair<f32, true>;
    f16_apart = Apart<EightF16>, Pair<f16, false>;
    f16_together = Together<EightF16>, Pair<f16, true>;
    bf16_apart = Apart<Sixteen<bf16>>, Apart<Eight<bf16>>, Pair<bf16, false>;
    bf16_together = Together<Sixteen<bf16>>, Together<Eight<bf16>>, Pair<bf16, true>;
}

turns! { "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c":
    bf16_apart_ne = Bf16Apart, Apart<Sixteen<bf16>>, Apart<Eight<bf16>>, Pair<bf16, false>;
    bf16_together_ne = Bf16Together, Together<Eight<bf16>>, Pair<bf16, true>;
}

/// Takes the kernel for tables in range, if this one is.
///
/// # Safety
///
/// As [`crate::cpu::arch::TurnFn`].
unsafe fn bf16_apart_any(dst: *mut u8, src: *const u8, walk: &Walk, turn: &Turn<'_>) {
    let kernel: TurnFn = if table_in_range(turn) {
        bf16_apart_ne
    } else {
        bf16_apart
    };
    // SAFETY: passed on.
    unsafe { kernel(dst, src, walk, turn) }
}

/// Takes the kernel for tables in range, if this one is.
///
/// # Safety
///
/// As [`crate::cpu::arch::TurnFn`].
unsafe fn bf16_together_any(dst: *mut u8, src: *const u8, walk: &Walk, turn: &Turn<'_>) {
    let kernel: TurnFn = if table_in_range(turn) {
        bf16_together_ne
    } else {
        bf16_together
    };
    // SAFETY: passed on.
    unsafe { kernel(dst, src, walk, turn) }
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
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: __m512, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { _mm512_storeu_ps(to.cast(), x) }
    }
}

impl Stored for bf16 {
    const NAN: i32 = BF16_NAN;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
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
#[cfg_attr(not(unoptimised), inline(always))]
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
    /// Leaves room in the registers for the tables of 128 half-split pairs.
    const GROUP: usize = 2;
    type F32 = __m512;
    type Watch = u16;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { E::load(from) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(x: __m512, to: *mut u8) {
        // SAFETY: as the trait demands.
        unsafe { E::store(x, to) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_f32(from: *const f32) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load_f32_twice(from: *const f32) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe {
            let eight = _mm512_castps256_ps512(_mm256_loadu_ps(from));
            let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            _mm512_permutexvar_ps(twice, eight)
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul(x: __m512, y: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_mul_ps(x, y) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul_add(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_fmadd_ps(x, y, z) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul_sub(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_fmsub_ps(x, y, z) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mul_sub_add(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_fmaddsub_ps(x, y, z) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn swap(x: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(x) }
    }

    /// A bit per lane that has only seen numbers.
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() -> u16 {
        u16::MAX
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn see(watch: u16, x: __m512, y: __m512) -> u16 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_mask_cmp_ps_mask::<_CMP_ORD_Q>(watch, x, y) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm(watch: u16) -> bool {
        watch == u16::MAX
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn one_nan(x: __m512) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { nan_to(E::NAN, x) }
    }
}

/// Makes every NaN that one.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn nan_to(nan: i32, x: __m512) -> __m512 {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe {
        let nan = _mm512_castsi512_ps(_mm512_set1_epi32(nan));
        _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), nan)
    }
}

/// Functions of [`Lanes`] that are another implementation's.
macro_rules! forward {
    ($to:ty: $($name:ident($($arg:ident: $type:ty),*) -> $returns:ty;)+) => {$(
        #[cfg_attr(not(unoptimised), inline(always))]
        unsafe fn $name($($arg: $type),*) -> $returns {
            // SAFETY: as the trait demands, which is the same there.
            unsafe { <$to as Lanes>::$name($($arg),*) }
        }
    )+};
}

/// Eight f16 in an f32 register of half the width.
///
/// Half the width is faster here: a `vcvtph2ps` from memory to eight lanes is one operation, to
/// sixteen it is two and a shuffle besides, and f16 kernels live by their conversions. What they
/// have of AVX-512 is the number of registers, so that 64 pairs' tables stay in them, and the mask
/// that a comparison adds to.
pub(super) struct EightF16;

impl Lanes for EightF16 {
    const LANES: usize = 8;
    const SIZE: usize = 2;
    const GROUP: usize = 4;
    type F32 = __m256;
    type Watch = u8;

    forward! { Eight<f16>:
        load(from: *const u8) -> __m256;
        store(x: __m256, to: *mut u8) -> ();
        load_f32(from: *const f32) -> __m256;
        load_f32_twice(from: *const f32) -> __m256;
        mul(x: __m256, y: __m256) -> __m256;
        mul_add(x: __m256, y: __m256, z: __m256) -> __m256;
        mul_sub(x: __m256, y: __m256, z: __m256) -> __m256;
        mul_sub_add(x: __m256, y: __m256, z: __m256) -> __m256;
        swap(x: __m256) -> __m256;
        one_nan(x: __m256) -> __m256;
    }

    /// A bit per lane that has only seen numbers.
    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() -> u8 {
        u8::MAX
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn see(watch: u8, x: __m256, y: __m256) -> u8 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_mask_cmp_ps_mask::<_CMP_ORD_Q>(watch, x, y) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm(watch: u8) -> bool {
        watch == u8::MAX
    }
}

/// Thirty-two half-split bf16 pairs, rounded by `vcvtne2ps2bf16`.
///
/// That instruction rounds to nearest even, but flushes subnormals, and keeps a NaN's sign. To
/// test each result for those costs as much as the conversion. So the inputs are tested instead:
/// if all of them lie between 2⁻⁶³ and 2⁶⁵, and all of the table is zero or between 2⁻³³ and 2³³,
/// then every product is zero or a multiple of 2⁻¹²⁶, so that no result is subnormal, and none
/// overflows in f32. A bf16 lies in that range where the upper two bits of its exponent differ;
/// adding 0x2000 to it carries the lower into the upper, so that bit 14 of the sum says which.
/// Anything outside, zeros among it, is seldom and is computed again with each result tested.
struct Bf16Apart;

/// Bit 14 of each of thirty-two lanes is set as long as all inputs were in range.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn in_range(x: __m512i) -> __m512i {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe { _mm512_add_epi16(x, _mm512_set1_epi16(0x2000)) }
}

#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn all_in_range(watch: __m512i) -> bool {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe { _mm512_testn_epi16_mask(watch, _mm512_set1_epi16(0x4000)) == 0 }
}

/// Whether a table allows [`Bf16Apart`]'s reasoning.
#[cfg_attr(not(unoptimised), inline(always))]
fn table_in_range(turn: &Turn<'_>) -> bool {
    const LEAST: f32 = 1.0 / (1_u64 << 33) as f32;
    const MOST: f32 = (1_u64 << 33) as f32;
    // Folded without a way out, so that it becomes vector code.
    let all = |row: &[f32]| {
        row.iter().fold(true, |all, x| {
            let size = x.abs();
            all & ((size == 0.0) | (LEAST..=MOST).contains(&size))
        })
    };
    all(turn.cos) & all(turn.sin)
}

/// Rounds to bf16: sixteen of `low`, then sixteen of `high`.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn pack(low: __m512, high: __m512) -> __m512i {
    // SAFETY: the caller is compiled for AVX-512 with BF16; the two types are as large and have no
    // invalid values.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Rounds any values to bf16, by integers.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn kept(x: __m512) -> __m256i {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe { _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(nan_to(BF16_NAN, x)))) }
}

/// [`pack`] for any values.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn pack_any(low: __m512, high: __m512) -> __m512i {
    // SAFETY: the caller is compiled for AVX-512 with BF16.
    unsafe {
        // Quiet NaN, subnormal, signalling NaN.
        const SPECIAL: i32 = 0x01 | 0x20 | 0x80;
        if _mm512_fpclass_ps_mask::<SPECIAL>(low) | _mm512_fpclass_ps_mask::<SPECIAL>(high) == 0 {
            return pack(low, high);
        }
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(kept(low)), kept(high))
    }
}

/// Widens sixteen of thirty-two bf16: puts each into the upper half of a lane, over zeros.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn widen<const HIGH: bool>(x: __m512i) -> __m512 {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe {
        let order = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let order = _mm512_add_epi32(order, _mm512_set1_epi32(if HIGH { 16 } else { 0 }));
        let order = _mm512_slli_epi32::<16>(order);
        _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, order, x))
    }
}

#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn turn(a: __m512, b: __m512, (cos, sin): Table) -> (__m512, __m512) {
    // SAFETY: the caller is compiled for AVX-512.
    unsafe {
        (
            _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)),
            _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)),
        )
    }
}

/// Turns thirty-two pairs and packs by `$pack`.
macro_rules! bf16_apart {
    ($data:expr, $table:expr, $pack:ident) => {{
        let ((a, b), table) = ($data, $table);
        let (low_a, low_b) = turn(widen::<false>(a), widen::<false>(b), table[0]);
        let (high_a, high_b) = turn(widen::<true>(a), widen::<true>(b), table[1]);
        ($pack(low_a, high_a), $pack(low_b, high_b))
    }};
}

/// Cos and sin of sixteen pairs.
type Table = (__m512, __m512);

impl Step for Bf16Apart {
    const PAIRS: usize = 32;
    const SIZE: usize = 2;
    const INTERLEAVED: bool = false;
    const GROUP: usize = 2;
    type Table = [Table; 2];
    type Data = (__m512i, __m512i);
    type Turned = (__m512i, __m512i);
    type Watch = __m512i;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn table(cos: *const f32, sin: *const f32) -> [Table; 2] {
        // SAFETY: the caller vouches for 32 values each, and for the instruction set.
        unsafe {
            [
                (_mm512_loadu_ps(cos), _mm512_loadu_ps(sin)),
                (_mm512_loadu_ps(cos.add(16)), _mm512_loadu_ps(sin.add(16))),
            ]
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_set1_epi32(-1) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data {
        // SAFETY: the caller vouches for 32 elements each, and for the instruction set.
        unsafe { (_mm512_loadu_si512(a.cast()), _mm512_loadu_si512(b.cast())) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn turn((a, b): Self::Data, table: &[Table; 2], watch: &mut __m512i) -> Self::Turned {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            *watch = _mm512_and_si512(*watch, _mm512_and_si512(in_range(a), in_range(b)));
            bf16_apart!((a, b), table, pack)
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm(watch: __m512i) -> bool {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { all_in_range(watch) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mend(data: Self::Data, table: &[Table; 2], _: Self::Turned) -> Self::Turned {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { bf16_apart!(data, table, pack_any) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store((a, b): Self::Turned, to_a: *mut u8, to_b: *mut u8) {
        // SAFETY: the caller vouches for 32 elements each, and for the instruction set.
        unsafe {
            _mm512_storeu_si512(to_a.cast(), a);
            _mm512_storeu_si512(to_b.cast(), b);
        }
    }
}

/// Sixteen interleaved bf16 pairs in one register, with the watch of [`Bf16Apart`]. A bf16 is the
/// upper half of an f32, so the second of each pair is there already, below it bits to clear, and
/// the first is a shift away. One permutation puts the packed results back in turn.
struct Bf16Together;

/// Turns sixteen pairs and packs by `$pack`.
macro_rules! bf16_together {
    ($pairs:expr, $table:expr, $pack:ident) => {{
        let pairs = $pairs;
        let a = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
        let b = _mm512_castsi512_ps(_mm512_and_si512(
            pairs,
            _mm512_set1_epi32(0xffff_0000_u32 as i32),
        ));
        let (a, b) = turn(a, b, *$table);
        let order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
            4, 19, 3, 18, 2, 17, 1, 16, 0,
        );
        _mm512_permutexvar_epi16(order, $pack(a, b))
    }};
}

impl Step for Bf16Together {
    const PAIRS: usize = 16;
    const SIZE: usize = 2;
    const INTERLEAVED: bool = true;
    const GROUP: usize = 4;
    type Table = Table;
    type Data = __m512i;
    type Turned = __m512i;
    type Watch = __m512i;

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn table(cos: *const f32, sin: *const f32) -> Table {
        // SAFETY: the caller vouches for 16 values each, and for the instruction set.
        unsafe { (_mm512_loadu_ps(cos), _mm512_loadu_ps(sin)) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn watch() -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_set1_epi32(-1) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn load(a: *const u8, _: *const u8) -> __m512i {
        // SAFETY: the caller vouches for 16 pairs, and for the instruction set.
        unsafe { _mm512_loadu_si512(a.cast()) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn turn(pairs: __m512i, table: &Table, watch: &mut __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            *watch = _mm512_and_si512(*watch, in_range(pairs));
            bf16_together!(pairs, table, pack)
        }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn calm(watch: __m512i) -> bool {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { all_in_range(watch) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn mend(pairs: __m512i, table: &Table, _: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { bf16_together!(pairs, table, pack_any) }
    }

    #[cfg_attr(not(unoptimised), inline(always))]
    unsafe fn store(pairs: __m512i, to_a: *mut u8, _: *mut u8) {
        // SAFETY: the caller vouches for 16 pairs, and for the instruction set.
        unsafe { _mm512_storeu_si512(to_a.cast(), pairs) }
    }
}
