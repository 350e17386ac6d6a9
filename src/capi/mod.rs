//! The C ABI. `include/pie_rope.h` is made of these files by cbindgen (`tests/capi_header.rs`), documentation
//! included, so what is documented here is written for who calls from C.
//!
//! The functions are no part of the Rust interface: this module is private, and they are reached by their symbols.
//! Every pointer comes from the caller, who keeps the header's rules; what can be checked is checked here (null,
//! alignment, `struct_size`, lengths), and everything else by the Rust function behind it.
//!
//! Lack of memory is an error. What follows from a number alone (blocks, heads, rows, tables of angles) is asked for
//! where it is needed, in ways that can fail; for what is in proportion to the arrays and objects of a call, [`room`] is
//! asked for before the work begins; and for what is small, [`guard`] asks once for all.

#![allow(
    non_camel_case_types,
    reason = "the names that C sees, where types have no name space"
)]

// In groups, which are in the order in which who reads the header needs them.
mod rope;

mod plan;
mod rotations;

mod layout;

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, Result, memory};

/// It worked.
pub const PIE_ROPE_OK: i32 = 0;
/// An argument is null, of the wrong size, of an unknown value, or does not fit the others.
pub const PIE_ROPE_ERROR_ARGUMENT: i32 = 1;
/// A rope cannot be built from these numbers.
pub const PIE_ROPE_ERROR_ROPE: i32 = 2;
/// A `config.json` cannot be read as a rope.
pub const PIE_ROPE_ERROR_CONFIG: i32 = 3;
/// An edit does not fit the sequence or another edit.
pub const PIE_ROPE_ERROR_EDIT: i32 = 4;
/// No plan can be made from these positions or rows.
pub const PIE_ROPE_ERROR_PLAN: i32 = 5;
/// A layout does not describe rows that lie apart and inside the buffer.
pub const PIE_ROPE_ERROR_LAYOUT: i32 = 6;
/// There is no driver, or no such device.
pub const PIE_ROPE_ERROR_NO_ADAPTER: i32 = 7;
/// A limit of the device, the system or the kernels that the call would go past.
pub const PIE_ROPE_ERROR_LIMIT: i32 = 8;
/// The device, or the host, has not the memory that the call takes. Each call asks before its work, so only where
/// another thread takes the memory in between does the process end.
pub const PIE_ROPE_ERROR_OUT_OF_MEMORY: i32 = 9;
/// The device is gone.
pub const PIE_ROPE_ERROR_DEVICE_LOST: i32 = 10;
/// The device, or its driver, refused something.
pub const PIE_ROPE_ERROR_DEVICE: i32 = 11;
/// A fault of this library: a Rust panic, stopped at the boundary. What the call was to write may be half written.
pub const PIE_ROPE_ERROR_PANIC: i32 = 12;

thread_local! {
    /// The text of this thread's last error.
    static LAST: RefCell<Cow<'static, CStr>> = const { RefCell::new(Cow::Borrowed(c"")) };
}

/// The version of the library, `major.minor.patch`. The string is static.
#[unsafe(no_mangle)]
pub extern "C" fn pie_rope_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// What a status means, in a few words. The string is static, also for a status that does not exist.
#[unsafe(no_mangle)]
pub extern "C" fn pie_rope_status_string(status: i32) -> *const c_char {
    let text: &'static CStr = match status {
        PIE_ROPE_OK => c"ok",
        PIE_ROPE_ERROR_ARGUMENT => c"wrong argument",
        PIE_ROPE_ERROR_ROPE => c"wrong rope",
        PIE_ROPE_ERROR_CONFIG => c"wrong config.json",
        PIE_ROPE_ERROR_EDIT => c"wrong edit",
        PIE_ROPE_ERROR_PLAN => c"wrong plan",
        PIE_ROPE_ERROR_LAYOUT => c"wrong layout",
        PIE_ROPE_ERROR_NO_ADAPTER => c"no device",
        PIE_ROPE_ERROR_LIMIT => c"past a limit",
        PIE_ROPE_ERROR_OUT_OF_MEMORY => c"out of memory",
        PIE_ROPE_ERROR_DEVICE_LOST => c"device lost",
        PIE_ROPE_ERROR_DEVICE => c"device error",
        PIE_ROPE_ERROR_PANIC => c"panic in pie-rope",
        _ => c"unknown status",
    };
    text.as_ptr()
}

/// What went wrong in this thread's last call that failed, in words: which argument, and why. Empty if none has.
/// The string stays as it is until the next call of this thread that fails.
#[unsafe(no_mangle)]
pub extern "C" fn pie_rope_last_error() -> *const c_char {
    // A thread that ends may have lost its text already.
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Runs a call, if there is memory for small things: its error becomes a status and this thread's text, and so does a
/// panic.
fn guard(call: impl FnOnce() -> Result<()>) -> i32 {
    if !memory::is_there(0) {
        set_last_error(Cow::Borrowed(c"out of memory: not even a little is left"));
        return PIE_ROPE_ERROR_OUT_OF_MEMORY;
    }
    catch(call)
}

/// [`guard`] for what takes no memory but for the text of an error.
fn catch(call: impl FnOnce() -> Result<()>) -> i32 {
    // What a panic leaves half done belongs to the caller's objects, who is told so.
    let (status, text) = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return PIE_ROPE_OK,
        Ok(Err(error)) => (status(&error), error.to_string()),
        Err(panic) => (PIE_ROPE_ERROR_PANIC, panic_text(panic)),
    };
    // C ends a string where it finds a zero.
    let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
    set_last_error(Cow::Owned(text));
    status
}

fn set_last_error(text: Cow<'static, CStr>) {
    // A thread that ends may have lost its place for it already.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

fn status(error: &Error) -> i32 {
    match error {
        Error::Rope(_) => PIE_ROPE_ERROR_ROPE,
        Error::Config { .. } => PIE_ROPE_ERROR_CONFIG,
        Error::Edit { .. } => PIE_ROPE_ERROR_EDIT,
        Error::Plan(_) => PIE_ROPE_ERROR_PLAN,
        Error::Layout(_) => PIE_ROPE_ERROR_LAYOUT,
        Error::Argument { .. } => PIE_ROPE_ERROR_ARGUMENT,
        Error::NoAdapter(_) => PIE_ROPE_ERROR_NO_ADAPTER,
        Error::Limit(_) => PIE_ROPE_ERROR_LIMIT,
        Error::OutOfMemory(_) => PIE_ROPE_ERROR_OUT_OF_MEMORY,
        Error::DeviceLost(_) => PIE_ROPE_ERROR_DEVICE_LOST,
        Error::Device(_) => PIE_ROPE_ERROR_DEVICE,
    }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.as_deref().unwrap_or("without a text"))
}

fn refuse<T>(argument: &'static str, problem: impl Into<String>) -> Result<T> {
    Err(Error::Argument {
        argument,
        problem: problem.into(),
    })
}

/// An error of what an argument holds names the argument as well.
fn inside<T>(argument: &'static str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Argument {
            argument: part,
            problem,
        } if part != argument => Error::Argument {
            argument,
            problem: format!("{part}: {problem}"),
        },
        other => other,
    })
}

/// Whether there is memory for `len` items of so many bytes, at most, that a call is about to take as Rust takes it:
/// by allocations that end the process where they fail.
fn room(len: usize, bytes: usize) -> Result<()> {
    room_for(&[(len, bytes)])
}

/// [`room`] for items of several kinds at once.
fn room_for(items: &[(usize, usize)]) -> Result<()> {
    let all = items.iter().map(|&(len, bytes)| len.saturating_mul(bytes));
    memory::room(all.fold(0, usize::saturating_add))
}

// Bytes that each of these takes, at most; `tests/capi_memory` holds a call to them.
/// A token, old or new, whose difference is looked for.
const TOKEN: usize = 300;
/// A row, a cell or a span of a plan.
const ROW: usize = 128;
/// An edit, or a range of cells that shifts: each makes two spans.
const EDIT: usize = 256;
/// A layer of a model, whose rope may be its own, or a table of rotations.
const LAYER: usize = 512;
/// A layer's buffers, in a verb.
const BUFFERS: usize = 512;
/// Heads of a layer that a verb takes together.
const HEADS: usize = 128;
/// A byte of a `config.json`: an object of one entry takes four, and a node of a tree.
const JSON: usize = 192;
/// A thread of the CPU backend.
const THREAD: usize = 8 << 10;

/// A pointer that is neither null nor misaligned.
fn check_pointer<T>(argument: &'static str, pointer: *const T) -> Result<()> {
    if pointer.is_null() {
        return refuse(argument, "it is null");
    }
    if !pointer.is_aligned() {
        return refuse(argument, format!("{pointer:p} is not aligned for its type"));
    }
    Ok(())
}

/// What a handle or a struct points to.
///
/// # Safety
/// Null, or valid for reads for as long as the reference is used.
unsafe fn borrow<'a, T>(argument: &'static str, pointer: *const T) -> Result<&'a T> {
    check_pointer(argument, pointer)?;
    // SAFETY: neither null nor misaligned; the caller answers for the rest.
    Ok(unsafe { &*pointer })
}

/// As [`borrow`], for what the call changes.
///
/// # Safety
/// Null, or valid for reads and writes, by nobody else, for as long as the reference is used.
unsafe fn borrow_mut<'a, T>(argument: &'static str, pointer: *mut T) -> Result<&'a mut T> {
    check_pointer(argument, pointer)?;
    // SAFETY: neither null nor misaligned; the caller answers for the rest.
    Ok(unsafe { &mut *pointer })
}

/// An array. An empty one may be null.
///
/// # Safety
/// Valid for reads of `len` elements for as long as the slice is used.
unsafe fn slice<'a, T>(argument: &'static str, pointer: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check_pointer(argument, pointer)?;
    if len > isize::MAX as usize / size_of::<T>() {
        return refuse(
            argument,
            format!("{len} elements are more than memory holds"),
        );
    }
    // SAFETY: neither null, misaligned nor longer than memory; the caller answers for the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// Fills an array as far as it goes, and says how many there are.
///
/// # Safety
/// `out` is valid for writes of `capacity` elements, `len` for one.
unsafe fn fill<T>(
    argument: &'static str,
    out: *mut T,
    capacity: usize,
    len: *mut usize,
    items: impl ExactSizeIterator<Item = T>,
) -> Result<()> {
    check_pointer("len", len)?;
    if capacity > 0 {
        check_pointer(argument, out)?;
    }
    // SAFETY: checked above; the caller answers for the rest.
    unsafe { *len = items.len() };
    for (index, item) in items.take(capacity).enumerate() {
        // SAFETY: below the capacity. Written, not assigned: what is there need not be initialised.
        unsafe { out.add(index).write(item) };
    }
    Ok(())
}

/// A struct that says its own size first.
///
/// # Safety
/// It is `repr(C)` and starts with a `usize`.
unsafe trait SaysItsSize {}

/// A struct that says its own size.
///
/// # Safety
/// Null, or valid for reads of a `usize`, and of as many bytes as this says.
unsafe fn sized<'a, T: SaysItsSize>(argument: &'static str, pointer: *const T) -> Result<&'a T> {
    check_pointer(argument, pointer)?;
    // The size alone: a caller's struct of another version may be shorter.
    // SAFETY: every such struct starts with it.
    check_size::<T>(argument, unsafe { *pointer.cast::<usize>() })?;
    // SAFETY: as long as the type.
    unsafe { borrow(argument, pointer) }
}

/// An array of structs that each say their size.
///
/// # Safety
/// As [`sized`], `len` times.
unsafe fn sized_slice<'a, T: SaysItsSize>(
    argument: &'static str,
    pointer: *const T,
    len: usize,
) -> Result<&'a [T]> {
    if len > 0 {
        // SAFETY: the caller vouches for the first struct's bytes, as many as it says. If they are this version's, so is
        // the array's step.
        unsafe { sized(argument, pointer) }?;
    }
    // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
    let slice = unsafe { slice(argument, pointer, len) }?;
    for item in slice {
        // SAFETY: every such struct starts with its size.
        check_size::<T>(argument, unsafe { *std::ptr::from_ref(item).cast() })?;
    }
    Ok(slice)
}

fn check_size<T>(argument: &'static str, size: usize) -> Result<()> {
    if size == size_of::<T>() {
        return Ok(());
    }
    refuse(
        argument,
        format!(
            "struct_size is {size}, this version's is {}",
            size_of::<T>()
        ),
    )
}

/// Makes an object and gives it away; `out` is written only if it is made.
///
/// # Safety
/// `out` is null or valid for a write.
unsafe fn give<T>(out: *mut *mut T, make: impl FnOnce() -> Result<T>) -> i32 {
    guard(|| {
        check_pointer("out", out)?;
        let made = Box::into_raw(Box::new(make()?));
        // SAFETY: checked above; the caller answers for the rest.
        unsafe { *out = made };
        Ok(())
    })
}

/// Takes back what [`give`] gave.
///
/// # Safety
/// Null, or given by [`give`] and not taken back before.
unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // There is nobody to tell of a failure.
        catch(|| {
            // SAFETY: the caller gives back what `give` made by `Box::into_raw`, once; null has been seen to.
            drop(unsafe { Box::from_raw(handle) });
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        // SAFETY: a string that ends, of this thread.
        let text = unsafe { CStr::from_ptr(pie_rope_last_error()) };
        text.to_str().unwrap().into()
    }

    #[test]
    fn a_panic_is_a_status() {
        assert_eq!(guard(|| panic!("as {}", "text")), PIE_ROPE_ERROR_PANIC);
        assert_eq!(last_error(), "panic: as text");
        assert_eq!(guard(|| std::panic::panic_any(7)), PIE_ROPE_ERROR_PANIC);
        assert_eq!(last_error(), "panic: without a text");
        let mut out = std::ptr::null_mut::<u8>();
        // SAFETY: a local.
        let status = unsafe { give(&mut out, || panic!("before it is made")) };
        assert_eq!(status, PIE_ROPE_ERROR_PANIC);
        assert!(out.is_null());
    }

    #[test]
    fn the_text_is_that_of_the_error_and_stays() {
        let error = Error::Plan("zero \0 inside".into());
        assert_eq!(guard(|| Err(error)), PIE_ROPE_ERROR_PLAN);
        assert_eq!(guard(|| Ok(())), PIE_ROPE_OK);
        assert_eq!(last_error(), "plan: zero \u{fffd} inside");
        std::thread::spawn(|| assert_eq!(last_error(), ""))
            .join()
            .unwrap();
    }

    #[test]
    fn every_status_has_a_name() {
        let name = |status| {
            // SAFETY: a static string that ends.
            unsafe { CStr::from_ptr(pie_rope_status_string(status)) }
        };
        for status in PIE_ROPE_OK..=PIE_ROPE_ERROR_PANIC {
            assert_ne!(name(status), c"unknown status");
        }
        assert_eq!(name(PIE_ROPE_ERROR_PANIC + 1), c"unknown status");
    }
}
