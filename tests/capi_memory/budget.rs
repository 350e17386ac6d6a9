//! Calls under budgets of memory, by an allocator that refuses a thread what is past its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

use super::{OK, OUT_OF_MEMORY};

/// How many peaks of a call are known; of more, every second one is left out.
const PEAKS: usize = 1024;

thread_local! {
    // Constant and without destructors, so that counting allocates nothing itself.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static BUDGET: Cell<isize> = const { Cell::new(isize::MAX) };
    /// Whenever more was taken than ever before: how much.
    static KNOWN: [Cell<isize>; PEAKS] = const { [const { Cell::new(0) }; PEAKS] };
    static LEN: Cell<usize> = const { Cell::new(0) };
    /// One in so many peaks is known.
    static EVERY: Cell<usize> = const { Cell::new(1) };
    static SEEN: Cell<usize> = const { Cell::new(0) };
}

struct Limited;

/// Whether so many bytes more may be had.
fn take(bytes: usize) -> bool {
    let live = LIVE.get() + bytes as isize;
    if live > BUDGET.get() {
        return false;
    }
    LIVE.set(live);
    if live > PEAK.get() {
        PEAK.set(live);
        peaked(live);
    }
    true
}

fn peaked(live: isize) {
    SEEN.set(SEEN.get() + 1);
    if !SEEN.get().is_multiple_of(EVERY.get()) {
        return;
    }
    KNOWN.with(|known| {
        if LEN.get() == PEAKS {
            for i in 0..PEAKS / 2 {
                known[i].set(known[2 * i].get());
            }
            LEN.set(PEAKS / 2);
            EVERY.set(2 * EVERY.get());
        }
        known[LEN.get()].set(live);
        LEN.set(LEN.get() + 1);
    });
}

fn give(bytes: usize) {
    LIVE.set(LIVE.get() - bytes as isize);
}

// SAFETY: every call goes on to the system's allocator as it came, or is refused as an allocator may; counting touches
// no memory that is allocated.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return null_mut();
        }
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
        if !take(size) {
            return null_mut();
        }
        give(layout.size());
        // SAFETY: `memory` came from `System`, with this layout, as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static LIMITED: Limited = Limited;

/// What the text of the last error may take, which stays.
const TEXT: usize = 1 << 10;

/// A call with so many bytes. Its status, each peak of what it takes, and the last of them.
fn with(budget: isize, call: &dyn Fn() -> i32) -> (i32, Vec<isize>, isize) {
    let before = LIVE.get();
    PEAK.set(before);
    LEN.set(0);
    SEEN.set(0);
    EVERY.set(1);
    BUDGET.set(before.saturating_add(budget));
    let status = call();
    BUDGET.set(isize::MAX);
    // What is taken from here on is no peak.
    let most = PEAK.replace(isize::MAX) - before;
    let peaks = |known: &[Cell<isize>; PEAKS]| {
        let known = known[..LEN.get()].iter();
        known.map(|live| live.get() - before).collect()
    };
    (status, KNOWN.with(peaks), most)
}

/// A call that succeeds, under budgets: none; for each peak of what it takes, one byte less; and all of it.
pub fn run(name: &str, call: &dyn Fn() -> i32) {
    returns(OK, name, call);
}

/// [`run`] for a call that returns some status where there is memory.
pub fn returns(expected: i32, name: &str, call: &dyn Fn() -> i32) {
    gives_back_elsewhere(expected, name, &|| {
        let before = LIVE.get();
        let status = call();
        let left = LIVE.get() - before;
        assert!(left.unsigned_abs() < TEXT, "{name}: what is made is freed");
        status
    });
}

/// [`returns`] for a call whose memory other threads give back, some of it.
pub fn gives_back_elsewhere(expected: i32, name: &str, call: &dyn Fn() -> i32) {
    let (status, peaks, most) = with(isize::MAX, call);
    assert_eq!(status, expected, "{name}");
    println!("{name}: {most} bytes, {} peaks", peaks.len());
    assert_eq!(with(0, call).0, OUT_OF_MEMORY, "{name}");
    let mut refused = 0;
    for peak in peaks {
        let status = with(peak - 1, call).0;
        assert!(
            [expected, OUT_OF_MEMORY].contains(&status),
            "{name}: {status}"
        );
        refused += usize::from(status == OUT_OF_MEMORY);
    }
    assert!(refused > 0, "{name}: nothing was refused");
    assert_eq!(with(most, call).0, expected, "{name}");
}
