//! The innermost kernels of the CPU backend: turn one row of pairs after another by one table row.
//!
//! A kernel knows nothing of models, plans or layouts. It is handed a [`Walk`] (where the vectors
//! lie and in which order to visit them) and a [`Turn`] (how pairs lie inside a vector, and by
//! which cos and sin to turn them), and for every pair it computes, in f32,
//!
//! ```text
//! a' = fma(a, cos, -(b · sin))
//! b' = fma(b, cos,   a · sin )
//! ```
//!
//! that is one rounded product and one fused multiply-add, and rounds the result once, to nearest
//! even, to the stored type. Every kernel gives the same bits: subnormals are never flushed, zeros
//! keep their sign, an overflow becomes an infinity, and a NaN, whatever it came from, is written
//! as the one with a clear sign and every other bit set (`0x7fff_ffff` in f32, `0x7fff` in f16 and
//! bf16). That NaN is the one NVIDIA's multiply-add returns, so a GPU can keep to it at no cost.
//!
//! [`Kernels::best`] picks the widest set of instructions that the running CPU has. `portable` is
//! the definition the others are tested against, and what runs where nothing better exists.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64;
mod generic;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::{ElementType, Pairing};

/// Where vectors lie and in which order they are visited: `outer` times `inner` of them, the inner
/// index running fastest.
///
/// Strides are in elements and may be negative or zero-count. A splice that moves rows to higher
/// addresses is walked from its last row to its first, with negative strides.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Number of steps of the slow index.
    pub outer: usize,
    /// Number of steps of the fast index.
    pub inner: usize,
    /// Distance between two outer steps of the source.
    pub src_outer: isize,
    /// Distance between two inner steps of the source.
    pub src_inner: isize,
    /// Distance between two outer steps of the destination.
    pub dst_outer: isize,
    /// Distance between two inner steps of the destination.
    pub dst_inner: isize,
}

impl Walk {
    /// `rows` vectors, `stride` elements apart, source and destination alike.
    #[cfg(test)]
    pub fn rows(rows: usize, stride: isize) -> Walk {
        Walk {
            outer: 1,
            inner: rows,
            src_outer: 0,
            src_inner: stride,
            dst_outer: 0,
            dst_inner: stride,
        }
    }

    /// The same walk with strides in units `size` times smaller.
    pub fn scaled(self, size: isize) -> Walk {
        Walk {
            src_outer: self.src_outer * size,
            src_inner: self.src_inner * size,
            dst_outer: self.dst_outer * size,
            dst_inner: self.dst_inner * size,
            ..self
        }
    }

    /// The same walk as one loop where the strides allow it, so that long streams stay long.
    fn joined(self) -> Walk {
        let inner = self.inner as isize;
        let joins = |outer: isize, step: isize| step.checked_mul(inner) == Some(outer);
        if self.outer > 1
            && joins(self.src_outer, self.src_inner)
            && joins(self.dst_outer, self.dst_inner)
        {
            Walk {
                outer: 1,
                inner: self.outer * self.inner,
                src_outer: 0,
                dst_outer: 0,
                ..self
            }
        } else {
            self
        }
    }
}

/// How the pairs of one vector lie, and the angle of each.
///
/// `cos` and `sin` hold one value per pair; the number of pairs is their common length.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'t> {
    /// Distance in elements from the first of a pair to the second. Half-split pairs only: it is
    /// the number of pairs, unless the vector itself is cut up.
    pub half_stride: isize,
    /// Cosine of each pair's angle.
    pub cos: &'t [f32],
    /// Sine of each pair's angle.
    pub sin: &'t [f32],
}

/// Turns every vector of a walk. `dst` and `src` point at the rotated window of the first vector.
///
/// # Safety
///
/// - `cos` and `sin` are equally long.
/// - Every window that the walk and the turn reach from `src` is valid for reads, and from `dst`
///   for writes. Alignment to the element is not needed.
/// - The CPU has the instructions the kernel was taken for; [`Kernels`] only hands out such.
///
/// To be right, and not merely sound, where the two overlap:
///
/// - A vector's destination is its own source, or shares no byte with it.
/// - It shares no byte with the source of a vector that is visited later.
pub type TurnFn = unsafe fn(dst: *mut u8, src: *const u8, walk: &Walk, turn: &Turn<'_>);

/// Moves `bytes` bytes for every vector of a walk whose strides are in bytes. Each row is read
/// whole before its first byte is written, and rows are visited in the walk's order.
///
/// # Safety
///
/// Every row the walk reaches is valid for reads from `src`, and for writes from `dst`.
pub type MoveFn = unsafe fn(dst: *mut u8, src: *const u8, walk: &Walk, bytes: usize);

/// The names of all kernels that this build has, widest first.
pub(crate) const NAMES: &[&str] = &[
    #[cfg(target_arch = "x86_64")]
    "avx512bf16",
    #[cfg(target_arch = "x86_64")]
    "avx512",
    #[cfg(target_arch = "x86_64")]
    "avx2",
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    "neon",
    "portable",
];

/// One instruction set's kernels.
#[derive(Debug)]
pub struct Kernels {
    /// The instruction set, in words.
    pub name: &'static str,
    /// By element type and pairing, in the order of their declarations.
    turn: [[TurnFn; 2]; 3],
    /// Moves rows unturned.
    pub move_rows: MoveFn,
}

impl Kernels {
    /// The fastest kernels that this CPU can run.
    pub fn best() -> &'static Kernels {
        use std::sync::OnceLock;
        static BEST: OnceLock<&'static Kernels> = OnceLock::new();
        BEST.get_or_init(|| {
            Kernels::available()
                .next()
                .expect("the portable kernels run everywhere")
        })
    }

    /// Every set of kernels that this CPU can run, fastest first; the last one is `portable`.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        #[cfg(target_arch = "x86_64")]
        let vector = x86::available();
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        let vector = std::iter::once(&aarch64::KERNELS);
        #[cfg(not(any(
            target_arch = "x86_64",
            all(target_arch = "aarch64", target_endian = "little")
        )))]
        let vector = std::iter::empty();
        vector.chain(std::iter::once(&portable::KERNELS))
    }

    /// The kernel that turns vectors of `element`s paired by `pairing`.
    pub fn turn(&self, element: ElementType, pairing: Pairing) -> TurnFn {
        self.turn[element as usize][pairing as usize]
    }
}
