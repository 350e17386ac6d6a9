//! Memory that may not be there, asked for in ways that can fail.
//!
//! Rust ends the process where there is no memory for a list or a text that it takes by itself. So what may be large is
//! asked for here, and each of these requests leaves [`SPARE`] bytes for what is small.

use std::collections::HashSet;
use std::hash::Hash;

use crate::{Error, Result};

/// What a call takes in small pieces at most, without asking; `tests/capi_memory` holds calls to it.
const SPARE: usize = 16 << 10;

/// Whether there are so many bytes, and the spare ones besides. Asked for at once, and given back.
pub(crate) fn is_there(bytes: usize) -> bool {
    let mut room: Vec<u8> = Vec::new();
    let reserved = room.try_reserve_exact(bytes.saturating_add(SPARE));
    // Else the compiler sees that nothing is done with it, and leaves out the question.
    std::hint::black_box(&mut room);
    reserved.is_ok()
}

/// [`is_there`], or why not.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn room(bytes: usize) -> Result<()> {
    if is_there(bytes) {
        return Ok(());
    }
    Err(Error::OutOfMemory(format!("{bytes} bytes")))
}

/// An empty list with room for `len` items.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn list<T>(len: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    let reserved = list.try_reserve_exact(len);
    with_spare::<T, _>(reserved.ok().map(|()| list), len)
}

/// A list of `len` items that are zero, as the system gives them: no page is touched before it is written to.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn zeroed<T: bytemuck::Zeroable>(len: usize) -> Result<Vec<T>> {
    with_spare::<T, _>(bytemuck::allocation::try_zeroed_vec(len).ok(), len)
}

/// An empty set with room for `len` items.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn set<T: Eq + Hash>(len: usize) -> Result<HashSet<T>> {
    let mut set = HashSet::new();
    let reserved = set.try_reserve(len);
    with_spare::<T, _>(reserved.ok().map(|()| set), len)
}

/// What holds `len` items, if there is memory for it and for small pieces besides.
fn with_spare<T, L>(made: Option<L>, len: usize) -> Result<L> {
    // Given back before the error takes memory for its text.
    let made = made.filter(|_| is_there(0));
    made.ok_or_else(|| Error::OutOfMemory(format!("{len} items of {} bytes", size_of::<T>())))
}
