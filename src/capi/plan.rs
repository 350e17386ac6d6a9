//! What has to happen to a cached sequence.

use bytemuck::cast_slice;

use super::{
    EDIT, ROW, SaysItsSize, TOKEN, borrow, check_pointer, fill, free, give, guard, refuse, room,
    sized_slice, slice,
};
use crate::plan::cells::{Cells, Shift};
use crate::{Edit, Plan};

/// What has to happen to a cached sequence so that it becomes the new one: which rows survive, where they go, by how
/// much they turn, and which are to be encoded. A row is what one token left in one layer.
pub struct pie_rope_plan(pub(super) Plan);

/// Replace the old tokens `start` to `end`, half open, by `inserted` new ones. `start == end` inserts before that
/// token, `inserted` 0 deletes. All edits of a list are in old coordinates: the indices before any of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_edit {
    /// `sizeof(pie_rope_edit)`.
    pub struct_size: usize,
    /// First old token to remove.
    pub start: usize,
    /// The old token behind the last one to remove.
    pub end: usize,
    /// How many new tokens take their place.
    pub inserted: usize,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_edit {}

/// Shift the positions `p0` to `p1`, half open, by `delta`, as `llama_memory_seq_add(p0, p1, delta)` does: a negative
/// `p0` is 0, a negative `p1` has no end.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_delta {
    /// `sizeof(pie_rope_delta)`.
    pub struct_size: usize,
    /// First position.
    pub p0: i32,
    /// The position behind the last one.
    pub p1: i32,
    /// By how much.
    pub delta: i32,
}

// SAFETY: its layout is C's, with the size first.
unsafe impl SaysItsSize for pie_rope_delta {}

/// A run of rows that survive: `len` rows from `src` go to `dst`, and from position `old_position` on to
/// `new_position` on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_span {
    /// First row before.
    pub src: usize,
    /// First row after.
    pub dst: usize,
    /// How many rows.
    pub len: usize,
    /// Position of the first row before.
    pub old_position: i32,
    /// Position of the first row after.
    pub new_position: i32,
}

/// A run of rows that the engine has to encode.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct pie_rope_new_span {
    /// First row, counted after the edit: also the index of its token among the new ones.
    pub row: usize,
    /// How many rows.
    pub len: usize,
    /// Position of the first row.
    pub position: i32,
}

/// The plan of `edits_len` edits to `rows` tokens, of which token `i` lies in row `i`, at position
/// `first_position + i`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_edits(
    first_position: i32,
    rows: usize,
    edits: *const pie_rope_edit,
    edits_len: usize,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many structs; `sized_slice` checks the size that each says.
        let edits = unsafe { sized_slice("edits", edits, edits_len) }?;
        room(edits.len(), EDIT)?;
        let edits: Vec<_> = edits
            .iter()
            .map(|edit| Edit::replace(edit.start..edit.end, edit.inserted))
            .collect();
        Plan::from_edits_at(first_position, rows, &edits).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The plan from old tokens, token `i` in row `i` at position `i`, to new ones: their difference becomes edits. A token
/// may be any number, such as a `llama_token`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_tokens(
    old_tokens: *const i32,
    old_len: usize,
    new_tokens: *const i32,
    new_len: usize,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let old = unsafe { slice("old_tokens", old_tokens, old_len) }?;
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let new = unsafe { slice("new_tokens", new_tokens, new_len) }?;
        room(old.len().saturating_add(new.len()), TOKEN)?;
        // Only whether they are equal matters.
        Plan::from_tokens(cast_slice(old), cast_slice(new)).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Rows stay where they are and turn: row `i` goes from position `old_positions[i]` to `new_positions[i]`. A row whose
/// two positions are both negative, such as -1, is left alone: it is free, or another sequence's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_positions(
    old_positions: *const i32,
    new_positions: *const i32,
    rows: usize,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let old = unsafe { slice("old_positions", old_positions, rows) }?;
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let new = unsafe { slice("new_positions", new_positions, rows) }?;
        room(rows, ROW)?;
        Plan::from_positions(old, new).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Cells stay where they are and turn, as after llama.cpp's `seq_add`: cell `i` is at position `positions[i]`
/// (`positions` null: at position `i`) and turns by the sum of the deltas whose range it is in. All ranges are of
/// positions before the call, not of those that an earlier delta of the list leads to.
///
/// A cell at a negative position is left alone, whatever becomes of the rope: give -1 for those that are free, as
/// llama.cpp does, and for those of other sequences. (`pie_rope_plan_kept` does not have them.) A cell whose position
/// would become negative is refused, not removed. To delete tokens: `seq_rm(p0, p1)`, then this with
/// `{p1, -1, p0 - p1}`. One `seq_add` after another is one plan after another: see `pie_rope_plan_then`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_deltas(
    positions: *const i32,
    rows: usize,
    deltas: *const pie_rope_delta,
    deltas_len: usize,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many structs; `sized_slice` checks the size that each says.
        let deltas = unsafe { sized_slice("deltas", deltas, deltas_len) }?;
        let cells = if positions.is_null() {
            Cells::InOrder(rows)
        } else {
            // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
            let positions = unsafe { slice("positions", positions, rows) }?;
            room(rows, ROW)?;
            Cells::At(positions)
        };
        room(deltas.len(), EDIT)?;
        let shifts = deltas.iter().map(|delta| {
            let end = if delta.p1 < 0 {
                i32::MAX as i64 + 1
            } else {
                delta.p1.into()
            };
            Shift {
                range: delta.p0.into()..end,
                delta: delta.delta,
            }
        });
        Plan::from_shifts(cells, &shifts.collect::<Vec<_>>()).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Cells stay where they are and turn, as after llama.cpp's `seq_div`, which self-extended attention uses: cell `i` is at
/// position `positions[i]`, and where that is in `p0` to `p1`, half open, it goes to its quotient by `divisor`, rounded
/// down. A negative `p0` is 0, a negative `p1` has no end. Cells at negative positions are left alone, as by
/// `pie_rope_plan_from_deltas`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_division(
    positions: *const i32,
    rows: usize,
    p0: i32,
    p1: i32,
    divisor: i32,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        if divisor < 1 {
            return refuse("divisor", format!("it is {divisor}, not 1 or more"));
        }
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let positions = unsafe { slice("positions", positions, rows) }?;
        let divided = |&position: &i32| {
            let holds = position >= p0.max(0) && (p1 < 0 || position < p1);
            if holds { position / divisor } else { position }
        };
        room(rows, ROW)?;
        let new: Vec<i32> = positions.iter().map(divided).collect();
        Plan::from_positions(positions, &new).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Eviction: of `rows` rows, row `i` at position `i`, those in `kept`, ascending, stay, moved together, and are
/// numbered anew from position 0 on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_kept(
    rows: usize,
    kept: *const usize,
    kept_len: usize,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let kept = unsafe { slice("kept", kept, kept_len) }?;
        room(kept.len(), ROW)?;
        Plan::from_kept(rows, kept).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// Eviction with the positions given: of `rows` rows, row `i` at position `old_positions[i]`, those in `kept`,
/// ascending, stay, moved together, and row `kept[i]` goes to position `new_positions[i]`. Where that is where it was,
/// it moves and does not turn.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_from_kept_at(
    old_positions: *const i32,
    rows: usize,
    kept: *const usize,
    new_positions: *const i32,
    kept_len: usize,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let old = unsafe { slice("old_positions", old_positions, rows) }?;
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let kept = unsafe { slice("kept", kept, kept_len) }?;
        // SAFETY: the caller vouches for so many elements; null, alignment and an impossible length are checked in `slice`.
        let new = unsafe { slice("new_positions", new_positions, kept_len) }?;
        room(kept.len(), ROW)?;
        Plan::from_kept_at(old, kept, new).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// One plan, then the next, as one that turns every key once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_then(
    plan: *const pie_rope_plan,
    next: *const pie_rope_plan,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for both; null and alignment are checked in `borrow`.
        let (plan, next) = unsafe { (borrow("plan", plan)?, borrow("next", next)?) };
        room(spans(&plan.0) + spans(&next.0), ROW)?;
        plan.0.then(&next.0).map(pie_rope_plan)
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// The same turns without the moves: for an engine that has brought the rows to their new places already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_in_place(
    plan: *const pie_rope_plan,
    out: *mut *mut pie_rope_plan,
) -> i32 {
    let make = || {
        // SAFETY: the caller keeps the header's rules for `plan`; null and alignment are checked in `borrow`.
        let plan = unsafe { borrow("plan", plan) }?;
        room(spans(&plan.0), ROW)?;
        Ok(pie_rope_plan(plan.0.in_place()))
    };
    // SAFETY: the caller vouches for `out`; null and alignment are checked in `give`.
    unsafe { give(out, make) }
}

/// How many rows the sequence has before and after, those to encode included.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_rows(
    plan: *const pie_rope_plan,
    old_rows: *mut usize,
    new_rows: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `plan`; null and alignment are checked in `borrow`.
        let plan = unsafe { borrow("plan", plan) }?;
        check_pointer("old_rows", old_rows)?;
        check_pointer("new_rows", new_rows)?;
        // SAFETY: checked above; the caller answers for the rest.
        unsafe { (*old_rows, *new_rows) = (plan.0.old_rows(), plan.0.new_rows()) };
        Ok(())
    })
}

/// What is left to encode, in order, which may be behind the last row that there was: that a cache has room for
/// `new_rows` is the engine's to see to. Writes at most `capacity` spans, and to `len` how many there are. `spans` may be
/// null if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_new_spans(
    plan: *const pie_rope_plan,
    spans: *mut pie_rope_new_span,
    capacity: usize,
    len: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `plan`; null and alignment are checked in `borrow`.
        let plan = unsafe { borrow("plan", plan) }?;
        let all = plan.0.new_spans().iter().map(|span| pie_rope_new_span {
            row: span.row,
            len: span.len,
            position: span.position,
        });
        // SAFETY: the caller vouches for `capacity` elements and for `len`; null and alignment are checked in `fill`.
        unsafe { fill("spans", spans, capacity, len, all) }
    })
}

/// The rows that survive, in order: writes at most `capacity` spans, and to `len` how many there are. `spans` may be
/// null if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_kept(
    plan: *const pie_rope_plan,
    spans: *mut pie_rope_span,
    capacity: usize,
    len: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller keeps the header's rules for `plan`; null and alignment are checked in `borrow`.
        let plan = unsafe { borrow("plan", plan) }?;
        let all = plan.0.kept().iter().map(|span| pie_rope_span {
            src: span.src,
            dst: span.dst,
            len: span.len,
            old_position: span.old_position,
            new_position: span.new_position,
        });
        // SAFETY: the caller vouches for `capacity` elements and for `len`; null and alignment are checked in `fill`.
        unsafe { fill("spans", spans, capacity, len, all) }
    })
}

/// Frees a plan. Null is fine. Rotations made from it live on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pie_rope_plan_free(plan: *mut pie_rope_plan) {
    // SAFETY: the caller gives back what `give` gave, once; null is checked in `free`.
    unsafe { free(plan) }
}

/// Spans of a plan, kept and new.
fn spans(plan: &Plan) -> usize {
    plan.kept().len() + plan.new_spans().len()
}
