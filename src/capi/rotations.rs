//! A plan made ready for the kernels.

use super::plan::pie_rope_plan;
use super::rope::pie_rope_rope;
use super::{LAYER, ROW, borrow, borrow_mut, free, give, guard, room, room_for, slice};
use crate::Rotations;

/// A plan made ready for the kernels, for one model. Made once, used for all of its layers.
pub struct pie_rope_rotations(pub(super) Rotations);

/// The rotations of a plan. A verb then takes exactly the model's layers, in order; see `pie_rope_rotations_select`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_new(
    plan: *const pie_rope_plan,
    rope: *const pie_rope_rope,
    out: *mut *mut pie_rope_rotations,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for both; null and alignment are checked in `borrow`.
        let (plan, rope) = unsafe { (borrow("plan", plan)?, borrow("rope", rope)?) };
        room(rope.0.layers(), LAYER)?;
        Rotations::for_model(&plan.0, &rope.0).map(pie_rope_rotations)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// For a model whose frequencies changed between the time the keys were encoded and now (LongRoPE's switch, dynamic
/// NTK): rows whose position stays turn as well.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_between(
    plan: *const pie_rope_plan,
    old_rope: *const pie_rope_rope,
    new_rope: *const pie_rope_rope,
    out: *mut *mut pie_rope_rotations,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `plan`; null and alignment are checked in `borrow`.
        let plan = unsafe { borrow("plan", plan) }?;
        // SAFETY: the caller keeps the header's rules for both; null and alignment are checked in `borrow`.
        let (old, new) = unsafe { (borrow("old_rope", old_rope)?, borrow("new_rope", new_rope)?) };
        room(new.0.layers(), LAYER)?;
        Rotations::between(&plan.0, &old.0, &new.0).map(pie_rope_rotations)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The same ropes with another plan, in the same memory. No other thread may use the rotations meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_update(
    rotations: *mut pie_rope_rotations,
    plan: *const pie_rope_plan,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `rotations` and has it alone; null and alignment are checked in `borrow_mut`.
        let rotations = unsafe { borrow_mut("rotations", rotations) }?;
        // SAFETY: the caller keeps the header's rules for `plan`; null and alignment are checked in `borrow`.
        rotations.0.update(&unsafe { borrow("plan", plan) }?.0)
    })
}

/// The same rotations for some of the model's layers, in the order given: for a pipeline stage, or a group of layers
/// with a common layout.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_select(
    rotations: *const pie_rope_rotations,
    layers: *const usize,
    layers_len: usize,
    out: *mut *mut pie_rope_rotations,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let layers = unsafe { slice("layers", layers, layers_len) }?;
        room(layers.len().saturating_add(layers_of(&rotations.0)), LAYER)?;
        let selected = rotations.0.select(layers.iter().copied());
        selected.map(pie_rope_rotations)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The same rotations without the rows before `row`, counted after the edit: for a copy between sequences that share
/// the pages of their first rows, which must neither turn nor move.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_starting_at(
    rotations: *const pie_rope_rotations,
    row: usize,
    out: *mut *mut pie_rope_rotations,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        room_for(&[
            (rotations.0.spans().len(), ROW),
            (layers_of(&rotations.0), LAYER),
        ])?;
        Ok(pie_rope_rotations(rotations.0.starting_at(row)))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The same rotations without the rows that neither turn nor move: what a splice touches. A copy of these alone is for
/// a destination that holds all others already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_affected_only(
    rotations: *const pie_rope_rotations,
    out: *mut *mut pie_rope_rotations,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `rotations`; null and alignment are checked in `borrow`.
        let rotations = unsafe { borrow("rotations", rotations) }?;
        room_for(&[
            (rotations.0.spans().len(), ROW),
            (layers_of(&rotations.0), LAYER),
        ])?;
        Ok(pie_rope_rotations(rotations.0.affected_only()))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Layers and tables, which a copy takes memory for.
fn layers_of(rotations: &Rotations) -> usize {
    rotations.layers().unwrap_or(0) + rotations.tables().len()
}

/// Frees rotations. Null is fine. A CUDA call that was launched with them does not need them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_rotations_free(rotations: *mut pie_rope_rotations) {
    // SAFETY: the caller gives back what `give` gave, once; null is checked in `free`.
    unsafe { free(rotations) }
}
