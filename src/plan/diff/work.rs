//! The work that a comparison has taken, for the test that it is bounded: points of `few` and words
//! of the table.

#[cfg(test)]
thread_local! {
    static DONE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts so many points or words.
#[inline(always)]
pub(super) fn done(_work: usize) {
    #[cfg(test)]
    DONE.set(DONE.get() + _work);
}

/// What was counted since the last call, in this thread.
#[cfg(test)]
pub(super) fn taken() -> usize {
    DONE.replace(0)
}
