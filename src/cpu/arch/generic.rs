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
//! - Steps go in groups of up to [`Step::GROUP`]: all loads, then all turns, then all stores. That
//!   gives the processor independent work to fill the latencies of one pair with.
//! - What almost never happens is looked for cheaply and put right afterwards: a group gathers
//!   evidence of special values in a [`Step::Watch`], looks at it once, and only then recomputes.
//! - A walk that goes down through memory goes down inside each vector too: the prefetchers lose a
//!   stream that climbs within a vector and falls from one to the next.
//! - All of this is inlined into the kernel, always: that is the function which is compiled for the instructions.
//!   Not in a build without optimisation: it would give every value of every step that is written out a place of
//!   its own on the stack, 3 MiB in the worst kernel, where a thread has 2. There (`unoptimised`, says `build.rs`)
//!   each function stays one.
//! - Going up, no prefetch: the loads of a walk are a plain stream that hardware follows by itself, and
//!   asking for its lines by instruction was slower at every distance. Going down it follows less well,
//!   and asking 2 KiB ahead gains up to a fifth.

use super::{Turn, Walk};

/// How far ahead a walk that goes down asks for memory, in bytes. On Zen 4, 1, 4 and 8 KiB gained less.
const AHEAD: usize = 2048;

/// Turns `PAIRS` pairs at once.
///
/// A step sees two places, `a` and `b`: for half-split pairs they are the same stretch of either
/// half; for interleaved pairs they are two successive stretches, each with whole pairs. Either
/// way each holds `PAIRS` elements.
///
/// # Safety
///
/// All functions need the instruction set that the implementation is written for; the pointers
/// must be valid for `PAIRS` elements, and need no alignment.
pub(super) trait Step {
    /// Pairs per step.
    const PAIRS: usize;
    /// Bytes of an element.
    const SIZE: usize;
    /// Whether pairs are interleaved.
    const INTERLEAVED: bool;
    /// How many steps are loaded before the first of them is stored: 2 or 4.
    const GROUP: usize;
    /// Cos and sin of one step's pairs, in the order that [`Step::turn`] wants.
    type Table: Copy;
    /// One step's elements as they are loaded.
    type Data: Copy;
    /// One step's elements as they are to be stored.
    type Turned: Copy;
    /// Evidence that some result has to be mended.
    type Watch: Copy;

    unsafe fn table(cos: *const f32, sin: *const f32) -> Self::Table;
    /// No evidence yet.
    unsafe fn watch() -> Self::Watch;
    unsafe fn load(a: *const u8, b: *const u8) -> Self::Data;
    /// Turns, and adds to the evidence.
    unsafe fn turn(data: Self::Data, table: &Self::Table, watch: &mut Self::Watch) -> Self::Turned;
    /// Whether there is no evidence.
    unsafe fn calm(watch: Self::Watch) -> bool;
    /// What [`Step::turn`] should have returned, whatever the values are.
    unsafe fn mend(data: Self::Data, table: &Self::Table, turned: Self::Turned) -> Self::Turned;
    unsafe fn store(turned: Self::Turned, a: *mut u8, b: *mut u8);
}

/// Asks for a line of memory. Any address will do.
#[cfg_attr(not(unoptimised), inline(always))]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; SSE is part of x86-64, and a prefetch of any address does not fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
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
#[cfg_attr(not(unoptimised), inline(always))]
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
            12 if S::GROUP == 4 => turn_steps::<S, 12>(dst, src, walk, turn),
            16 if S::GROUP == 4 => turn_steps::<S, 16>(dst, src, walk, turn),
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
    #[cfg_attr(not(unoptimised), inline(always))]
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

    /// Where step `i` of `steps` is.
    #[cfg_attr(not(unoptimised), inline(always))]
    fn place(&self, i: usize, steps: usize) -> usize {
        if i + 1 < steps {
            i * self.step
        } else {
            self.last
        }
    }
}

/// Loads the table of step `i` of `steps`.
///
/// # Safety
///
/// The instruction set is that of `S`; `turn.cos.len() >= S::PAIRS`; `steps` is their quotient,
/// rounded up, and `i` below it.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn table<S: Step>(turn: &Turn<'_>, i: usize, steps: usize) -> S::Table {
    let first = if i + 1 < steps {
        i * S::PAIRS
    } else {
        turn.cos.len() - S::PAIRS
    };
    // SAFETY: `PAIRS` pairs from `first` on are below the number of pairs.
    unsafe { S::table(turn.cos.as_ptr().add(first), turn.sin.as_ptr().add(first)) }
}

/// Turns a walk whose windows take `N` steps.
///
/// # Safety
///
/// As [`super::TurnFn`]; the instruction set is that of `S`; `N` is the number of pairs over
/// `S::PAIRS`, rounded up, and not zero.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn turn_steps<S: Step, const N: usize>(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    turn: &Turn<'_>,
) {
    let window = Window::new::<S>(turn);
    // SAFETY: the caller vouches for the number of steps and for the windows that the walk yields.
    unsafe {
        let mut tables = [table::<S>(turn, 0, N); N];
        for (i, slot) in tables.iter_mut().enumerate() {
            *slot = table::<S>(turn, i, N);
        }
        if walk.src_inner >= 0 {
            for (dst, src) in Vectors::new(dst, src, walk, S::SIZE) {
                first_group::<S, N>(dst, src, &window, &tables);
                full_group::<S, N, 0>(dst, src, &window, &tables);
                full_group::<S, N, 1>(dst, src, &window, &tables);
                full_group::<S, N, 2>(dst, src, &window, &tables);
                full_group::<S, N, 3>(dst, src, &window, &tables);
            }
        } else {
            for (dst, src) in Vectors::new(dst, src, walk, S::SIZE) {
                for i in 0..N {
                    let a = src.wrapping_add(window.place(i, N)).wrapping_sub(AHEAD);
                    prefetch(a);
                    prefetch(a.wrapping_offset(window.half));
                }
                full_group::<S, N, 3>(dst, src, &window, &tables);
                full_group::<S, N, 2>(dst, src, &window, &tables);
                full_group::<S, N, 1>(dst, src, &window, &tables);
                full_group::<S, N, 0>(dst, src, &window, &tables);
                first_group::<S, N>(dst, src, &window, &tables);
            }
        }
    }
}

/// Turns the steps before the first full group.
///
/// The group that is not full is the first, so that the last two steps, which may share pairs, are
/// in one group: loaded before either is stored.
///
/// # Safety
///
/// As [`group`].
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn first_group<S: Step, const N: usize>(
    dst: *mut u8,
    src: *const u8,
    window: &Window,
    tables: &[S::Table; N],
) {
    // SAFETY: passed on.
    unsafe {
        match N % S::GROUP {
            0 => {}
            1 => group::<S, N, 1>(dst, src, window, 0, tables),
            2 => group::<S, N, 2>(dst, src, window, 0, tables),
            _ => group::<S, N, 3>(dst, src, window, 0, tables),
        }
    }
}

/// Turns full group `I` of a window, if it has so many. Groups are written out by their callers,
/// for a loop is not always unrolled, and only a table that is indexed by constants stays in
/// registers.
///
/// # Safety
///
/// As [`group`].
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn full_group<S: Step, const N: usize, const I: usize>(
    dst: *mut u8,
    src: *const u8,
    window: &Window,
    tables: &[S::Table; N],
) {
    debug_assert!(N <= 4 * S::GROUP && (S::GROUP == 2 || S::GROUP == 4));
    let first = N % S::GROUP + I * S::GROUP;
    if first + S::GROUP <= N {
        // SAFETY: passed on.
        unsafe {
            match S::GROUP {
                2 => group::<S, N, 2>(dst, src, window, first, tables),
                _ => group::<S, N, 4>(dst, src, window, first, tables),
            }
        }
    }
}

/// Turns steps `first .. first + G` of a window of `N`.
///
/// # Safety
///
/// The windows at `src` and `dst` are valid; the instruction set is that of `S`.
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn group<S: Step, const N: usize, const G: usize>(
    dst: *mut u8,
    src: *const u8,
    window: &Window,
    first: usize,
    tables: &[S::Table; N],
) {
    // No closures here: a closure is a function of its own, compiled without the instruction set,
    // and where it is not inlined every vector operation in it becomes a call.
    //
    // SAFETY: each place is that of a step inside the window.
    unsafe {
        let mut watch = S::watch();
        let a = src.add(window.place(first, N));
        let mut data = [S::load(a, a.offset(window.half)); G];
        for (i, slot) in data.iter_mut().enumerate().skip(1) {
            let a = src.add(window.place(first + i, N));
            *slot = S::load(a, a.offset(window.half));
        }
        let mut turned = [S::turn(data[0], &tables[first], &mut watch); G];
        for (i, slot) in turned.iter_mut().enumerate().skip(1) {
            *slot = S::turn(data[i], &tables[first + i], &mut watch);
        }
        if !S::calm(watch) {
            cold();
            for (i, slot) in turned.iter_mut().enumerate() {
                *slot = S::mend(data[i], &tables[first + i], *slot);
            }
        }
        for (i, turned) in turned.into_iter().enumerate() {
            let a = dst.add(window.place(first + i, N));
            S::store(turned, a, a.offset(window.half));
        }
    }
}

/// Turns a walk whose windows take any number of steps, fetching the table for each.
///
/// # Safety
///
/// As [`super::TurnFn`]; the instruction set is that of `S`; `turn.cos.len() >= S::PAIRS`.
#[cfg_attr(not(unoptimised), inline(always))]
pub(super) unsafe fn turn_long<S: Step>(
    dst: *mut u8,
    src: *const u8,
    walk: &Walk,
    turn: &Turn<'_>,
) {
    let window = Window::new::<S>(turn);
    let steps = turn.cos.len().div_ceil(S::PAIRS);
    let before = steps % S::GROUP;
    let ahead = walk.src_inner * S::SIZE as isize;
    // SAFETY: the groups are those of `turn_steps`, and cover all steps of a window, for which the caller
    // vouches.
    unsafe {
        for (dst, src) in Vectors::new(dst, src, walk, S::SIZE) {
            match before {
                0 => {}
                1 => long_group::<S, 1>(dst, src, &window, 0, steps, ahead, turn),
                2 => long_group::<S, 2>(dst, src, &window, 0, steps, ahead, turn),
                _ => long_group::<S, 3>(dst, src, &window, 0, steps, ahead, turn),
            }
            for first in (before..steps).step_by(S::GROUP) {
                match S::GROUP {
                    2 => long_group::<S, 2>(dst, src, &window, first, steps, ahead, turn),
                    _ => long_group::<S, 4>(dst, src, &window, first, steps, ahead, turn),
                }
            }
        }
    }
}

/// [`group`] with the table in memory: steps `first .. first + G` of `steps`. Asks for the same place of the
/// vector `ahead` bytes on: long windows are whole pages, whose halves are two streams that both jump from
/// vector to vector, and hardware follows those less well than one.
///
/// # Safety
///
/// As [`group`].
#[cfg_attr(not(unoptimised), inline(always))]
unsafe fn long_group<S: Step, const G: usize>(
    dst: *mut u8,
    src: *const u8,
    window: &Window,
    first: usize,
    steps: usize,
    ahead: isize,
    turn: &Turn<'_>,
) {
    // SAFETY: each place is that of a step inside the window.
    unsafe {
        let mut watch = S::watch();
        let a = src.add(window.place(first, steps));
        let mut data = [S::load(a, a.offset(window.half)); G];
        for (i, slot) in data.iter_mut().enumerate().skip(1) {
            let a = src.add(window.place(first + i, steps));
            *slot = S::load(a, a.offset(window.half));
        }
        let mut turned = [S::turn(data[0], &table::<S>(turn, first, steps), &mut watch); G];
        for (i, slot) in turned.iter_mut().enumerate().skip(1) {
            *slot = S::turn(data[i], &table::<S>(turn, first + i, steps), &mut watch);
        }
        // A step of one pair would ask for each line many times.
        if S::PAIRS > 1 {
            for i in 0..G {
                let a = src
                    .wrapping_add(window.place(first + i, steps))
                    .wrapping_offset(ahead);
                prefetch(a);
                prefetch(a.wrapping_offset(window.half));
            }
        }
        if !S::calm(watch) {
            cold();
            for (i, slot) in turned.iter_mut().enumerate() {
                *slot = S::mend(data[i], &table::<S>(turn, first + i, steps), *slot);
            }
        }
        for (i, turned) in turned.into_iter().enumerate() {
            let a = dst.add(window.place(first + i, steps));
            S::store(turned, a, a.offset(window.half));
        }
    }
}

/// The vectors of a walk: destination and source of each, in order.
struct Vectors {
    walk: Walk,
    /// Where the current outer step begins.
    start: (*mut u8, *const u8),
    next: (*mut u8, *const u8),
    /// Vectors left in the current outer step.
    left: usize,
}

impl Vectors {
    /// Strides are counted in units of `size` bytes.
    #[cfg_attr(not(unoptimised), inline(always))]
    fn new(dst: *mut u8, src: *const u8, walk: &Walk, size: usize) -> Vectors {
        let walk = walk.joined().scaled(size as isize);
        let left = if walk.outer == 0 { 0 } else { walk.inner };
        Vectors {
            walk,
            start: (dst, src),
            next: (dst, src),
            left,
        }
    }
}

impl Iterator for Vectors {
    type Item = (*mut u8, *const u8);

    #[cfg_attr(not(unoptimised), inline(always))]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.walk.outer <= 1 || self.walk.inner == 0 {
                return None;
            }
            self.walk.outer -= 1;
            self.left = self.walk.inner;
            self.start.0 = self.start.0.wrapping_offset(self.walk.dst_outer);
            self.start.1 = self.start.1.wrapping_offset(self.walk.src_outer);
            self.next = self.start;
        }
        let vector = self.next;
        self.left -= 1;
        // Wrapping, for the step past the last vector may leave the allocation.
        self.next.0 = self.next.0.wrapping_offset(self.walk.dst_inner);
        self.next.1 = self.next.1.wrapping_offset(self.walk.src_inner);
        Some(vector)
    }
}

/// Moves the rows of a walk whose strides are in bytes.
///
/// # Safety
///
/// As [`super::MoveFn`].
pub(super) unsafe fn move_rows(dst: *mut u8, src: *const u8, walk: &Walk, bytes: usize) {
    for (dst, src) in Vectors::new(dst, src, walk, 1) {
        // SAFETY: the caller vouches for each row.
        unsafe { std::ptr::copy(src, dst, bytes) };
    }
}
