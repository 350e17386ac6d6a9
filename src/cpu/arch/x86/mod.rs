//! Kernels for x86-64, chosen by what the running CPU reports.

mod avx2;
mod avx512;
mod lanes;

use super::Kernels;

/// The kernels that this CPU can run, fastest first.
pub(super) fn available() -> impl Iterator<Item = &'static Kernels> {
    [avx512::bf16_kernels(), avx512::kernels(), avx2::kernels()]
        .into_iter()
        .flatten()
}

/// Writes the kernels of a set of instructions: for each name, a function that is compiled for
/// `$features` and turns by the steps `$wide`, or by `$narrow` where the window is too small.
macro_rules! turns {
    ($features:literal: $($(#[$doc:meta])* $name:ident = $($step:ty),+;)+) => {$(
        $(#[$doc])*
        /// # Safety
        ///
        /// As [`crate::cpu::arch::TurnFn`].
        #[target_feature(enable = $features)]
        unsafe fn $name(
            dst: *mut u8,
            src: *const u8,
            walk: &crate::cpu::arch::Walk,
            turn: &crate::cpu::arch::Turn<'_>,
        ) {
            let pairs = turn.cos.len();
            $(if pairs >= <$step as $crate::cpu::arch::generic::Step>::PAIRS {
                // SAFETY: the caller's conditions; this function is compiled for the instructions
                // of the step, and the window holds at least one.
                unsafe { $crate::cpu::arch::generic::turn::<$step>(dst, src, walk, turn) }
            } else)+ {
                debug_assert_eq!(pairs, 0);
            }
        }
    )+};
}
use turns;
