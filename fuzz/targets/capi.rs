//! Any sequence of calls of the C ABI that keeps the header's rules, right arguments and wrong ones mixed. A call
//! works, or says what is wrong and has written nothing; none aborts, panics, keeps memory, or takes more of it, or of
//! time, than its arguments account for. Where there is little memory it says so.

#![no_main]

use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pie_rope_fuzz::header::*;
use pie_rope_fuzz::{Limits, Source, live, starve, watch};

/// What is given to a call is some KiB, so that 32 MiB are tables of ropes of the greatest width. More is to be
/// refused: allocations past it fail.
const LIMITS: Limits = Limits {
    memory: 32 << 20,
    time: Duration::from_secs(2),
};

/// Handles of each kind that are kept at most.
const KEPT: usize = 6;
const CALLS: usize = 40;

fuzz_target!(|data: &[u8]| {
    let sum = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    RANDOM.store(data.iter().fold(0, sum), Relaxed);
    let mut source = Source::new(data);
    // The last error's text is the thread's: the same before and after.
    let settle = || unsafe { pie_rope_rope_layers(null(), null_mut()) };
    assert_ne!(settle(), PIE_ROPE_OK);
    let before = live();
    let mut handles = Handles::default();
    for _ in 0..CALLS {
        if source.is_empty() {
            break;
        }
        one(&mut source, &mut handles);
    }
    handles.free();
    settle();
    assert_eq!(live(), before, "bytes are left behind");
});

#[derive(Default)]
struct Handles {
    ropes: Vec<*mut pie_rope_rope>,
    plans: Vec<*mut pie_rope_plan>,
    rotations: Vec<*mut pie_rope_rotations>,
    cpus: Vec<*mut pie_rope_cpu>,
}

impl Handles {
    fn free(self) {
        // SAFETY: each was given by the library, and is given back once.
        unsafe {
            self.ropes
                .into_iter()
                .for_each(|handle| pie_rope_rope_free(handle));
            self.plans
                .into_iter()
                .for_each(|handle| pie_rope_plan_free(handle));
            self.rotations
                .into_iter()
                .for_each(|handle| pie_rope_rotations_free(handle));
            self.cpus
                .into_iter()
                .for_each(|handle| pie_rope_cpu_free(handle));
            pie_rope_rope_free(null_mut());
            pie_rope_plan_free(null_mut());
            pie_rope_rotations_free(null_mut());
            pie_rope_cpu_free(null_mut());
        }
    }
}

/// What the next call has of memory, where it is little: one in four has up to a MiB, small amounts as often as large
/// ones. Follows from the input, but takes none of it.
fn little_memory() -> Option<usize> {
    let random = RANDOM
        .fetch_add(1, Relaxed)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let random = (random ^ random >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 16;
    let most = 1usize << (random >> 8 & 15) << 5;
    (random & 3 == 0).then(|| (random >> 16) as usize % most)
}

static RANDOM: AtomicU64 = AtomicU64::new(0);

/// A call within limits, whose status is one that there is.
fn status(what: &str, call: impl FnOnce() -> i32) -> bool {
    heard(what, watch(what, LIMITS, call))
}

/// [`status`] of a call that may have little memory.
fn starved(what: &str, call: impl FnOnce() -> i32) -> bool {
    let status = match little_memory() {
        Some(memory) => starve(memory, call),
        None => watch(what, LIMITS, call),
    };
    heard(what, status)
}

/// Whether a status says that a call has worked. If not, there is a text.
fn heard(what: &str, status: i32) -> bool {
    if status == PIE_ROPE_OK {
        return true;
    }
    // SAFETY: strings of the library, which end.
    let (text, name) = unsafe {
        let text = CStr::from_ptr(pie_rope_last_error());
        (text, CStr::from_ptr(pie_rope_status_string(status)))
    };
    let text = text.to_str().expect("UTF-8");
    assert_ne!(status, PIE_ROPE_ERROR_PANIC, "{what}: {text}");
    assert_ne!(name, c"unknown status", "{what}: {status}");
    assert!(!text.is_empty(), "{what}: status {status} without a text");
    assert!(text.len() < 2000, "{what}: {text}");
    false
}

/// A call that makes a handle: it is there if the call has worked, and else nothing is written.
fn make<T>(
    what: &str,
    source: &mut Source,
    kept: &mut Vec<*mut T>,
    free: unsafe extern "C" fn(*mut T),
    call: impl FnOnce(*mut *mut T) -> i32,
) {
    let nothing = 0x5a5a as *mut T;
    let mut made = [nothing; 2];
    let out = match source.byte() {
        254 => null_mut(),
        255 => made.as_mut_ptr().wrapping_byte_add(1),
        _ => made.as_mut_ptr(),
    };
    if starved(what, || call(out)) {
        assert!(out == made.as_mut_ptr(), "{what} takes a wrong `out`");
        assert!(made[0] != nothing && made[0].is_aligned() && !made[0].is_null());
        if kept.len() == KEPT {
            let old = source.number(0..=KEPT - 1);
            // SAFETY: given by the library, and given back once.
            unsafe { free(std::mem::replace(&mut kept[old], made[0])) };
        } else {
            kept.push(made[0]);
        }
    } else {
        assert_eq!(made[0], nothing, "{what} has written to `out`");
    }
    assert_eq!(made[1], nothing);
}

/// A pointer that is right, mostly.
fn pointer<T>(source: &mut Source, right: *const T) -> *const T {
    match source.byte() {
        254 => null(),
        255 if align_of::<T>() > 1 => right.wrapping_byte_add(1),
        _ => right,
    }
}

/// A handle that there is, if there is one.
fn handle<T>(source: &mut Source, of: &[*mut T]) -> *const T {
    let one = match of {
        [] => null_mut(),
        _ => source.pick(of),
    };
    match source.byte() {
        254 => null(),
        255 => one.wrapping_byte_add(1),
        _ => one,
    }
}

/// A length that no memory has.
fn impossible<T>(source: &mut Source) -> usize {
    source.wild().max(isize::MAX as usize / size_of::<T>() + 1)
}

/// A list and its length, right ones mostly.
fn list<T>(source: &mut Source, right: &[T]) -> (*const T, usize) {
    match source.byte() {
        252 => (null(), right.len()),
        253 if align_of::<T>() > 1 => (right.as_ptr().wrapping_byte_add(1), right.len()),
        // Where the first may be looked at, it is there.
        254 if !right.is_empty() => (right.as_ptr(), impossible::<T>(source)),
        255 => (null(), 0),
        _ => (right.as_ptr(), right.len()),
    }
}

fn struct_size<T>(source: &mut Source) -> usize {
    match source.byte() {
        250.. => source.wild(),
        _ => size_of::<T>(),
    }
}

fn pairing(source: &mut Source) -> i32 {
    match source.byte() {
        250.. => source.wild() as i32,
        other => i32::from(other % 2),
    }
}

/// How many of something: a few, or any number.
fn count(source: &mut Source, few: usize) -> usize {
    match source.byte() {
        200.. => source.wild(),
        _ => source.number(0..=few),
    }
}

fn positions(source: &mut Source, len: usize) -> Vec<i32> {
    let start = source.position();
    let each = source.chance(100);
    let one = |i| match each {
        true => source.position(),
        false => start.wrapping_add(i as i32),
    };
    (0..len).map(one).collect()
}

fn one(source: &mut Source, handles: &mut Handles) {
    // Verbs most of all, as soon as there is what they need.
    if handles.ropes.is_empty() {
        rope(source, handles);
    } else if handles.plans.is_empty() {
        plan(source, handles);
    } else if handles.rotations.is_empty() {
        rotations(source, handles);
    } else if handles.cpus.is_empty() {
        let threads = match source.byte() {
            250.. => source.wild(),
            _ => 1,
        };
        make(
            "cpu_new",
            source,
            &mut handles.cpus,
            pie_rope_cpu_free,
            |out| unsafe { pie_rope_cpu_new(threads, out) },
        );
    } else {
        match source.byte() {
            0..120 => verb(source, handles),
            120..160 => plan(source, handles),
            160..200 => rope(source, handles),
            200.. => rotations(source, handles),
        }
    }
}

fn rope(source: &mut Source, handles: &mut Handles) {
    let kept = &mut handles.ropes;
    let free = pie_rope_rope_free;
    // Few shapes, so that two ropes often have the same.
    let mut mostly = |few: &[usize]| match source.byte() {
        240.. => source.wild(),
        _ => source.pick(few),
    };
    let (offset, layers) = (mostly(&[0, 0, 0, 3]), mostly(&[2, 2, 1, 0]));
    let rotary_dim = mostly(&[8, 8, 4, 20, 7]);
    // SAFETY: in all calls, pointers are right, or of a kind that the library refuses before it reads.
    match source.number(0..=8) {
        0 => {
            let (theta, pairing) = (source.double(), pairing(source));
            make("rope_from_theta", source, kept, free, |out| unsafe {
                pie_rope_rope_from_theta(theta, rotary_dim, pairing, offset, layers, out)
            });
        }
        1 => {
            let frequencies: Vec<_> = (0..source.number(0..=12))
                .map(|_| source.double())
                .collect();
            let (inv_freq, pairs) = list(source, &frequencies);
            let pairing = pairing(source);
            make("rope_from_inv_freq", source, kept, free, |out| unsafe {
                pie_rope_rope_from_inv_freq(inv_freq, pairs, pairing, offset, layers, out)
            });
        }
        2 => {
            let (theta, factor, pairing) = (source.double(), source.double(), pairing(source));
            let (context, fast, slow) = (source.wild(), source.double(), source.double());
            make("rope_from_yarn", source, kept, free, |out| unsafe {
                pie_rope_rope_from_yarn(
                    theta, rotary_dim, factor, context, fast, slow, pairing, offset, layers, out,
                )
            });
        }
        3 => {
            let text = config(source);
            let json = pointer(source, text.as_ptr());
            let tokens = source.wild();
            make(
                "rope_from_config_json_at",
                source,
                kept,
                free,
                |out| unsafe {
                    match tokens {
                        0 => pie_rope_rope_from_config_json(json, out),
                        _ => pie_rope_rope_from_config_json_at(json, tokens, out),
                    }
                },
            );
        }
        4 => {
            let layers: Vec<_> = (0..source.number(0..=5))
                .map(|_| handle(source, kept))
                .collect();
            let (layers, len) = list(source, &layers);
            make("rope_from_layers", source, kept, free, |out| unsafe {
                pie_rope_rope_from_layers(layers, len, out)
            });
        }
        5 => {
            let (rope, pairing) = (handle(source, kept), pairing(source));
            make("rope_with_pairing", source, kept, free, |out| unsafe {
                pie_rope_rope_with_pairing(rope, pairing, out)
            });
        }
        6 => {
            let rope = handle(source, kept);
            make("rope_with_offset", source, kept, free, |out| unsafe {
                pie_rope_rope_with_offset(rope, offset, out)
            });
        }
        7 => {
            let rope = handle(source, kept);
            let (mut layers, mut pairing, mut offset, mut dim) = (7, 7, 7, 7);
            if status("rope_layers", || unsafe {
                pie_rope_rope_layers(rope, &mut layers)
            }) {
                let layer = source.number(0..=layers);
                let window = status("rope_window", || unsafe {
                    pie_rope_rope_window(rope, layer, &mut pairing, &mut offset, &mut dim)
                });
                assert_eq!(window, layer < layers);
            } else {
                assert_eq!(layers, 7);
            }
            assert!(pairing != 7 || (offset, dim) == (7, 7));
        }
        _ => {
            let (rope, layer) = (handle(source, kept), count(source, 3));
            fill(source, "rope_inv_freq", 0f64, |out, capacity, len| unsafe {
                pie_rope_rope_inv_freq(rope, layer, out, capacity, len)
            });
        }
    }
}

/// A `config.json` that may be one.
fn config(source: &mut Source) -> CString {
    if source.chance(40) {
        let bytes: Vec<_> = (0..source.number(0..=40))
            .map(|_| source.byte().max(1))
            .collect();
        return CString::new(bytes).expect("no zero");
    }
    let layers = count(source, 9);
    let dim = count(source, 64);
    let theta = source.double();
    let scaling = source.pick(&[
        "null",
        r#"{"type":"linear","factor":2}"#,
        r#"{"rope_type":"dynamic","factor":3}"#,
        r#"{"rope_type":"yarn","factor":4}"#,
        r#"{"rope_type":"none"}"#,
    ]);
    let text = format!(
        r#"{{"model_type":"llama","num_hidden_layers":{layers},"hidden_size":64,"num_attention_heads":4,"head_dim":{dim},"rope_theta":{theta:e},"max_position_embeddings":2048,"rope_scaling":{scaling}}}"#
    );
    CString::new(text).expect("no zero")
}

/// A call that writes as many as there is room for.
fn fill<T: Copy>(
    source: &mut Source,
    what: &str,
    any: T,
    call: impl Fn(*mut T, usize, *mut usize) -> i32,
) {
    let mut len = usize::MAX;
    if !status(what, || call(null_mut(), 0, &mut len)) {
        assert_eq!(len, usize::MAX, "{what} has written to `len`");
        return;
    }
    // Just as many as there are, or fewer: what is written behind them the sanitizer sees.
    let there = len;
    let (room, capacity) = match source.byte() {
        ..100 => (there, there),
        100..180 => (there, source.wild().max(there)),
        _ => (there / 2, there / 2),
    };
    let mut out = vec![any; room];
    assert!(
        status(what, || call(out.as_mut_ptr(), capacity, &mut len)),
        "{what}, again"
    );
    assert_eq!(len, there);
    if there > 0 {
        assert!(
            !status(what, || call(null_mut(), 1, &mut len)),
            "{what} into null"
        );
    }
    assert!(
        !status(what, || call(out.as_mut_ptr(), 0, null_mut())),
        "{what} without `len`"
    );
}

fn plan(source: &mut Source, handles: &mut Handles) {
    let kept = &mut handles.plans;
    let free = pie_rope_plan_free;
    let few = source.number(0..=30);
    let rows = match source.byte() {
        220.. => source.wild(),
        _ => few,
    };
    // SAFETY: as in `rope`.
    match source.number(0..=10) {
        0 | 1 => {
            let mut edits = Vec::new();
            let mut at = 0;
            for _ in 0..source.number(0..=4) {
                let start = if source.chance(20) {
                    source.wild()
                } else {
                    at + source.number(0..=5)
                };
                let end = if source.chance(20) {
                    source.wild()
                } else {
                    start.saturating_add(source.number(0..=5))
                };
                edits.push(pie_rope_edit {
                    struct_size: struct_size::<pie_rope_edit>(source),
                    start,
                    end,
                    inserted: if source.chance(30) {
                        source.wild()
                    } else {
                        source.number(0..=6)
                    },
                });
                at = end.min(1 << 20) + 1;
            }
            let first = if source.chance(60) {
                source.position()
            } else {
                0
            };
            let (edits, len) = list(source, &edits);
            make("plan_from_edits", source, kept, free, |out| unsafe {
                pie_rope_plan_from_edits(first, rows, edits, len, out)
            });
        }
        2 => {
            let mut tokens = || -> Vec<i32> {
                let len = source.number(0..=40);
                (0..len).map(|_| i32::from(source.byte() % 5) - 1).collect()
            };
            let (old, new) = (tokens(), tokens());
            let (old, old_len) = list(source, &old);
            let (new, new_len) = list(source, &new);
            make("plan_from_tokens", source, kept, free, |out| unsafe {
                pie_rope_plan_from_tokens(old, old_len, new, new_len, out)
            });
        }
        3 => {
            let (old, new) = (positions(source, few), positions(source, few));
            let (old, rows) = list(source, &old);
            let new = pointer(source, new.as_ptr());
            make("plan_from_positions", source, kept, free, |out| unsafe {
                pie_rope_plan_from_positions(old, new, rows, out)
            });
        }
        4 | 5 => {
            let deltas: Vec<_> = (0..source.number(0..=5))
                .map(|_| pie_rope_delta {
                    struct_size: struct_size::<pie_rope_delta>(source),
                    p0: source.position(),
                    p1: source.position(),
                    delta: source.position().wrapping_sub(source.position()),
                })
                .collect();
            let given = positions(source, few);
            // Null: every row is at its own position, however many there are.
            let (positions, rows) = match source.byte() {
                ..120 => (given.as_ptr(), few),
                120..130 => list(source, &given),
                _ => (null(), rows),
            };
            let (deltas, len) = list(source, &deltas);
            make("plan_from_deltas", source, kept, free, |out| unsafe {
                pie_rope_plan_from_deltas(positions, rows, deltas, len, out)
            });
        }
        6 => {
            let some: Vec<_> = (0..few).filter(|_| source.chance(170)).collect();
            let (some, len) = list(source, &some);
            make("plan_from_kept", source, kept, free, |out| unsafe {
                pie_rope_plan_from_kept(rows, some, len, out)
            });
        }
        7 => {
            let some: Vec<_> = (0..few).filter(|_| source.chance(170)).collect();
            let (old, new) = (positions(source, few), positions(source, some.len()));
            let (old, rows) = list(source, &old);
            let (some, len) = list(source, &some);
            let new = pointer(source, new.as_ptr());
            make("plan_from_kept_at", source, kept, free, |out| unsafe {
                pie_rope_plan_from_kept_at(old, rows, some, new, len, out)
            });
        }
        8 => {
            let positions = positions(source, few);
            let (positions, rows) = list(source, &positions);
            let (p0, p1) = (source.position(), source.position());
            let divisor = match source.byte() {
                200.. => source.position(),
                other => i32::from(other % 8),
            };
            make("plan_from_division", source, kept, free, |out| unsafe {
                pie_rope_plan_from_division(positions, rows, p0, p1, divisor, out)
            });
        }
        9 => {
            let (plan, next) = (handle(source, kept), handle(source, kept));
            make("plan_then", source, kept, free, |out| unsafe {
                match next.is_null() {
                    true => pie_rope_plan_in_place(plan, out),
                    false => pie_rope_plan_then(plan, next, out),
                }
            });
        }
        _ => {
            let plan = handle(source, kept);
            let (mut old, mut new) = (usize::MAX, usize::MAX);
            let worked = status("plan_rows", || unsafe {
                pie_rope_plan_rows(plan, &mut old, &mut new)
            });
            assert_eq!(worked, old != usize::MAX);
            let span = pie_rope_span {
                src: 0,
                dst: 0,
                len: 0,
                old_position: 0,
                new_position: 0,
            };
            fill(source, "plan_kept", span, |out, capacity, len| unsafe {
                pie_rope_plan_kept(plan, out, capacity, len)
            });
            let span = pie_rope_new_span {
                row: 0,
                len: 0,
                position: 0,
            };
            fill(
                source,
                "plan_new_spans",
                span,
                |out, capacity, len| unsafe { pie_rope_plan_new_spans(plan, out, capacity, len) },
            );
        }
    }
}

fn rotations(source: &mut Source, handles: &mut Handles) {
    let kept = &mut handles.rotations;
    let free = pie_rope_rotations_free;
    let plan = handle(source, &handles.plans);
    // SAFETY: as in `rope`.
    match source.number(0..=6) {
        0 | 1 => {
            let rope = handle(source, &handles.ropes);
            make("rotations_new", source, kept, free, |out| unsafe {
                pie_rope_rotations_new(plan, rope, out)
            });
        }
        2 => {
            let (old, new) = (
                handle(source, &handles.ropes),
                handle(source, &handles.ropes),
            );
            make("rotations_between", source, kept, free, |out| unsafe {
                pie_rope_rotations_between(plan, old, new, out)
            });
        }
        3 => {
            let rotations = handle(source, kept).cast_mut();
            starved("rotations_update", || unsafe {
                pie_rope_rotations_update(rotations, plan)
            });
        }
        4 => {
            let rotations = handle(source, kept);
            let layers: Vec<_> = (0..source.number(0..=5))
                .map(|_| count(source, 4))
                .collect();
            let (layers, len) = list(source, &layers);
            make("rotations_select", source, kept, free, |out| unsafe {
                pie_rope_rotations_select(rotations, layers, len, out)
            });
        }
        5 => {
            let (rotations, row) = (handle(source, kept), count(source, 30));
            make("rotations_starting_at", source, kept, free, |out| unsafe {
                pie_rope_rotations_starting_at(rotations, row, out)
            });
        }
        _ => {
            let rotations = handle(source, kept);
            make(
                "rotations_affected_only",
                source,
                kept,
                free,
                |out| unsafe { pie_rope_rotations_affected_only(rotations, out) },
            );
        }
    }
}

const EMPTY: pie_rope_axis = pie_rope_axis { len: 0, stride: 0 };

/// A layout and its table, which must live as long.
struct Lie {
    layout: pie_rope_layout,
    table: Vec<u32>,
    /// Elements that it takes.
    len: usize,
}

impl Lie {
    fn new(source: &mut Source, element: i32) -> Lie {
        let (heads, rows, dim) = (
            source.number(1..=3),
            source.number(1..=40),
            source.number(1..=20),
        );
        let (batch, block) = (source.number(1..=2), source.number(1..=8));
        let blocks = rows.div_ceil(block);
        let x = source.number(1..=4);
        let mut layout = pie_rope_layout {
            struct_size: struct_size::<pie_rope_layout>(source),
            element: -7,
            offset: 7,
            batch: EMPTY,
            blocks: EMPTY,
            rows: EMPTY,
            heads: EMPTY,
            packs: EMPTY,
            pack: 0,
            table: null(),
            table_len: 0,
        };
        let at: *mut pie_rope_layout = match source.byte() {
            254 => null_mut(),
            255 => (&raw mut layout).wrapping_byte_add(1),
            _ => &mut layout,
        };
        let kind = source.number(0..=6);
        let sane = status("layout", || unsafe {
            match kind {
                0 => pie_rope_layout_bhsd(element, batch, heads, rows, dim, at),
                1 => pie_rope_layout_bshd(element, batch, rows, heads, dim, at),
                2 => pie_rope_layout_nhd(element, blocks, block, heads, dim, at),
                3 => pie_rope_layout_hnd(element, blocks, heads, block, dim, at),
                4 => pie_rope_layout_slots(element, rows, heads, dim, at),
                5 => pie_rope_layout_x_packed(element, blocks, heads, dim, block, x, at),
                _ => pie_rope_layout_transposed(element, heads, dim, rows, at),
            }
        });
        // What these make begins at 0.
        assert_eq!(sane, layout.offset == 0, "written, and refused");
        let mut lie = Lie {
            layout,
            table: vec![],
            len: 0,
        };
        lie.len = lie.elements();
        if kind >= 2 && source.chance(180) {
            let pool = lie.layout.blocks.len.max(1);
            let start = source.number(0..=pool);
            lie.table = (0..pool)
                .map(|index| ((index + start) % pool) as u32)
                .collect();
            lie.at_table();
        }
        lie
    }

    fn at_table(&mut self) {
        (self.layout.table, self.layout.table_len) = (self.table.as_ptr(), self.table.len());
    }

    fn axes(&mut self) -> [&mut pie_rope_axis; 5] {
        let layout = &mut self.layout;
        [
            &mut layout.batch,
            &mut layout.blocks,
            &mut layout.rows,
            &mut layout.heads,
            &mut layout.packs,
        ]
    }

    /// Past the last element that the layout names.
    fn elements(&self) -> usize {
        let layout = &self.layout;
        let axes = [
            layout.batch,
            layout.blocks,
            layout.rows,
            layout.heads,
            layout.packs,
        ];
        let reach = |axis: pie_rope_axis| axis.len.saturating_sub(1).saturating_mul(axis.stride);
        let last = axes
            .into_iter()
            .map(reach)
            .fold(layout.offset, usize::saturating_add);
        last.saturating_add(layout.pack)
    }

    /// Something that is wrong, or another layout.
    fn change(&mut self, source: &mut Source) {
        match source.number(0..=8) {
            0 | 1 => {
                let number = source.wild();
                let axis = source.number(0..=4);
                self.axes()[axis].len = number;
            }
            2 | 3 => {
                let number = source.wild();
                let axis = source.number(0..=4);
                self.axes()[axis].stride = number;
            }
            4 => self.layout.offset = source.wild(),
            5 => self.layout.pack = source.wild(),
            // None that there is: a length in larger elements would be a lie.
            6 => self.layout.element = source.wild() as i32 | 4,
            7 => self.layout.struct_size = source.wild(),
            _ if !self.table.is_empty() => {
                let at = source.number(0..=self.table.len() - 1);
                self.table[at] = source.wild() as u32;
                self.at_table();
            }
            _ => self.layout.table_len = impossible::<u32>(source),
        }
    }
}

/// Buffers of some layers, each as long as it is said to be and no longer.
struct Cache {
    keys: Lie,
    values: Option<Lie>,
    layers: Vec<pie_rope_layer>,
    buffers: Vec<Vec<u8>>,
    before: Vec<Vec<u8>>,
}

impl Cache {
    fn new(source: &mut Source) -> Cache {
        let element = match source.byte() {
            250.. => source.wild() as i32,
            kind => i32::from(kind % 3),
        };
        let size = if element == PIE_ROPE_F32 { 4 } else { 2 };
        let mut keys = Lie::new(source, element);
        let values = source.byte() % 4;
        let packed = values == 3;
        let mut values = match values {
            0 => None,
            1 => Some(Lie {
                layout: keys.layout,
                table: keys.table.clone(),
                len: keys.len,
            }),
            2 => Some(Lie::new(source, element)),
            _ => {
                let mut second = Lie {
                    layout: keys.layout,
                    table: keys.table.clone(),
                    len: keys.len,
                };
                second.layout.offset = keys.len;
                second.len = second.elements();
                Some(second)
            }
        };
        if let Some(values) = &mut values
            && !values.table.is_empty()
        {
            values.at_table();
        }
        let mut noise = source.noise();
        let mut buffers: Vec<Vec<u8>> = Vec::new();
        let mut layers = Vec::new();
        for _ in 0..source.number(1..=3) {
            let mut buffer = |elements: usize| {
                let len = elements.min(1 << 16) * size;
                let mut bytes = Vec::with_capacity(len);
                while bytes.len() < len {
                    let word = noise.bits().to_ne_bytes();
                    bytes.extend_from_slice(&word[..(len - bytes.len()).min(8)]);
                }
                buffers.push(bytes);
                let buffer = buffers.last_mut().expect("just pushed");
                (buffer.as_mut_ptr().cast::<c_void>(), buffer.len() / size)
            };
            let wanted = match &values {
                Some(values) if packed => keys.len.max(values.len),
                _ => keys.len,
            };
            let (keys, keys_len) = buffer(wanted);
            let (values, values_len) = match &values {
                None => (null_mut(), 0),
                Some(_) if packed => (keys, keys_len),
                Some(values) => buffer(values.len),
            };
            layers.push(pie_rope_layer {
                struct_size: struct_size::<pie_rope_layer>(source),
                keys,
                keys_len,
                values,
                values_len,
            });
        }
        // A pool of which nobody says how long it is: only what the table names is touched, and that is there.
        if !keys.table.is_empty() && source.chance(40) {
            keys.layout.blocks.len = source.wild().max(keys.layout.blocks.len);
            layers
                .iter_mut()
                .for_each(|layer| layer.keys_len = usize::MAX);
        } else {
            if source.chance(60) {
                keys.change(source);
            }
            if source.chance(40)
                && let Some(values) = &mut values
            {
                values.change(source);
            }
            let layer = source.number(0..=layers.len() - 1);
            let layer = &mut layers[layer];
            match source.byte() {
                250 => layer.keys = null_mut(),
                251 => layer.values = null_mut(),
                252 => layer.keys = layer.keys.wrapping_byte_add(1),
                253 => layer.values = layer.values.wrapping_byte_add(1),
                254 => layer.keys_len /= 2,
                255 => layer.values_len /= 2,
                _ => {}
            }
        }
        let before = buffers.clone();
        Cache {
            keys,
            values,
            layers,
            buffers,
            before,
        }
    }

    /// The cache as C has it: for as long as its parts stay where they are.
    fn raw(&self, source: &mut Source) -> pie_rope_cache {
        let (layers, layers_len) = list(source, &self.layers);
        let values = match &self.values {
            Some(values) => pointer(source, &values.layout),
            None => null(),
        };
        pie_rope_cache {
            struct_size: struct_size::<pie_rope_cache>(source),
            keys: pointer(source, &self.keys.layout),
            values,
            layers,
            layers_len,
        }
    }

    fn check_unwritten(&self, what: &str) {
        assert!(
            self.buffers == self.before,
            "{what} is refused, and has written"
        );
    }
}

fn verb(source: &mut Source, handles: &mut Handles) {
    let cpu = handle(source, &handles.cpus);
    let rotations = handle(source, &handles.rotations);
    let cache = Cache::new(source);
    let raw = cache.raw(source);
    let at = pointer(source, &raw);
    // SAFETY: as in `rope`; buffers are as long as they are said to be, or all that the layout names in them is there.
    match source.number(0..=3) {
        0 => {
            if !starved("cpu_rotate", || unsafe {
                pie_rope_cpu_rotate(cpu, rotations, at)
            }) {
                cache.check_unwritten("cpu_rotate");
            }
        }
        1 => {
            if !starved("cpu_splice", || unsafe {
                pie_rope_cpu_splice(cpu, rotations, at)
            }) {
                cache.check_unwritten("cpu_splice");
            }
        }
        2 => {
            let other = Cache::new(source);
            let dst = if source.chance(40) {
                raw
            } else {
                other.raw(source)
            };
            let dst = pointer(source, &dst);
            let worked = starved("cpu_copy", || unsafe {
                pie_rope_cpu_copy(cpu, rotations, at, dst)
            });
            if !worked {
                other.check_unwritten("cpu_copy");
                cache.check_unwritten("cpu_copy");
            }
        }
        _ => {
            let mut to =
                [&cache.keys, cache.values.as_ref().unwrap_or(&cache.keys)].map(|lie| Lie {
                    layout: lie.layout,
                    table: lie.table.iter().rev().copied().collect(),
                    len: lie.len,
                });
            // Only where lengths are what they are said to be, the layout may be another.
            let honest = cache
                .layers
                .iter()
                .all(|layer| layer.keys_len != usize::MAX);
            for lie in &mut to {
                if !lie.table.is_empty() {
                    lie.at_table();
                }
                if honest && source.chance(80) {
                    lie.change(source);
                }
            }
            let keys = pointer(source, &to[0].layout);
            let values = if cache.values.is_some() {
                pointer(source, &to[1].layout)
            } else {
                null()
            };
            let worked = starved("cpu_copy_within", || unsafe {
                pie_rope_cpu_copy_within(cpu, rotations, at, keys, values)
            });
            if !worked {
                cache.check_unwritten("cpu_copy_within");
            }
        }
    }
}
