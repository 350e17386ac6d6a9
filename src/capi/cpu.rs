//! The verbs on the CPU.

use super::layout::{cache, dst_layout, pie_rope_cache, pie_rope_layout};
use super::rotations::pie_rope_rotations;
use super::{BUFFERS, HEADS, ROW, THREAD, borrow, free, give, guard, room, room_for};
use crate::{CacheLayout, Cpu, KeyLayout, RawLayer, Result, Rotations};

/// The CPU backend. All verbs check all of their arguments before they write: a refused call has written nothing.
pub struct pie_rope_cpu(Cpu);

/// The CPU backend, on `threads` threads; 0: on all cores. One that is kept is cheaper than one for each call.
///
/// Threads do not survive a `fork`: the child makes a backend of its own, of a number of threads that is not 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cpu_new(threads: usize, out: *mut *mut pie_rope_cpu) -> i32 {
    let make = || {
        let many = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            _ => threads,
        };
        room(many.min(Cpu::MAX_THREADS), THREAD)?;
        let cpu = match threads {
            0 => Cpu::new(),
            _ => Cpu::with_threads(threads)?,
        };
        // Now rather than inside the first verb, where they cannot be refused.
        cpu.start()?;
        Ok(pie_rope_cpu(cpu))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Turns keys where they lie: row `src` of every span of the plan. Values are not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cpu_rotate(
    cpu: *const pie_rope_cpu,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cache,
) -> i32 {
    // SAFETY: the caller keeps the header's rules for all three, the cache's buffers among them.
    unsafe { in_place(cpu, rotations, cache, false, Cpu::rotate_raw) }
}

/// Moves rows inside their buffers and turns keys on the way; safe for moves that overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cpu_splice(
    cpu: *const pie_rope_cpu,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cache,
) -> i32 {
    // SAFETY: the caller keeps the header's rules for all three, the cache's buffers among them.
    unsafe { in_place(cpu, rotations, cache, true, Cpu::splice_raw) }
}

/// A verb that works inside its buffers.
///
/// # Safety
/// The header's rules for the three pointers, and those of [`Cpu::rotate_raw`] for the buffers.
unsafe fn in_place(
    cpu: *const pie_rope_cpu,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cache,
    moves: bool,
    verb: unsafe fn(&Cpu, &Rotations, &CacheLayout<'_>, &[RawLayer]) -> Result<()>,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for both; null and alignment are checked in `borrow`.
        let (cpu, rotations) = unsafe { (borrow("cpu", cpu)?, borrow("rotations", rotations)?) };
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (layout, layers) = unsafe { self::cache("cache", cache, moves) }?;
        room_for_verb(&rotations.0, &[(&layout, &layers)])?;
        // SAFETY: the verb checks layouts against lengths; the caller vouches for the buffers.
        unsafe { verb(&cpu.0, &rotations.0, &layout, &layers) }
    })
}

/// Room for what a verb makes of spans, layers and their heads.
fn room_for_verb(rotations: &Rotations, ends: &[(&CacheLayout<'_>, &[RawLayer])]) -> Result<()> {
    let mut items = vec![(rotations.spans().len(), ROW)];
    for (layout, layers) in ends {
        // No more than there are elements, whatever a layout says.
        let heads = |part: &KeyLayout<'_>| part.batch().saturating_mul(part.heads());
        let (keys, values) = (heads(&layout.keys), layout.values.as_ref().map_or(0, heads));
        let heads = layers.iter().map(|layer| {
            let keys = keys.min(layer.keys_len);
            keys.saturating_add(values.min(layer.values_len))
        });
        items.push((layers.len(), BUFFERS));
        items.push((heads.fold(0, usize::saturating_add), HEADS));
    }
    room_for(&items)
}

/// Copies every row that the plan keeps to other buffers and turns keys on the way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cpu_copy(
    cpu: *const pie_rope_cpu,
    rotations: *const pie_rope_rotations,
    src: *const pie_rope_cache,
    dst: *const pie_rope_cache,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for both; null and alignment are checked in `borrow`.
        let (cpu, rotations) = unsafe { (borrow("cpu", cpu)?, borrow("rotations", rotations)?) };
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (src_layout, src) = unsafe { cache("src", src, true) }?;
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (dst_layout, dst) = unsafe { cache("dst", dst, true) }?;
        let (src, dst) = ((&src_layout, &src[..]), (&dst_layout, &dst[..]));
        room_for_verb(&rotations.0, &[src, dst])?;
        // SAFETY: the verb checks layouts against lengths; the caller vouches for the buffers.
        unsafe { cpu.0.copy_raw(&rotations.0, src, dst) }
    })
}

/// Copies every row that the plan keeps to other pages, or another part, of the same buffers: to where the layouts
/// `dst_keys` and `dst_values` (null where the cache has no values) say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cpu_copy_within(
    cpu: *const pie_rope_cpu,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cache,
    dst_keys: *const pie_rope_layout,
    dst_values: *const pie_rope_layout,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for both; null and alignment are checked in `borrow`.
        let (cpu, rotations) = unsafe { (borrow("cpu", cpu)?, borrow("rotations", rotations)?) };
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (src_layout, layers) = unsafe { self::cache("cache", cache, true) }?;
        // SAFETY: the caller keeps the header's rules for layouts; `dst_layout` checks null and sizes.
        let dst_layout = unsafe { dst_layout(&src_layout, dst_keys, dst_values) }?;
        let (src, dst) = ((&src_layout, &layers[..]), (&dst_layout, &layers[..]));
        room_for_verb(&rotations.0, &[src, dst])?;
        // SAFETY: the verb checks layouts against lengths; the caller vouches for the buffers.
        unsafe { cpu.0.copy_raw(&rotations.0, src, dst) }
    })
}

/// Frees a CPU backend. Null is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cpu_free(cpu: *mut pie_rope_cpu) {
    // SAFETY: the caller gives back what `give` gave, once; null is checked in `free`.
    unsafe { free(cpu) }
}
