//! The C ABI where memory runs out: an error, never the end of the process.
//!
//! An allocator refuses a thread what is past its budget, however small. Whenever a call takes more than it has taken
//! before, it is made again with a byte less than that.

mod budget;
#[cfg(feature = "cuda")]
mod cuda;

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

use budget::{gives_back_elsewhere, returns, run};
use pie_rope as _;

const OK: i32 = 0;
const ARGUMENT: i32 = 1;
const CONFIG: i32 = 3;
const PLAN: i32 = 5;
const OUT_OF_MEMORY: i32 = 9;

type Handle = *mut std::ffi::c_void;

#[repr(C)]
struct Edit {
    struct_size: usize,
    start: usize,
    end: usize,
    inserted: usize,
}

#[repr(C)]
struct Delta {
    struct_size: usize,
    p0: i32,
    p1: i32,
    delta: i32,
}

/// `pie_rope_layout`, which the library fills.
#[repr(C)]
struct CacheLayout {
    struct_size: usize,
    rest: [usize; 15],
}

#[repr(C)]
struct Layer {
    struct_size: usize,
    keys: *mut f32,
    keys_len: usize,
    values: *mut f32,
    values_len: usize,
}

#[repr(C)]
struct Cache {
    struct_size: usize,
    keys: *const CacheLayout,
    values: *const CacheLayout,
    layers: *const Layer,
    layers_len: usize,
}

unsafe extern "C" {
    fn pie_rope_plan_from_edits(
        first: i32,
        rows: usize,
        edits: *const Edit,
        len: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_from_tokens(
        old: *const i32,
        old_len: usize,
        new: *const i32,
        new_len: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_from_positions(
        old: *const i32,
        new: *const i32,
        rows: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_from_deltas(
        positions: *const i32,
        rows: usize,
        deltas: *const Delta,
        len: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_from_division(
        positions: *const i32,
        rows: usize,
        p0: i32,
        p1: i32,
        divisor: i32,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_from_kept(
        rows: usize,
        kept: *const usize,
        len: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_from_kept_at(
        old: *const i32,
        rows: usize,
        kept: *const usize,
        new: *const i32,
        len: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_plan_then(plan: Handle, next: Handle, out: *mut Handle) -> i32;
    fn pie_rope_plan_in_place(plan: Handle, out: *mut Handle) -> i32;
    fn pie_rope_plan_rows(plan: Handle, old: *mut usize, new: *mut usize) -> i32;
    fn pie_rope_plan_free(plan: Handle);
    fn pie_rope_rope_from_config_json(json: *const c_char, out: *mut Handle) -> i32;
    fn pie_rope_rope_from_theta(
        theta: f64,
        rotary_dim: usize,
        pairing: i32,
        offset: usize,
        layers: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_rope_from_yarn(
        theta: f64,
        rotary_dim: usize,
        factor: f64,
        context: usize,
        beta_fast: f64,
        beta_slow: f64,
        pairing: i32,
        offset: usize,
        layers: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_rope_from_inv_freq(
        inv_freq: *const f64,
        pairs: usize,
        pairing: i32,
        offset: usize,
        layers: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_rope_from_config_json_at(
        json: *const c_char,
        tokens: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_rope_from_layers(layers: *const Handle, len: usize, out: *mut Handle) -> i32;
    fn pie_rope_rope_free(rope: Handle);
    fn pie_rope_rope_with_pairing(rope: Handle, pairing: i32, out: *mut Handle) -> i32;
    fn pie_rope_rope_with_offset(rope: Handle, offset: usize, out: *mut Handle) -> i32;
    fn pie_rope_rotations_new(plan: Handle, rope: Handle, out: *mut Handle) -> i32;
    fn pie_rope_rotations_between(plan: Handle, old: Handle, new: Handle, out: *mut Handle) -> i32;
    fn pie_rope_rotations_starting_at(rotations: Handle, row: usize, out: *mut Handle) -> i32;
    fn pie_rope_rotations_affected_only(rotations: Handle, out: *mut Handle) -> i32;
    fn pie_rope_rotations_select(
        rotations: Handle,
        layers: *const usize,
        len: usize,
        out: *mut Handle,
    ) -> i32;
    fn pie_rope_rotations_update(rotations: Handle, plan: Handle) -> i32;
    fn pie_rope_rotations_free(rotations: Handle);
    fn pie_rope_layout_bhsd(
        element: i32,
        batch: usize,
        heads: usize,
        rows: usize,
        dim: usize,
        layout: *mut CacheLayout,
    ) -> i32;
    fn pie_rope_layout_nhd(
        element: i32,
        blocks: usize,
        block: usize,
        heads: usize,
        dim: usize,
        layout: *mut CacheLayout,
    ) -> i32;
    fn pie_rope_layout_transposed(
        element: i32,
        heads: usize,
        dim: usize,
        rows: usize,
        layout: *mut CacheLayout,
    ) -> i32;
    fn pie_rope_layout_x_packed(
        element: i32,
        blocks: usize,
        heads: usize,
        packs: usize,
        block: usize,
        x: usize,
        layout: *mut CacheLayout,
    ) -> i32;
    fn pie_rope_cpu_new(threads: usize, out: *mut Handle) -> i32;
    fn pie_rope_cpu_rotate(cpu: Handle, rotations: Handle, cache: *const Cache) -> i32;
    fn pie_rope_cpu_splice(cpu: Handle, rotations: Handle, cache: *const Cache) -> i32;
    fn pie_rope_cpu_copy(
        cpu: Handle,
        rotations: Handle,
        src: *const Cache,
        dst: *const Cache,
    ) -> i32;
    fn pie_rope_cpu_copy_within(
        cpu: Handle,
        rotations: Handle,
        cache: *const Cache,
        keys: *const CacheLayout,
        values: *const CacheLayout,
    ) -> i32;
    fn pie_rope_cpu_free(cpu: Handle);
}

/// [`run`] for what makes an object, which is freed at once.
fn made(name: &str, free: unsafe extern "C" fn(Handle), call: &dyn Fn(*mut Handle) -> i32) {
    run(name, &|| {
        let mut out = null_mut();
        let status = call(&mut out);
        assert_eq!(status != OK, out.is_null(), "{name}");
        // SAFETY: null, or made by `call` and freed once.
        unsafe { free(out) };
        status
    });
}

fn make(call: impl FnOnce(*mut Handle) -> i32) -> Handle {
    let mut out = null_mut();
    assert_eq!(call(&mut out), OK);
    out
}

const ROWS: usize = 132_000;

/// Edits of every fourth token and the one behind it, the last one first.
fn edits(len: usize) -> Vec<Edit> {
    let edit = |i: usize| Edit {
        struct_size: size_of::<Edit>(),
        start: 4 * i,
        end: 4 * i + 2,
        inserted: 1 + i % 3,
    };
    (0..len).rev().map(edit).collect()
}

#[test]
fn plans() {
    let in_order: Vec<i32> = (0..ROWS as i32).collect();
    // In no order, so that every row is a span.
    let scattered: Vec<i32> = in_order.iter().map(|i| i * 7919 % ROWS as i32).collect();
    let moved: Vec<i32> = scattered.iter().map(|i| i + i % 3).collect();
    let kept: Vec<usize> = (0..ROWS).filter(|i| i % 3 > 0).collect();
    let positions: Vec<i32> = kept.iter().map(|&i| (i + i % 2) as i32).collect();
    let edits = edits(ROWS / 4);
    let delta = |i: i32| Delta {
        struct_size: size_of::<Delta>(),
        p0: 10 * i,
        p1: 10 * i + 15,
        delta: 1 + i,
    };
    let deltas: Vec<Delta> = (0..ROWS as i32 / 20).map(delta).collect();
    let plan = |name, call: &dyn Fn(*mut Handle) -> i32| made(name, pie_rope_plan_free, call);
    // SAFETY: of all, this test made the arrays, of the lengths that it gives, and `out` is a place to write to.
    unsafe {
        plan("edits", &|out| {
            pie_rope_plan_from_edits(0, ROWS, edits.as_ptr(), edits.len(), out)
        });
        for (name, new) in [
            ("noise", in_order.iter().map(|i| i * 31 % 97).collect()),
            (
                "every fifth token replaced",
                in_order
                    .iter()
                    .map(|i| i + i32::from(i % 5 == 0) * 1_000_000)
                    .collect(),
            ),
            ("tokens in no order", scattered.clone()),
            (
                "none of the tokens",
                in_order.iter().map(|i| i + 1_000_000).collect(),
            ),
        ] {
            let old: Vec<i32> = match name {
                "noise" => in_order.iter().map(|i| i * 17 % 89).collect(),
                _ => in_order.clone(),
            };
            plan(name, &|out| {
                pie_rope_plan_from_tokens(old.as_ptr(), ROWS, new.as_ptr(), ROWS, out)
            });
        }
        plan("positions", &|out| {
            pie_rope_plan_from_positions(scattered.as_ptr(), moved.as_ptr(), ROWS, out)
        });
        plan("deltas", &|out| {
            pie_rope_plan_from_deltas(scattered.as_ptr(), ROWS, deltas.as_ptr(), deltas.len(), out)
        });
        plan("deltas of cells in order", &|out| {
            pie_rope_plan_from_deltas(null(), ROWS, deltas.as_ptr(), deltas.len(), out)
        });
        plan("division", &|out| {
            pie_rope_plan_from_division(scattered.as_ptr(), ROWS, 0, -1, 3, out)
        });
        plan("kept", &|out| {
            pie_rope_plan_from_kept(ROWS, kept.as_ptr(), kept.len(), out)
        });
        plan("kept, with positions", &|out| {
            pie_rope_plan_from_kept_at(
                scattered.as_ptr(),
                ROWS,
                kept.as_ptr(),
                positions.as_ptr(),
                kept.len(),
                out,
            )
        });
    }
}

#[test]
fn what_is_made_of_plans_and_ropes() {
    const LAYERS: usize = 65_535;
    let edits = edits(ROWS / 4);
    let edit = |i: usize| Edit {
        struct_size: size_of::<Edit>(),
        start: 6 * i,
        end: 6 * i + 1,
        inserted: i % 2,
    };
    let more: Vec<Edit> = (0..ROWS / 8).map(edit).collect();
    // SAFETY: of all, this test made the arrays and the handles, frees each once, and `out` is a place to write to.
    unsafe {
        let plan = make(|out| pie_rope_plan_from_edits(0, ROWS, edits.as_ptr(), edits.len(), out));
        let (mut old, mut new) = (0, 0);
        assert_eq!(pie_rope_plan_rows(plan, &mut old, &mut new), OK);
        let next = make(|out| pie_rope_plan_from_edits(0, new, more.as_ptr(), more.len(), out));
        let made_plan =
            |name, call: &dyn Fn(*mut Handle) -> i32| made(name, pie_rope_plan_free, call);
        made_plan("then", &|out| pie_rope_plan_then(plan, next, out));
        made_plan("in place", &|out| pie_rope_plan_in_place(plan, out));

        let made_rope =
            |name, call: &dyn Fn(*mut Handle) -> i32| made(name, pie_rope_rope_free, call);
        made_rope("a rope", &|out| {
            pie_rope_rope_from_theta(1e4, 64, 0, 0, LAYERS, out)
        });
        let rope = make(|out| pie_rope_rope_from_theta(1e4, 64, 0, 0, LAYERS, out));
        let other = make(|out| pie_rope_rope_from_theta(1e6, 64, 0, 0, LAYERS, out));
        let layers = vec![rope; LAYERS];
        made_rope("a rope's layers", &|out| {
            pie_rope_rope_from_layers(layers.as_ptr(), LAYERS, out)
        });
        made_rope("other pairs", &|out| {
            pie_rope_rope_with_pairing(rope, 1, out)
        });
        made_rope("another offset", &|out| {
            pie_rope_rope_with_offset(rope, 8, out)
        });
        let llama = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2"#;
        let numbers = format!(r#"{llama}, "other": [{}1]}}"#, "1,".repeat(100_000));
        let entries: String = (0..30_000)
            .map(|i| format!(r#", "{i}":{{"a":0}}"#))
            .collect();
        for json in [numbers, format!("{llama}{entries}}}")] {
            let json = CString::new(json).unwrap();
            made_rope("a config", &|out| {
                pie_rope_rope_from_config_json(json.as_ptr(), out)
            });
        }

        // What is refused has a text, which takes memory.
        let wrong = |model_type: &str| CString::new(format!(r#"{{"model_type": "{model_type}"}}"#));
        for json in ["none", &"n".repeat(100_000)].map(|name| wrong(name).unwrap()) {
            returns(CONFIG, "a config that is refused", &|| {
                pie_rope_rope_from_config_json(json.as_ptr(), &mut null_mut())
            });
            returns(PLAN, "positions that are refused", &|| {
                pie_rope_plan_from_positions([i32::MAX].as_ptr(), [-2].as_ptr(), 1, &mut null_mut())
            });
        }

        let made_rotations =
            |name, call: &dyn Fn(*mut Handle) -> i32| made(name, pie_rope_rotations_free, call);
        made_rotations("rotations", &|out| pie_rope_rotations_new(plan, rope, out));
        made_rotations("rotations of two ropes", &|out| {
            pie_rope_rotations_between(plan, rope, other, out)
        });
        let rotations = make(|out| pie_rope_rotations_new(plan, rope, out));
        made_rotations("starting at a row", &|out| {
            pie_rope_rotations_starting_at(rotations, 100, out)
        });
        made_rotations("affected only", &|out| {
            pie_rope_rotations_affected_only(rotations, out)
        });
        let which: Vec<usize> = (0..LAYERS).rev().collect();
        made_rotations("selected layers", &|out| {
            pie_rope_rotations_select(rotations, which.as_ptr(), LAYERS, out)
        });
        made_rotations("another plan", &|out| {
            let status = pie_rope_rotations_new(next, rope, out);
            if status == OK && pie_rope_rotations_update(*out, plan) != OK {
                pie_rope_rotations_free(*out);
                *out = null_mut();
                return OUT_OF_MEMORY;
            }
            status
        });
        pie_rope_rotations_free(rotations);
        pie_rope_rope_free(rope);
        pie_rope_rope_free(other);
        pie_rope_plan_free(plan);
        pie_rope_plan_free(next);
    }
}

/// Ropes whose memory is their frequencies, not their layers; and configs whose memory is not their text.
#[test]
fn wide_ropes_and_odd_configs() {
    let made_rope = |name: &str, call: &dyn Fn(*mut Handle) -> i32| {
        made(name, pie_rope_rope_free, call);
    };
    let frequencies = vec![0.5; 30_000];
    // SAFETY: of all, this test made the arrays, of the lengths that it gives, and `out` is a place to write to.
    unsafe {
        made_rope("theta", &|out| {
            pie_rope_rope_from_theta(1e4, 65_536, 0, 0, 1, out)
        });
        made_rope("yarn", &|out| {
            pie_rope_rope_from_yarn(1e4, 65_536, 4.0, 4096, 32.0, 1.0, 0, 0, 1, out)
        });
        made_rope("frequencies", &|out| {
            pie_rope_rope_from_inv_freq(frequencies.as_ptr(), 30_000, 0, 0, 1, out)
        });
        let llama = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2"#;
        let objects = r#"{"":0},"#.repeat(20_000);
        let nested = r#"{"":{"":{"":{"":{"":{"":1}}}}}},"#.repeat(4000);
        let factors = "1.5,".repeat(1023);
        let long = r#""max_position_embeddings": 9999, "original_max_position_embeddings": 4096"#;
        for (name, json) in [
            ("objects", format!(r#"{llama}, "o": [{objects}0]}}"#)),
            ("nested objects", format!(r#"{llama}, "o": [{nested}0]}}"#)),
            (
                "layers",
                r#"{"model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 1, "head_dim": 64,
                    "num_hidden_layers": 1024}"#
                    .into(),
            ),
            ("a wide head", format!(r#"{llama}, "head_dim": 4096}}"#)),
            (
                "long and short factors",
                format!(
                    r#"{{"model_type": "phi3", "hidden_size": 2048, "num_attention_heads": 1,
                    "num_hidden_layers": 100, {long}, "rope_scaling": {{"type": "longrope",
                    "short_factor": [{factors}2], "long_factor": [{factors}2]}}}}"#
                ),
            ),
        ] {
            let json = CString::new(json).unwrap();
            made_rope(name, &|out| {
                pie_rope_rope_from_config_json_at(json.as_ptr(), 5000, out)
            });
        }
    }
}

/// Models whose layers have a rope each, in numbers at which lists that grow are largest.
#[test]
fn ropes_of_their_own() {
    let one = Edit {
        struct_size: size_of::<Edit>(),
        start: 1,
        end: 1,
        inserted: 1,
    };
    for layers in [1000, 1793, 2000, 3585] {
        // SAFETY: of all, this test made the arrays and the handles, frees each once, and `out` is a place to write to.
        unsafe {
            let plan = make(|out| pie_rope_plan_from_edits(0, 3, &one, 1, out));
            let models = [1e4, 1e6].map(|theta| {
                let rope = |layer| {
                    let theta = theta + layer as f64;
                    make(|out| pie_rope_rope_from_theta(theta, 4, 0, 0, layers, out))
                };
                let ropes: Vec<Handle> = (0..layers).map(rope).collect();
                made("layers", pie_rope_rope_free, &|out| {
                    pie_rope_rope_from_layers(ropes.as_ptr(), layers, out)
                });
                let model = make(|out| pie_rope_rope_from_layers(ropes.as_ptr(), layers, out));
                ropes.into_iter().for_each(|rope| pie_rope_rope_free(rope));
                model
            });
            let [old, new] = models;
            made("other pairs", pie_rope_rope_free, &|out| {
                pie_rope_rope_with_pairing(old, 1, out)
            });
            made("another offset", pie_rope_rope_free, &|out| {
                pie_rope_rope_with_offset(old, 8, out)
            });
            let rotations = |name: &str, call: &dyn Fn(*mut Handle) -> i32| {
                let name = format!("{name}, {layers} ropes");
                made(&name, pie_rope_rotations_free, call);
            };
            rotations("rotations", &|out| pie_rope_rotations_new(plan, old, out));
            rotations("between", &|out| {
                pie_rope_rotations_between(plan, old, new, out)
            });
            for of in [old, new] {
                let all = make(|out| pie_rope_rotations_between(plan, old, of, out));
                rotations("starting at a row", &|out| {
                    pie_rope_rotations_starting_at(all, 1, out)
                });
                rotations("affected only", &|out| {
                    pie_rope_rotations_affected_only(all, out)
                });
                let which: Vec<usize> = (0..layers).rev().collect();
                for len in [1, layers] {
                    rotations("selected", &|out| {
                        pie_rope_rotations_select(all, which.as_ptr(), len, out)
                    });
                }
                pie_rope_rotations_free(all);
            }
            pie_rope_plan_free(plan);
            pie_rope_rope_free(old);
            pie_rope_rope_free(new);
        }
    }
}

#[test]
fn threads() {
    for threads in [1, 2, 40] {
        let expected = if threads == 1 || cfg!(feature = "rayon") {
            OK
        } else {
            ARGUMENT
        };
        gives_back_elsewhere(expected, &format!("{threads} threads"), &|| {
            let mut out = null_mut();
            // SAFETY: `out` is a place to write to; what is made is freed once.
            unsafe {
                let status = pie_rope_cpu_new(threads, &mut out);
                pie_rope_cpu_free(out);
                status
            }
        });
    }
}

/// What a verb takes is freed when it returns: nothing is made. On one thread, which is the one that is counted.
#[test]
fn verbs() {
    let few = [Edit {
        struct_size: size_of::<Edit>(),
        start: 1,
        end: 1,
        inserted: 1,
    }];
    let many = edits(2000);
    let bhsd = |heads, rows, dim| {
        move |layout: *mut _| {
            // SAFETY: the caller's, who says its size.
            unsafe { pie_rope_layout_bhsd(0, 1, heads, rows, dim, layout) }
        }
    };
    // SAFETY: as above.
    let transposed = |layout: *mut _| unsafe { pie_rope_layout_transposed(0, 1, 4096, 64, layout) };
    // SAFETY: as above.
    let x_packed =
        |layout: *mut _| unsafe { pie_rope_layout_x_packed(0, 64, 2, 128, 64, 4, layout) };
    let small = (3, 4, &few[..]);
    // Rows in order, of which many are spans.
    let long = (8000, 9999, &many[..]);
    // Rows before and after, and the edits; heads by elements of a head; layers.
    verbs_on(
        "many spans",
        long,
        &bhsd(8, 10_000, 4),
        8 * 10_000 * 4,
        4,
        2,
    );
    verbs_on("many layers", small, &bhsd(2, 4, 4), 2 * 4 * 4, 4, 5000);
    verbs_on("many heads", small, &bhsd(3000, 4, 4), 3000 * 4 * 4, 4, 2);
    verbs_on(
        "many of all",
        long,
        &bhsd(40, 10_000, 4),
        40 * 10_000 * 4,
        4,
        40,
    );
    let rows = 400_000;
    let long_span = (rows - 1, rows, &few[..]);
    verbs_on("many rows", long_span, &bhsd(1, rows, 4), rows * 4, 4, 1);
    let of_block = (60, 61, &few[..]);
    verbs_on("transposed", of_block, &transposed, 4096 * 64, 4096, 1);
    let of_blocks = (4000, 4001, &few[..]);
    verbs_on("packs", of_blocks, &x_packed, 64 * 2 * 128 * 64 * 4, 512, 1);
}

fn verbs_on(
    name: &str,
    (old, new, edits): (usize, usize, &[Edit]),
    layout: &dyn Fn(*mut CacheLayout) -> i32,
    len: usize,
    dim: usize,
    layers: usize,
) {
    let of = |buffers: &mut [f32]| -> Vec<Layer> {
        let layer = |both: &mut [f32]| {
            let (keys, values) = both.split_at_mut(len);
            Layer {
                struct_size: size_of::<Layer>(),
                keys: keys.as_mut_ptr(),
                keys_len: len,
                values: values.as_mut_ptr(),
                values_len: len,
            }
        };
        buffers.chunks_mut(2 * len).map(layer).collect()
    };
    let buffers = || vec![1.0f32; 2 * layers * len];
    let (mut one, mut two) = (buffers(), buffers());
    let (one, two) = (of(&mut one), of(&mut two));
    let mut rows = CacheLayout {
        struct_size: size_of::<CacheLayout>(),
        rest: [0; 15],
    };
    assert_eq!(layout(&mut rows), OK);
    let cache = |layers: &[Layer]| Cache {
        struct_size: size_of::<Cache>(),
        keys: &rows,
        values: &rows,
        layers: layers.as_ptr(),
        layers_len: layers.len(),
    };
    let (one, two) = (cache(&one), cache(&two));
    // SAFETY: of all, this function made arrays, handles and buffers, of the lengths that it gives, and frees each once.
    unsafe {
        let cpu = make(|out| pie_rope_cpu_new(1, out));
        let plan = make(|out| pie_rope_plan_from_edits(0, old, edits.as_ptr(), edits.len(), out));
        let mut size = [0; 2];
        assert_eq!(pie_rope_plan_rows(plan, &mut size[0], &mut size[1]), OK);
        assert!(size[1] <= new, "{name}: {size:?}");
        let ropes = [1e4, 1e6]
            .map(|theta| make(|out| pie_rope_rope_from_theta(theta, dim, 0, 0, layers, out)));
        for (angles, to) in [("", 0), (", an angle for each row", 1)] {
            let rotations = make(|out| pie_rope_rotations_between(plan, ropes[0], ropes[to], out));
            let verb = |verb: &str, call: &dyn Fn() -> i32| {
                run(&format!("{verb}, {name}{angles}"), call);
            };
            verb("rotate", &|| pie_rope_cpu_rotate(cpu, rotations, &one));
            verb("splice", &|| pie_rope_cpu_splice(cpu, rotations, &one));
            verb("copy", &|| pie_rope_cpu_copy(cpu, rotations, &one, &two));
            pie_rope_rotations_free(rotations);
        }
        ropes.into_iter().for_each(|rope| pie_rope_rope_free(rope));
        pie_rope_plan_free(plan);
        pie_rope_cpu_free(cpu);
    }
}

/// Pages by a table, and from one table to another.
#[test]
fn pages() {
    let edits = edits(500);
    let (rows, block) = (2500, 1);
    let tables =
        [0, rows as u32].map(|first| (first..first + rows as u32).rev().collect::<Vec<_>>());
    let layouts = tables.each_ref().map(|table| {
        let mut layout = CacheLayout {
            struct_size: size_of::<CacheLayout>(),
            rest: [0; 15],
        };
        // SAFETY: a local, of the size that it says.
        let status = unsafe { pie_rope_layout_nhd(0, 2 * rows, block, 2, 8, &mut layout) };
        assert_eq!(status, OK);
        // Its last two members.
        layout.rest[13] = table.as_ptr() as usize;
        layout.rest[14] = table.len();
        layout
    });
    let len = 2 * rows * 2 * 8;
    let (mut keys, mut values) = (vec![1.0f32; len], vec![1.0f32; len]);
    let layer = Layer {
        struct_size: size_of::<Layer>(),
        keys: keys.as_mut_ptr(),
        keys_len: len,
        values: values.as_mut_ptr(),
        values_len: len,
    };
    let cache = Cache {
        struct_size: size_of::<Cache>(),
        keys: &layouts[0],
        values: &layouts[0],
        layers: &layer,
        layers_len: 1,
    };
    let to = &layouts[1];
    // SAFETY: of all, this test made arrays, handles and buffers, of the lengths that it gives, and frees each once.
    unsafe {
        let cpu = make(|out| pie_rope_cpu_new(1, out));
        let plan = make(|out| pie_rope_plan_from_edits(0, 2000, edits.as_ptr(), 500, out));
        let rope = make(|out| pie_rope_rope_from_theta(1e4, 8, 0, 0, 1, out));
        let rotations = make(|out| pie_rope_rotations_new(plan, rope, out));
        run("rotate pages", &|| {
            pie_rope_cpu_rotate(cpu, rotations, &cache)
        });
        run("splice pages", &|| {
            pie_rope_cpu_splice(cpu, rotations, &cache)
        });
        run("copy to other pages", &|| {
            pie_rope_cpu_copy_within(cpu, rotations, &cache, to, to)
        });
        pie_rope_rotations_free(rotations);
        pie_rope_rope_free(rope);
        pie_rope_plan_free(plan);
        pie_rope_cpu_free(cpu);
    }
}
