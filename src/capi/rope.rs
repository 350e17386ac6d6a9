//! The model's rotary encoding.

use std::ffi::c_char;

use super::{
    JSON, LAYER, borrow, check_pointer, fill, free, give, guard, refuse, room, room_for, slice,
};
use crate::rope::MAX_LAYERS;
use crate::{ModelRope, Pairing, Result, Rope, Scaling};

/// Dimensions `i` and `i + n` turn together ("NeoX", "rotate half"; `LLAMA_ROPE_TYPE_NEOX`).
pub const PIE_ROPE_HALF_SPLIT: i32 = 0;
/// Dimensions `2i` and `2i + 1` turn together ("GPT-J"; `LLAMA_ROPE_TYPE_NORM`).
pub const PIE_ROPE_INTERLEAVED: i32 = 1;

/// The rotary encoding of every layer of a model.
pub struct pie_rope_rope(pub(super) ModelRope);

/// A model's ropes from its published `config.json`, a string that ends with a zero. Pairs and offset are those of the
/// checkpoint, which a cache may have changed: see `pie_rope_rope_with_pairing`. Layers that share the keys of another
/// are counted as well; their one buffer is given once, with `pie_rope_rotations_select`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_from_config_json(
    json: *const c_char,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for a string that ends; null and UTF-8 are checked in `text`.
        let json = unsafe { text("json", json) }?;
        room_for(&[(json.len(), JSON), (MAX_LAYERS, LAYER)])?;
        ModelRope::from_config_json(json).map(pie_rope_rope)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// As `pie_rope_rope_from_config_json`, with the frequencies that the model uses when the sequence is `tokens` long:
/// they depend on it under LongRoPE and dynamic NTK. See `pie_rope_rotations_between`. llama.cpp goes by the size of
/// its context, once and for all, however long the text is: give it `n_ctx_seq`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_from_config_json_at(
    json: *const c_char,
    tokens: usize,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for a string that ends; null and UTF-8 are checked in `text`.
        let json = unsafe { text("json", json) }?;
        room_for(&[(json.len(), JSON), (MAX_LAYERS, LAYER)])?;
        ModelRope::from_config_json_at(json, tokens).map(pie_rope_rope)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The same plain rope in each of `layers` layers: dimensions `offset` to `offset + rotary_dim` of every head turn,
/// pair `i` of them with the inverse frequency `theta^(-2i / rotary_dim)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_from_theta(
    theta: f64,
    rotary_dim: usize,
    pairing: i32,
    offset: usize,
    layers: usize,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        uniform(
            Rope::from_theta(theta, rotary_dim)?,
            pairing,
            offset,
            layers,
        )
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// As `pie_rope_rope_from_theta`, from the inverse frequency of each of `pairs` pairs: for scalings of one's own,
/// such as llama.cpp's `freq_scale` (each frequency times it) and `freq_factors` (each divided by its own).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_from_inv_freq(
    inv_freq: *const f64,
    pairs: usize,
    pairing: i32,
    offset: usize,
    layers: usize,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let inv_freq = unsafe { slice("inv_freq", inv_freq, pairs) }?;
        room(pairs, 2 * size_of::<f64>())?;
        uniform(Rope::from_inv_freq(inv_freq)?, pairing, offset, layers)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// As `pie_rope_rope_from_theta`, slowed by YaRN: pairs that make more than `beta_fast` turns over `original_context`
/// tokens keep their frequency, those that make fewer than `beta_slow` have it divided by `factor`, and a ramp joins
/// them. llama.cpp calls these `rope_freq_base`, `yarn_beta_fast`, `n_ctx_orig_yarn`, `yarn_beta_slow`, and
/// `1 / rope_freq_scale`; its `yarn_ext_factor` must be 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_from_yarn(
    theta: f64,
    rotary_dim: usize,
    factor: f64,
    original_context: usize,
    beta_fast: f64,
    beta_slow: f64,
    pairing: i32,
    offset: usize,
    layers: usize,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        let scaling = Scaling::Yarn {
            factor,
            original_max_position_embeddings: original_context,
            beta_fast,
            beta_slow,
            truncate: true,
        };
        let rope = Rope::from_scaling(theta, rotary_dim, &scaling, 0)?;
        uniform(rope, pairing, offset, layers)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// A model whose layer `i` turns as layer `i` of `layers[i]`; null: as one that has no rope.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_from_layers(
    layers: *const *const pie_rope_rope,
    layers_len: usize,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let layers = unsafe { slice("layers", layers, layers_len) }?;
        room(layers.len(), LAYER)?;
        let rope = |(layer, &from): (usize, &*const pie_rope_rope)| {
            if from.is_null() {
                return Ok(None);
            }
            // SAFETY: the caller keeps the header's rules for ropes; alignment is checked in `borrow`.
            let from = unsafe { borrow("layers", from) }?;
            check_layer("layers", &from.0, layer)?;
            Ok(from.0.layer(layer).cloned())
        };
        let layers = layers.iter().enumerate().map(rope);
        let layers: Vec<_> = layers.collect::<Result<_>>()?;
        Ok(pie_rope_rope(ModelRope::from_layers(layers)))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// A copy of a rope with other pairs, for a cache that keeps the dimensions of a head in another order than the
/// checkpoint does. llama.cpp's is that of `llama_model_rope_type`: `LLAMA_ROPE_TYPE_NORM`, which the Llama
/// architecture has though its `config.json` says half-split, is `PIE_ROPE_INTERLEAVED`, all others, for text,
/// `PIE_ROPE_HALF_SPLIT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_with_pairing(
    rope: *const pie_rope_rope,
    pairing: i32,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `rope`; null and alignment are checked in `borrow`.
        let rope = unsafe { borrow("rope", rope) }?;
        let pairing = self::pairing(pairing)?;
        room(rope.0.layers(), LAYER)?;
        let rope = rope.0.clone().map(|rope| rope.with_pairing(pairing));
        Ok(pie_rope_rope(rope))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// A copy of a rope that turns the dimensions from `offset` on, for a cache that keeps something else before them than
/// the checkpoint does. Under multi-head latent attention a `config.json`'s is for rows with the latent dimensions
/// first: it is 0 if the turned ones lie by themselves, or first, and `qk_nope_head_dim` in whole keys.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_with_offset(
    rope: *const pie_rope_rope,
    offset: usize,
    out: *mut *mut pie_rope_rope,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `rope`; null and alignment are checked in `borrow`.
        let rope = unsafe { borrow("rope", rope) }?;
        room(rope.0.layers(), LAYER)?;
        let rope = rope.0.clone().map(|rope| rope.with_offset(offset));
        Ok(pie_rope_rope(rope))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// How many layers the model has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_layers(
    rope: *const pie_rope_rope,
    layers: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `rope`; null and alignment are checked in `borrow`.
        let rope = unsafe { borrow("rope", rope) }?;
        check_pointer("layers", layers)?;
        // SAFETY: checked above; the caller answers for the rest.
        unsafe { *layers = rope.0.layers() };
        Ok(())
    })
}

/// Which dimensions of a head a layer turns, `rotary_dim` of them from `offset` on, and in which pairs; all are 0 for a
/// layer that has no rope.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_window(
    rope: *const pie_rope_rope,
    layer: usize,
    pairing: *mut i32,
    offset: *mut usize,
    rotary_dim: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `rope`; null and alignment are checked in `borrow`.
        let rope = unsafe { borrow("rope", rope) }?;
        check_layer("layer", &rope.0, layer)?;
        check_pointer("pairing", pairing)?;
        check_pointer("offset", offset)?;
        check_pointer("rotary_dim", rotary_dim)?;
        let window = rope.0.layer(layer).map(|rope| {
            let pairing = match rope.pairing() {
                Pairing::HalfSplit => PIE_ROPE_HALF_SPLIT,
                Pairing::Interleaved => PIE_ROPE_INTERLEAVED,
            };
            (pairing, rope.offset(), rope.rotary_dim())
        });
        // SAFETY: checked above; the caller answers for the rest.
        unsafe { (*pairing, *offset, *rotary_dim) = window.unwrap_or_default() };
        Ok(())
    })
}

/// The inverse frequencies of a layer, one for each pair: writes at most `capacity` of them, and to `len` how many
/// there are, 0 for a layer that has no rope. `inv_freq` may be null if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_inv_freq(
    rope: *const pie_rope_rope,
    layer: usize,
    inv_freq: *mut f64,
    capacity: usize,
    len: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `rope`; null and alignment are checked in `borrow`.
        let rope = unsafe { borrow("rope", rope) }?;
        check_layer("layer", &rope.0, layer)?;
        let all = rope.0.layer(layer).map_or(&[][..], Rope::inv_freq);
        // SAFETY: the caller vouches for `capacity` elements and for `len`; null and alignment are checked in `fill`.
        unsafe { fill("inv_freq", inv_freq, capacity, len, all.iter().copied()) }
    })
}

/// Frees a rope. Null is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rope_free(rope: *mut pie_rope_rope) {
    // SAFETY: the caller gives back what `give` gave, once; null is checked in `free`.
    unsafe { free(rope) }
}

fn uniform(rope: Rope, pairing: i32, offset: usize, layers: usize) -> Result<pie_rope_rope> {
    let pairing = self::pairing(pairing)?;
    if layers > usize::from(u16::MAX) {
        return refuse("layers", format!("{layers} are more than {}", u16::MAX));
    }
    room(layers, LAYER)?;
    let rope = rope.with_pairing(pairing).with_offset(offset);
    Ok(pie_rope_rope(ModelRope::uniform(rope, layers)))
}

fn check_layer(argument: &'static str, rope: &ModelRope, layer: usize) -> Result<()> {
    if layer < rope.layers() {
        return Ok(());
    }
    let problem = format!("there is no {layer} in a model of {}", rope.layers());
    refuse(argument, problem)
}

fn pairing(number: i32) -> Result<Pairing> {
    match number {
        PIE_ROPE_HALF_SPLIT => Ok(Pairing::HalfSplit),
        PIE_ROPE_INTERLEAVED => Ok(Pairing::Interleaved),
        other => refuse("pairing", format!("there is no pairing {other}")),
    }
}

/// A string that ends with a zero.
///
/// # Safety
/// Null, or valid for reads up to its zero.
unsafe fn text<'a>(argument: &'static str, text: *const c_char) -> Result<&'a str> {
    check_pointer(argument, text)?;
    // SAFETY: not null; the caller answers for the rest.
    match unsafe { std::ffi::CStr::from_ptr(text) }.to_str() {
        Ok(text) => Ok(text),
        Err(error) => refuse(argument, format!("it is not UTF-8: {error}")),
    }
}
