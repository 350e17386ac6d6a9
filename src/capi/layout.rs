//! Where rows lie, and the buffers that they lie in.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::{
    BUFFERS, SaysItsSize, check_pointer, check_size, guard, inside, refuse, room, sized,
    sized_slice,
};
use crate::{Axis, CacheLayout, ElementType, KeyLayout, RawLayer, Result, Strides};

/// IEEE binary32.
pub const PIE_ROPE_F32: i32 = 0;
/// IEEE binary16.
pub const PIE_ROPE_F16: i32 = 1;
/// bfloat16: the upper half of a binary32.
pub const PIE_ROPE_BF16: i32 = 2;

/// One axis of a layout.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_axis {
    /// How many indices.
    pub len: usize,
    /// Distance between two neighbours, in elements. Of no account if there is one index.
    pub stride: usize,
}

/// How the keys, or the values, of a layer lie in their buffer. All counts and strides are in elements, never in
/// bytes:
///
///     element(batch, head, row, dim) = offset + batch * batch.stride + block(row) * blocks.stride
///         + (row % rows.len) * rows.stride + head * heads.stride + (dim / pack) * packs.stride + dim % pack
///     block(row) = table[row / rows.len], or row / rows.len without a table
///
/// A contiguous cache is one block that holds every row, a head vector without gaps one pack. Rows that overlap are
/// refused.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_layout {
    /// `sizeof(pie_rope_layout)`.
    pub struct_size: usize,
    /// `PIE_ROPE_F32`, `PIE_ROPE_F16` or `PIE_ROPE_BF16`.
    pub element: i32,
    /// Elements before the first one.
    pub offset: usize,
    /// Sequences that lie side by side and are edited alike.
    pub batch: pie_rope_axis,
    /// Blocks (pages).
    pub blocks: pie_rope_axis,
    /// Rows inside a block.
    pub rows: pie_rope_axis,
    /// Heads.
    pub heads: pie_rope_axis,
    /// Packs of neighbouring dimensions.
    pub packs: pie_rope_axis,
    /// Dimensions in a pack, contiguous in memory.
    pub pack: usize,
    /// The block table, in host memory, also for CUDA; null if blocks are in order. Read during the call alone.
    pub table: *const u32,
    /// How many entries it has.
    pub table_len: usize,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_layout {}

/// The buffers of one layer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_layer {
    /// `sizeof(pie_rope_layer)`.
    pub struct_size: usize,
    /// The key buffer.
    pub keys: *mut c_void,
    /// Its length in elements.
    pub keys_len: usize,
    /// The value buffer: null if there are none, equal to `keys` if one buffer holds both.
    pub values: *mut c_void,
    /// Its length in elements.
    pub values_len: usize,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_layer {}

/// A cache in the memory of the CPU: every layer, and how it lies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_cache {
    /// `sizeof(pie_rope_cache)`.
    pub struct_size: usize,
    /// How the keys of every layer lie.
    pub keys: *const pie_rope_layout,
    /// How the values lie, in elements of the keys' type: null if there are none, or the keys' own layout again.
    pub values: *const pie_rope_layout,
    /// The layers, in the order of the model, no buffer twice. To copy from a layer, it is only read.
    pub layers: *const pie_rope_layer,
    /// How many.
    pub layers_len: usize,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_cache {}

/// Fills `layout`, whose `struct_size` the caller has set, with `[batch, heads, rows, dim]`, as Hugging Face
/// transformers keeps it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_bhsd(
    element: i32,
    batch: usize,
    heads: usize,
    rows: usize,
    dim: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            KeyLayout::bhsd(element, [batch, heads, rows, dim])
        })
    }
}

/// Fills `layout`, whose `struct_size` the caller has set, with `[batch, rows, heads, dim]`, as FlashAttention and
/// llama.cpp keep it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_bshd(
    element: i32,
    batch: usize,
    rows: usize,
    heads: usize,
    dim: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            KeyLayout::bshd(element, [batch, rows, heads, dim])
        })
    }
}

/// Fills `layout`, whose `struct_size` the caller has set, with pages `[blocks, block, heads, dim]`, as vLLM and
/// FlashInfer (NHD) keep them. Set `table` and `table_len` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_nhd(
    element: i32,
    blocks: usize,
    block: usize,
    heads: usize,
    dim: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            KeyLayout::nhd(element, [blocks, block, heads, dim])
        })
    }
}

/// Fills `layout`, whose `struct_size` the caller has set, with pages `[blocks, heads, block, dim]`, as TensorRT-LLM
/// and FlashInfer (HND) keep them. Set `table` and `table_len` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_hnd(
    element: i32,
    blocks: usize,
    heads: usize,
    block: usize,
    dim: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            KeyLayout::hnd(element, [blocks, heads, block, dim])
        })
    }
}

/// Fills `layout`, whose `struct_size` the caller has set, with `[slots, heads, dim]`, a row in each, as SGLang keeps
/// it. Set `table` (a slot for each row) and `table_len` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_slots(
    element: i32,
    slots: usize,
    heads: usize,
    dim: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            KeyLayout::slots(element, [slots, heads, dim])
        })
    }
}

/// Fills `layout`, whose `struct_size` the caller has set, with keys `[blocks, heads, packs, block, x]`, `packs * x`
/// dimensions to a head, as vLLM's older kernels keep them. Set `table` and `table_len` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_x_packed(
    element: i32,
    blocks: usize,
    heads: usize,
    packs: usize,
    block: usize,
    x: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            KeyLayout::x_packed(element, [blocks, heads, packs, block, x])
        })
    }
}

/// Fills `layout`, whose `struct_size` the caller has set, with values `[heads, dim, rows]`: rows innermost, as
/// llama.cpp keeps values without flash attention.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_layout_transposed(
    element: i32,
    heads: usize,
    dim: usize,
    rows: usize,
    layout: *mut pie_rope_layout,
) -> i32 {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `describe` checks that they are this version's.
    unsafe {
        describe(layout, element, |element| {
            // Packs of one dimension.
            KeyLayout::x_packed(element, [1, heads, dim, rows, 1])
        })
    }
}

/// Writes a layout where the caller wants it.
///
/// # Safety
/// `out` is null, or valid for reads and writes of as many bytes as its `struct_size` says.
unsafe fn describe(
    out: *mut pie_rope_layout,
    element: i32,
    make: impl FnOnce(ElementType) -> KeyLayout<'static>,
) -> i32 {
    guard(|| {
        check_pointer("layout", out)?;
        // The size alone is set; the rest need not be initialised.
        // SAFETY: `check_pointer` has seen it; the caller vouches for its size at least.
        check_size::<pie_rope_layout>("layout", unsafe { (*out).struct_size })?;
        let made = make(element_type(element)?);
        let axis = |Axis { len, stride }| pie_rope_axis { len, stride };
        let layout = pie_rope_layout {
            struct_size: size_of::<pie_rope_layout>(),
            element,
            offset: made.offset,
            batch: axis(made.batch),
            blocks: axis(made.blocks),
            rows: axis(made.rows),
            heads: axis(made.heads),
            packs: axis(made.packs),
            pack: made.pack,
            table: std::ptr::null(),
            table_len: 0,
        };
        // SAFETY: as long as the type.
        unsafe { out.write(layout) };
        Ok(())
    })
}

pub(super) fn element_type(element: i32) -> Result<ElementType> {
    match element {
        PIE_ROPE_F32 => Ok(ElementType::F32),
        PIE_ROPE_F16 => Ok(ElementType::F16),
        PIE_ROPE_BF16 => Ok(ElementType::BF16),
        other => refuse("element", format!("there is no element type {other}")),
    }
}

/// # Safety
/// Null, or a layout whose table is valid for reads, for as long as the result is used.
unsafe fn key_layout<'a>(
    argument: &'static str,
    layout: *const pie_rope_layout,
) -> Result<KeyLayout<'a>> {
    // SAFETY: the caller vouches for as many bytes as `struct_size` says; `sized` checks that they are this version's.
    let layout = unsafe { sized(argument, layout) }?;
    let axis = |axis: pie_rope_axis| Axis::new(axis.len, axis.stride);
    let strides = Strides {
        offset: layout.offset,
        batch: axis(layout.batch),
        blocks: axis(layout.blocks),
        rows: axis(layout.rows),
        heads: axis(layout.heads),
        packs: axis(layout.packs),
        pack: layout.pack,
    };
    let element = inside(argument, element_type(layout.element))?;
    let made = KeyLayout::strided(element, strides);
    if layout.table.is_null() && layout.table_len == 0 {
        return Ok(made);
    }
    // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
    let table = unsafe { super::slice("table", layout.table, layout.table_len) };
    Ok(made.with_table(inside(argument, table)?))
}

/// The layouts of keys and values, by the names that the caller knows them by.
///
/// # Safety
/// As [`key_layout`], for both.
pub(super) unsafe fn cache_layout<'a>(
    (keys_name, keys): (&'static str, *const pie_rope_layout),
    (values_name, values): (&'static str, *const pie_rope_layout),
) -> Result<CacheLayout<'a>> {
    // SAFETY: the caller keeps the header's rules for layouts; `key_layout` checks null and sizes.
    let keys = unsafe { key_layout(keys_name, keys) }?;
    if values.is_null() {
        return Ok(CacheLayout::keys_only(keys));
    }
    // SAFETY: the caller keeps the header's rules for layouts; `key_layout` checks null and sizes.
    let values = unsafe { key_layout(values_name, values) }?;
    Ok(CacheLayout::new(keys, values))
}

/// The layout of a cache's destination in its own buffers.
///
/// # Safety
/// As [`cache_layout`].
pub(super) unsafe fn dst_layout<'a>(
    src: &CacheLayout<'_>,
    keys: *const pie_rope_layout,
    values: *const pie_rope_layout,
) -> Result<CacheLayout<'a>> {
    // SAFETY: the caller keeps the header's rules for layouts; `cache_layout` checks null and sizes.
    let dst = unsafe { cache_layout(("dst_keys", keys), ("dst_values", values)) }?;
    match (&src.values, &dst.values) {
        (Some(_), None) => refuse("dst_values", "it is null, and the cache has values"),
        (None, Some(_)) => refuse("dst_values", "the cache has no values"),
        _ => Ok(dst),
    }
}

/// The layout and the layers of a cache; `moves`: of one whose rows move, and values with them.
///
/// # Safety
/// Null, or valid for reads with all that it points to but for the layers' buffers, for as long as the result is
/// used.
pub(super) unsafe fn cache<'a>(
    argument: &'static str,
    cache: *const pie_rope_cache,
    moves: bool,
) -> Result<(CacheLayout<'a>, Vec<RawLayer>)> {
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
        keys: layer.keys.addr() as u64,
        keys_len: layer.keys_len,
        values: layer.values.addr() as u64,
        values_len: layer.values_len,
    });
    inside(argument, check_buffers(buffers, &layout, moves))?;
    let raw = |layer: &pie_rope_layer| RawLayer {
        // An empty buffer may be null, which for values would mean that there are none.
        keys: if layer.keys.is_null() {
            NonNull::<u64>::dangling().as_ptr().cast()
        } else {
            layer.keys
        },
        keys_len: layer.keys_len,
        values: layer.values,
        values_len: layer.values_len,
    };
    Ok((layout, layers.iter().map(raw).collect()))
}

/// The buffers of a layer, wherever they are.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) keys: u64,
    pub(super) keys_len: usize,
    pub(super) values: u64,
    pub(super) values_len: usize,
}

/// Refuses what cannot be the buffers of a cache: an address that is none, values that are missing, and keys that two
/// layers share, which would turn twice.
pub(super) fn check_buffers(
    layers: impl Iterator<Item = Buffers> + Clone,
    layout: &CacheLayout<'_>,
    moves: bool,
) -> Result<()> {
    let element = layout.keys.element();
    for (index, layer) in layers.clone().enumerate() {
        check_buffer(index, "keys", layer.keys, layer.keys_len, element)?;
        check_buffer(index, "values", layer.values, layer.values_len, element)?;
        if moves && layout.values.is_some() && layer.values == 0 {
            let problem = "values are null, and the cache has a layout for them";
            return refuse("layers", format!("layer {index}: {problem}"));
        }
    }
    let keys = layers.enumerate().filter(|(_, layer)| layer.keys != 0);
    let mut keys: Vec<_> = keys.map(|(index, layer)| (layer.keys, index)).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => refuse(
            "layers",
            format!(
                "layers {} and {} have one key buffer, which would turn twice",
                pair[0].1, pair[1].1
            ),
        ),
        None => Ok(()),
    }
}

/// Refuses an address that cannot be that of a buffer.
fn check_buffer(
    layer: usize,
    which: &str,
    address: u64,
    len: usize,
    element: ElementType,
) -> Result<()> {
    if address == 0 && len > 0 {
        return refuse(
            "layers",
            format!("layer {layer}, {which}: it is null, and {len} elements long"),
        );
    }
    if !address.is_multiple_of(element.size() as u64) {
        return refuse(
            "layers",
            format!("layer {layer}, {which}: {address:#x} is not aligned for {element}"),
        );
    }
    Ok(())
}
