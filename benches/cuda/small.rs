//! Calls that touch little, where latency is what they cost, and what calls cost the host.

use std::time::Instant;

use pie_rope::cudarc::driver::CudaGraph;
use pie_rope::cudarc::driver::sys::CUgraphInstantiate_flags;
use pie_rope::cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use pie_rope::{ElementType, Result, Rotations};

use crate::case::{Caches, Change, LEAST_TOKENS, Lie, Model, Verb};
use crate::gpu::Gpu;
use crate::{check, median};

/// Calls of a graph, at most. Each touches other rows, so that together they are far more than an L2 holds.
const CALLS: usize = 256;

/// Calls that are made before the host waits for the device.
const BATCH: usize = 64;

/// Seconds of the device for one call, and for a copy of as many bytes.
pub struct Times {
    /// Rows that each call touches, and bytes that it reads (and writes).
    pub rows: usize,
    pub bytes: u64,
    /// Launched alone.
    pub alone: f64,
    pub copy_alone: f64,
    /// One of many in a graph.
    pub in_graph: f64,
    pub copy_in_graph: f64,
}

/// Calls that touch about `bytes` bytes each, at the ends of ever shorter texts.
pub fn device(
    gpu: &Gpu,
    verb: Verb,
    model: &Model,
    (element, lie): (ElementType, Lie),
    tokens: usize,
    bytes: usize,
    rounds: usize,
) -> std::result::Result<Times, String> {
    let rows = (bytes / model.bytes(element, 1, verb.with_values())).max(1);
    let calls = CALLS.min((tokens - LEAST_TOKENS / 2) / rows);
    let mut arena = gpu.arena();
    let caches = Caches::new(&mut arena, verb, model, element, lie, tokens);
    let turns = (0..calls)
        .map(|call| Change::Leaves(rows).there_and_back(&model.rope, tokens - call * rows));
    let turns: Vec<[Rotations; 2]> = turns
        .collect::<Result<_>>()
        .map_err(|error| error.to_string())?;
    let bytes = verb.moved(model, element, &turns[0][0]) / 2;
    check::call(gpu, &caches, &turns[0][0])?;

    let alone = gpu.in_turns(
        rounds,
        &[
            &|round| caches.call(gpu, &turns[round % calls][0]),
            &|round| gpu.copy(bytes, round),
        ],
    );
    let there = capture(gpu, || {
        turns.iter().for_each(|turn| caches.call(gpu, &turn[0]))
    });
    let back = capture(gpu, || {
        turns.iter().for_each(|turn| caches.call(gpu, &turn[1]))
    });
    let copies = capture(gpu, || (0..calls).for_each(|call| gpu.copy(bytes, call)));
    let launch = |graph: &CudaGraph| graph.launch().expect("a sound graph");
    let in_graph = gpu.in_turns(
        rounds,
        &[
            &|round| launch(if round % 2 == 0 { &there } else { &back }),
            &|_| launch(&copies),
        ],
    );
    Ok(Times {
        rows,
        bytes,
        alone: alone[0],
        copy_alone: alone[1],
        in_graph: in_graph[0] / calls as f64,
        copy_in_graph: in_graph[1] / calls as f64,
    })
}

fn capture(gpu: &Gpu, record: impl FnOnce()) -> CudaGraph {
    let stream = &gpu.stream;
    let begun = stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    begun.expect("a stream that captures nothing yet");
    record();
    // SAFETY: no flags.
    let flags: CUgraphInstantiate_flags = unsafe { std::mem::zeroed() };
    let graph = stream.end_capture(flags).expect("a sound capture");
    graph.expect("a graph of something")
}

/// Seconds of the host for one call: checks, words, launch. The device is not waited for, and has little to do.
pub fn host(
    gpu: &Gpu,
    verb: Verb,
    model: &Model,
    (element, lie): (ElementType, Lie),
    tokens: usize,
    rounds: usize,
) -> Result<f64> {
    let caches = Caches::new(&mut gpu.arena(), verb, model, element, lie, tokens);
    let turns = Change::Start.there_and_back(&model.rope, tokens)?;
    Ok(per_call(gpu, rounds, |call| {
        caches.call(gpu, &turns[call % 2])
    }))
}

/// Seconds of the host for a launch that nobody has done anything for.
pub fn bare_launch(gpu: &Gpu, rounds: usize) -> f64 {
    per_call(gpu, rounds, |_| gpu.bare_launch())
}

fn per_call(gpu: &Gpu, rounds: usize, call: impl Fn(usize)) -> f64 {
    let batch = || {
        gpu.wait();
        let start = Instant::now();
        (0..BATCH).for_each(&call);
        start.elapsed().as_secs_f64() / BATCH as f64
    };
    batch();
    median((0..rounds.max(20)).map(|_| batch()).collect())
}
