//! The memory and time of a call.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What a call may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Bytes that it may have allocated at once. An allocation past them fails, as one does where memory is used up:
    /// code that cannot do without it aborts, which the fuzzer sees, and code that says so is heard. Small ones, for
    /// the text of an error or what a caller's own lists are turned into, may have as much again.
    pub memory: usize,
    /// How long it may run, in time of its own thread: what else the machine does is not counted.
    pub time: Duration,
}

/// Every allocation of the program, counted.
struct Counting;

/// Bytes allocated now, and how many may be, in large allocations and in small ones.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static CEILING: AtomicUsize = AtomicUsize::new(usize::MAX);
static CEILING_OF_SMALL: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From here on an allocation is a large one.
const LARGE: usize = 1 << 21;

#[global_allocator]
static COUNTING: Counting = Counting;

fn claim(bytes: usize) -> bool {
    let live = LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes);
    let ceiling = if bytes < LARGE {
        &CEILING_OF_SMALL
    } else {
        &CEILING
    };
    let fits = live <= ceiling.load(Relaxed);
    if !fits {
        LIVE.fetch_sub(bytes, Relaxed);
    }
    fits
}

// SAFETY: the system's allocator, or none.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !claim(layout.size()) {
            return null_mut();
        }
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !claim(layout.size()) {
            return null_mut();
        }
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !claim(size) {
            return null_mut();
        }
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Bytes that the program has allocated.
pub fn live() -> usize {
    LIVE.load(Relaxed)
}

/// As [`watch`], with so little memory that the call may have to do without. It gets no more for small things.
pub fn starve<T>(memory: usize, call: impl FnOnce() -> T) -> T {
    CEILING.store(live() + memory, Relaxed);
    CEILING_OF_SMALL.store(live() + memory, Relaxed);
    let made = call();
    CEILING.store(usize::MAX, Relaxed);
    CEILING_OF_SMALL.store(usize::MAX, Relaxed);
    made
}

/// Makes a call within limits.
///
/// # Panics
/// If it takes longer. Where it needs more memory than it may have, it aborts, or fails by itself.
pub fn watch<T>(what: &str, limits: Limits, call: impl FnOnce() -> T) -> T {
    CEILING.store(live() + limits.memory, Relaxed);
    CEILING_OF_SMALL.store(live() + 2 * limits.memory, Relaxed);
    let start = thread_time();
    let made = call();
    let taken = thread_time() - start;
    CEILING.store(usize::MAX, Relaxed);
    CEILING_OF_SMALL.store(usize::MAX, Relaxed);
    assert!(
        taken <= limits.time,
        "{what} takes {taken:?}, and may take {:?}",
        limits.time
    );
    made
}

fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a local, and a clock that Linux has.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "the clock of the thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
