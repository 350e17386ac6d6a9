//! The verbs on an NVIDIA GPU.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::layout::{
    Buffers, cache_layout, check_buffers, dst_layout, element_type, pie_rope_layout,
};
use super::rotations::pie_rope_rotations;
use super::{
    BUFFERS, LAYER, ROW, SaysItsSize, borrow, check_pointer, free, give, guard, inside, refuse,
    room, room_for, sized, sized_slice,
};
use crate::{CacheLayout, Cuda, CudaRawLayer, CudaWorkspace, Result, Rotations};

/// The CUDA backend of one context. All verbs check all of their arguments before they launch anything: a refused
/// call has written nothing.
pub struct pie_rope_cuda(Cuda);

/// The buffers of one layer in device memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_cuda_layer {
    /// `sizeof(pie_rope_cuda_layer)`.
    pub struct_size: usize,
    /// The key buffer: a `CUdeviceptr`.
    pub keys: u64,
    /// Its length in elements; `SIZE_MAX`: not checked.
    pub keys_len: usize,
    /// The value buffer: 0 if there are none, equal to `keys` if one buffer holds both.
    pub values: u64,
    /// Its length in elements; `SIZE_MAX`: not checked.
    pub values_len: usize,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_cuda_layer {}

/// A cache in device memory: every layer, and how it lies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_cuda_cache {
    /// `sizeof(pie_rope_cuda_cache)`.
    pub struct_size: usize,
    /// How the keys of every layer lie.
    pub keys: *const pie_rope_layout,
    /// How the values lie, in elements of the keys' type: null if there are none, or the keys' own layout again.
    pub values: *const pie_rope_layout,
    /// The layers, in host memory, in the order of the model, no buffer twice.
    pub layers: *const pie_rope_cuda_layer,
    /// How many.
    pub layers_len: usize,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_cuda_cache {}

/// The CUDA backend on the context that is current on the calling thread (the runtime API's, after any call of it
/// that touches the device). The context must live as long as the backend; it is not retained.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_new_current(out: *mut *mut pie_rope_cuda) -> i32 {
    let make = || {
        // The call after it would panic where there is no driver.
        crate::cuda::check_driver()?;
        let Some(context) = result::ctx::get_current()? else {
            return refuse("context", "no CUDA context is current on this thread");
        };
        // SAFETY: the caller keeps it.
        unsafe { Cuda::on_context(context) }.map(pie_rope_cuda)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The CUDA backend on the primary context of device `ordinal`, which it retains.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_open(ordinal: usize, out: *mut *mut pie_rope_cuda) -> i32 {
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, || Cuda::open(ordinal).map(pie_rope_cuda)) }
}

/// Loads the kernels for an element type, which the first call would do else. Needed before the first call that a
/// stream captures.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_prepare(cuda: *const pie_rope_cuda, element: i32) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `cuda`; null and alignment are checked in `borrow`.
        unsafe { borrow("cuda", cuda) }?
            .0
            .prepare(element_type(element)?)
    })
}

/// Bytes of workspace that any verb on `src` takes at most with these rotations, 0 for most edits. `dst`: where a
/// copy goes to; null for other verbs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_workspace_len(
    cuda: *const pie_rope_cuda,
    rotations: *const pie_rope_rotations,
    src: *const pie_rope_cuda_cache,
    dst: *const pie_rope_cuda_cache,
    len: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `cuda`; null and alignment are checked in `borrow`.
        let cuda = unsafe { borrow("cuda", cuda) }?;
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        check_pointer("len", len)?;
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (layout, layers) = unsafe { cache("src", src, false) }?;
        let mut layouts = vec![&layout];
        let other = if dst.is_null() {
            None
        } else {
            // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
            Some(unsafe { cache("dst", dst, false) }?)
        };
        layouts.extend(other.as_ref().map(|(layout, _)| layout));
        let needed = cuda.0.workspace_len(&rotations.0, &layouts, layers.len());
        // SAFETY: checked above; the caller answers for the rest.
        unsafe { *len = needed };
        Ok(())
    })
}

/// As `pie_rope_cpu_rotate`, launched into `stream` (a `CUstream` or `cudaStream_t` of the backend's context; null:
/// the default one). `workspace` is a device address, a multiple of 16, of `workspace_len` bytes; 0 and 0 if
/// `pie_rope_cuda_workspace_len` asks for none. The call waits for nothing; what it takes by pointer in host memory
/// may be freed when it returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_rotate(
    cuda: *const pie_rope_cuda,
    stream: *mut c_void,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cuda_cache,
    workspace: u64,
    workspace_len: usize,
) -> i32 {
    let space = space(workspace, workspace_len);
    // SAFETY: the caller keeps the header's rules for all of them, the cache's buffers among them.
    unsafe {
        in_place(
            cuda,
            stream,
            rotations,
            cache,
            false,
            space,
            Cuda::rotate_raw,
        )
    }
}

/// As `pie_rope_cpu_splice`, launched into `stream`. See `pie_rope_cuda_rotate` for the arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_splice(
    cuda: *const pie_rope_cuda,
    stream: *mut c_void,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cuda_cache,
    workspace: u64,
    workspace_len: usize,
) -> i32 {
    let space = space(workspace, workspace_len);
    // SAFETY: the caller keeps the header's rules for all of them, the cache's buffers among them.
    unsafe {
        in_place(
            cuda,
            stream,
            rotations,
            cache,
            true,
            space,
            Cuda::splice_raw,
        )
    }
}

/// A verb of the backend that works inside its buffers.
type InPlace = unsafe fn(
    &Cuda,
    sys::CUstream,
    &Rotations,
    &CacheLayout<'_>,
    &[CudaRawLayer],
    CudaWorkspace,
) -> Result<()>;

/// Launches one.
///
/// # Safety
/// The header's rules for the pointers, and those of [`Cuda::rotate_raw`] for stream, buffers and workspace.
unsafe fn in_place(
    cuda: *const pie_rope_cuda,
    stream: *mut c_void,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cuda_cache,
    moves: bool,
    workspace: CudaWorkspace,
    verb: InPlace,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `cuda`; null and alignment are checked in `borrow`.
        let cuda = unsafe { borrow("cuda", cuda) }?;
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (layout, layers) = unsafe { self::cache("cache", cache, moves) }?;
        let stream: sys::CUstream = stream.cast();
        room_for_words(&rotations.0, layers.len(), &[&layout])?;
        // SAFETY: the verb checks layouts against lengths; the caller vouches for stream, buffers and workspace.
        unsafe { verb(&cuda.0, stream, &rotations.0, &layout, &layers, workspace) }
    })
}

/// As `pie_rope_cpu_copy`, launched into `stream`. See `pie_rope_cuda_rotate` for the arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_copy(
    cuda: *const pie_rope_cuda,
    stream: *mut c_void,
    rotations: *const pie_rope_rotations,
    src: *const pie_rope_cuda_cache,
    dst: *const pie_rope_cuda_cache,
    workspace: u64,
    workspace_len: usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `cuda`; null and alignment are checked in `borrow`.
        let cuda = unsafe { borrow("cuda", cuda) }?;
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (src_layout, src) = unsafe { cache("src", src, true) }?;
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (dst_layout, dst) = unsafe { cache("dst", dst, true) }?;
        let (src, dst) = ((&src_layout, &src[..]), (&dst_layout, &dst[..]));
        let workspace = space(workspace, workspace_len);
        room_for_words(
            &rotations.0,
            src.1.len() + dst.1.len(),
            &[&src_layout, &dst_layout],
        )?;
        // SAFETY: the verb checks layouts against lengths; the caller vouches for stream, buffers and workspace.
        unsafe {
            cuda.0
                .copy_raw(stream.cast(), &rotations.0, src, dst, workspace)
        }
    })
}

/// As `pie_rope_cpu_copy_within`, launched into `stream`. See `pie_rope_cuda_rotate` for the arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_copy_within(
    cuda: *const pie_rope_cuda,
    stream: *mut c_void,
    rotations: *const pie_rope_rotations,
    cache: *const pie_rope_cuda_cache,
    dst_keys: *const pie_rope_layout,
    dst_values: *const pie_rope_layout,
    workspace: u64,
    workspace_len: usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `cuda`; null and alignment are checked in `borrow`.
        let cuda = unsafe { borrow("cuda", cuda) }?;
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        // SAFETY: the caller keeps the header's rules for caches; `cache` checks null and sizes.
        let (src_layout, layers) = unsafe { self::cache("cache", cache, true) }?;
        // SAFETY: the caller keeps the header's rules for layouts; `dst_layout` checks null and sizes.
        let dst_layout = unsafe { dst_layout(&src_layout, dst_keys, dst_values) }?;
        let (src, dst) = ((&src_layout, &layers[..]), (&dst_layout, &layers[..]));
        let workspace = space(workspace, workspace_len);
        room_for_words(&rotations.0, layers.len(), &[&src_layout, &dst_layout])?;
        // SAFETY: the verb checks layouts against lengths; the caller vouches for stream, buffers and workspace.
        unsafe {
            cuda.0
                .copy_raw(stream.cast(), &rotations.0, src, dst, workspace)
        }
    })
}

/// Frees a CUDA backend. Null is fine. Its kernels stay loaded as long as the context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_cuda_free(cuda: *mut pie_rope_cuda) {
    // SAFETY: the caller gives back what `give` gave, once; null is checked in `free`.
    unsafe { free(cuda) }
}

fn space(address: u64, len: usize) -> CudaWorkspace {
    CudaWorkspace { address, len }
}

/// Room for the words of a call: spans, angles, block tables of as many rows, gathered and put together.
fn room_for_words(
    rotations: &Rotations,
    layers: usize,
    layouts: &[&CacheLayout<'_>],
) -> Result<()> {
    const WORD: usize = 32;
    let angles = rotations.tables().iter();
    let angles: usize = angles.map(|table| table.as_slice().len()).sum();
    let parts = layouts
        .iter()
        .flat_map(|layout| [Some(layout.keys), layout.values].into_iter().flatten());
    let blocks: usize = parts.map(|part| part.table.map_or(0, <[u32]>::len)).sum();
    let tables = rotations.tables().len();
    room_for(&[
        (rotations.spans().len(), ROW),
        (tables, LAYER),
        (layers, BUFFERS),
        (angles.saturating_add(blocks), WORD),
    ])
}

/// The layout and the layers of a cache; `moves`: of one whose rows move, and values with them.
///
/// # Safety
/// Null, or valid for reads with all that it points to in host memory, for as long as the result is used.
unsafe fn cache<'a>(
    argument: &'static str,
    cache: *const pie_rope_cuda_cache,
    moves: bool,
) -> Result<(CacheLayout<'a>, Vec<CudaRawLayer>)> {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `sized` checks that they are this version's.
    let cache = unsafe { sized(argument, cache) }?;
    // SAFETY: the caller keeps the header's rules for layouts; `cache_layout` checks null and sizes.
    let layout = unsafe { cache_layout(("keys", cache.keys), ("values", cache.values)) };
    let layout = inside(argument, layout)?;
    // SAFETY: the caller vouches for so many structs; `sized_slice` checks the size that each says.
    let layers = unsafe { sized_slice("layers", cache.layers, cache.layers_len) };
    let layers = inside(argument, layers)?;
    room(layers.len(), BUFFERS)?;
    let buffers = layers.iter().map(|layer| Buffers {
        keys: layer.keys,
        keys_len: layer.keys_len,
        values: layer.values,
        values_len: layer.values_len,
    });
    inside(argument, check_buffers(buffers, &layout, moves))?;
    let raw = |layer: &pie_rope_cuda_layer| CudaRawLayer {
        keys: layer.keys,
        keys_len: layer.keys_len,
        values: layer.values,
        values_len: layer.values_len,
    };
    Ok((layout, layers.iter().map(raw).collect()))
}
