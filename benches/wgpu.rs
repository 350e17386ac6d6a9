//! `cargo bench --features wgpu --bench wgpu`: the verbs of the wgpu backend on one adapter, each beside a
//! buffer-to-buffer copy of the same bytes on it.
//!
//! Time is the GPU's own where it has timestamps, else that of submission and waiting. Verb and copy take turns
//! in each round; the ratio is the median copy's time over the median verb's. A copy reads and writes every byte
//! once, as the verbs do. Deltas alternate in sign, so that values stay what they are.
//!
//! `WGPU_ADAPTER_NAME` chooses the adapter; `rounds=` and `mib=` (of keys) may be given.

use std::time::Instant;

use pie_rope::{
    Edit, ElementType, KeyLayout, Pairing, Plan, Rope, Rotations, Wgpu, WgpuLayer, wgpu,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use wgpu::BufferUsages as Usage;

const HEADS: usize = 8;
const ROWS: usize = 4096;
const DIM: usize = 128;
const BLOCK: usize = 16;
/// Rows that an edit inserts or deletes, and positions that keys turn by.
const SHIFT: usize = 37;

fn main() {
    let argument = |name: &str| {
        let prefix = format!("{name}=");
        std::env::args().find_map(|argument| argument.strip_prefix(&prefix)?.parse().ok())
    };
    let gpu = match Wgpu::open() {
        Ok(gpu) => gpu,
        Err(error) => return println!("nothing to measure: {error}"),
    };
    let software = gpu.adapter().device_type == wgpu::DeviceType::Cpu;
    let rounds = argument("rounds").unwrap_or(if software { 3 } else { 50 });
    let mib = argument("mib").unwrap_or(if software { 16 } else { 1024 });
    let clock = Clock::new(&gpu);
    println!("adapter: {gpu}");
    println!(
        "time: {}; {rounds} rounds, {mib} MiB of keys in layers of {HEADS} heads, {ROWS} rows, {DIM} dimensions",
        if clock.queries.is_some() {
            "timestamp queries"
        } else {
            "submission and waiting"
        }
    );
    println!("| type | cache | verb | GB/s | copy GB/s | ratio |\n|---|---|---|---|---|---|");
    for element in [ElementType::F32, ElementType::F16, ElementType::BF16] {
        for paged in [false, true] {
            measure(&gpu, &clock, element, paged, rounds, mib << 20);
        }
    }
}

fn measure(
    gpu: &Wgpu,
    clock: &Clock<'_>,
    element: ElementType,
    paged: bool,
    rounds: usize,
    bytes: usize,
) {
    let layer_bytes = HEADS * ROWS * DIM * element.size();
    let layers = bytes.div_ceil(layer_bytes);
    let cache = Cache::new(gpu, layers, layer_bytes);
    let other = Cache::new(gpu, layers, layer_bytes);
    let mut table: Vec<u32> = (0..(ROWS / BLOCK) as u32).collect();
    table.shuffle(&mut SmallRng::seed_from_u64(rand::random()));
    let (name, layout) = if paged {
        let pages = KeyLayout::nhd(element, [ROWS / BLOCK, BLOCK, HEADS, DIM]);
        ("pages", pages.with_table(&table))
    } else {
        ("rows", KeyLayout::bhsd(element, [1, HEADS, ROWS, DIM]))
    };
    let line = |verb: &str, moved: usize, mut times: Vec<[f64; 2]>| {
        let median = |which: usize, times: &mut Vec<[f64; 2]>| {
            times.sort_by(|a, b| a[which].total_cmp(&b[which]));
            times[times.len() / 2][which]
        };
        let (verb_time, copy_time) = (median(0, &mut times), median(1, &mut times));
        let rate = |time: f64| moved as f64 / time / 1e9;
        println!(
            "| {element} | {name} | {verb} | {:.2} | {:.2} | {:.3} |",
            rate(verb_time),
            rate(copy_time),
            copy_time / verb_time
        );
    };
    let keys: Vec<_> = cache.keys.iter().map(WgpuLayer::keys_only).collect();
    let (from, to) = (cache.layers(), other.layers());
    for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
        let times = (0..rounds + 1).map(|round| {
            let turn = turn_all(pairing, round % 2 == 1);
            let verb = clock.time(|encoder| {
                gpu.rotate(encoder, &turn, layout, &keys)
                    .expect("a sound call");
            });
            [verb, clock.time(|encoder| cache.copy_keys(&other, encoder))]
        });
        // The first round makes the pipeline.
        let times = times.skip(1).collect();
        line(
            &format!("rotate {pairing:?}"),
            2 * layers * layer_bytes,
            times,
        );
    }
    let times = (0..rounds + 1).map(|round| {
        let shift = shift_all(round % 2 == 1);
        let verb = clock.time(|encoder| {
            gpu.splice(encoder, &shift, layout, &from)
                .expect("a sound call");
        });
        [verb, clock.time(|encoder| cache.copy(&other, encoder))]
    });
    line("splice", 4 * layers * layer_bytes, times.skip(1).collect());
    let turn = turn_all(Pairing::HalfSplit, false);
    let times = (0..rounds + 1).map(|_| {
        let verb = clock.time(|encoder| {
            gpu.copy(encoder, &turn, layout, &from, layout, &to)
                .expect("a sound call");
        });
        [verb, clock.time(|encoder| cache.copy(&other, encoder))]
    });
    line("copy", 4 * layers * layer_bytes, times.skip(1).collect());
}

/// Layers of keys and values, a buffer each.
struct Cache {
    keys: Vec<wgpu::Buffer>,
    values: Vec<wgpu::Buffer>,
}

impl Cache {
    /// Random numbers of about one, never zeros: some memories are quick with those.
    fn new(gpu: &Wgpu, layers: usize, bytes: usize) -> Cache {
        let mut random = SmallRng::seed_from_u64(rand::random());
        // The bits of numbers between one half and two in every element type.
        let noise: Vec<u32> = (0..bytes / 4)
            .map(|_| (random.random::<u32>() & 0x80ff_80ff) | 0x3f00_3f00)
            .collect();
        let buffer = || {
            let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: bytes as u64,
                usage: Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC,
                mapped_at_creation: false,
            });
            gpu.queue()
                .write_buffer(&buffer, 0, bytemuck::cast_slice(&noise));
            buffer
        };
        Cache {
            keys: (0..layers).map(|_| buffer()).collect(),
            values: (0..layers).map(|_| buffer()).collect(),
        }
    }

    fn layers(&self) -> Vec<WgpuLayer<'_>> {
        let both = self.keys.iter().zip(&self.values);
        both.map(|(keys, values)| WgpuLayer::new(keys, values))
            .collect()
    }

    fn copy_keys(&self, to: &Cache, encoder: &mut wgpu::CommandEncoder) {
        for (from, to) in self.keys.iter().zip(&to.keys) {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
        }
    }

    fn copy(&self, to: &Cache, encoder: &mut wgpu::CommandEncoder) {
        self.copy_keys(to, encoder);
        for (from, to) in self.values.iter().zip(&to.values) {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
        }
    }
}

/// How long commands take.
struct Clock<'a> {
    gpu: &'a Wgpu,
    queries: Option<(wgpu::QuerySet, wgpu::Buffer, wgpu::Buffer)>,
}

impl<'a> Clock<'a> {
    fn new(gpu: &'a Wgpu) -> Clock<'a> {
        let device = gpu.device();
        let has = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        let queries = has.then(|| {
            let set = device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            (
                set,
                buffer(Usage::QUERY_RESOLVE | Usage::COPY_SRC),
                buffer(Usage::COPY_DST | Usage::MAP_READ),
            )
        });
        Clock { gpu, queries }
    }

    /// Seconds from the first to the last of what `record` records.
    fn time(&self, record: impl FnOnce(&mut wgpu::CommandEncoder)) -> f64 {
        let device = self.gpu.device();
        let mut encoder = device.create_command_encoder(&Default::default());
        let Some((set, resolved, back)) = &self.queries else {
            record(&mut encoder);
            let start = Instant::now();
            self.gpu.submit(encoder).expect("a sound submission");
            return start.elapsed().as_secs_f64();
        };
        // An empty pass on either side: the one way to take the time that every such device has.
        let stamp = |encoder: &mut wgpu::CommandEncoder, index| {
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: set,
                beginning_of_pass_write_index: None,
                end_of_pass_write_index: Some(index),
            };
            drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(writes),
            }));
        };
        stamp(&mut encoder, 0);
        record(&mut encoder);
        stamp(&mut encoder, 1);
        encoder.resolve_query_set(set, 0..2, resolved, 0);
        encoder.copy_buffer_to_buffer(resolved, 0, back, 0, 16);
        self.gpu.submit(encoder).expect("a sound submission");
        back.map_async(wgpu::MapMode::Read, .., |result| result.expect("mappable"));
        let waited = device.poll(wgpu::PollType::wait_indefinitely());
        waited.expect("a device that lives");
        let view = back.get_mapped_range(..).expect("mapped");
        let ticks: [u64; 2] = bytemuck::pod_read_unaligned(&view);
        drop(view);
        back.unmap();
        let period = f64::from(self.gpu.queue().get_timestamp_period());
        (ticks[1] - ticks[0]) as f64 * period * 1e-9
    }
}

/// Turns every row by [`SHIFT`], forwards or back.
fn turn_all(pairing: Pairing, back: bool) -> Rotations {
    let near: Vec<i32> = (0..ROWS as i32).collect();
    let far: Vec<i32> = near.iter().map(|row| row + SHIFT as i32).collect();
    let plan = if back {
        Plan::from_positions(&far, &near)
    } else {
        Plan::from_positions(&near, &far)
    };
    let rope = Rope::from_theta(10_000.0, DIM).expect("an even dimension");
    let rope = rope.with_pairing(pairing);
    Rotations::new(&plan.expect("sound positions"), &rope).expect("a small table")
}

/// Inserts [`SHIFT`] rows before all others, or deletes them again.
fn shift_all(back: bool) -> Rotations {
    let plan = if back {
        Plan::from_edits(ROWS, &[Edit::delete(0..SHIFT)])
    } else {
        Plan::from_edits(ROWS - SHIFT, &[Edit::insert(0, SHIFT)])
    };
    let rope = Rope::from_theta(10_000.0, DIM).expect("an even dimension");
    Rotations::new(&plan.expect("a sound edit"), &rope).expect("a small table")
}
