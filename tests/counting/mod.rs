//! An allocator that counts what a thread takes of memory: what a call costs follows what it has to do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Constant and without destructors, so that counting allocates nothing itself.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn take(bytes: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    BYTES.set(BYTES.get() + bytes);
    LIVE.set(LIVE.get() + bytes as isize);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

fn give(bytes: usize) {
    LIVE.set(LIVE.get() - bytes as isize);
}

// SAFETY: every call goes on to the system's allocator as it came; counting touches no memory that is allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As if old and new were there at once, which they may be.
        take(size);
        give(layout.size());
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a call has taken.
#[allow(dead_code, reason = "each test counts by one of them")]
pub struct Taken {
    /// How often it has asked for memory.
    pub allocations: usize,
    /// For how much, in all.
    pub bytes: usize,
    /// How much of it there was at once.
    pub peak: usize,
}

/// What a call returns, and what it has taken on this thread.
pub fn taken<T>(run: impl FnOnce() -> T) -> (T, Taken) {
    let (allocations, bytes, live) = (ALLOCATIONS.get(), BYTES.get(), LIVE.get());
    PEAK.set(live);
    let result = run();
    let taken = Taken {
        allocations: ALLOCATIONS.get() - allocations,
        bytes: BYTES.get() - bytes,
        peak: (PEAK.get() - live) as usize,
    };
    (result, taken)
}
