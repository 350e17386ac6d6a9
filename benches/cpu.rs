//! `cargo bench --bench cpu`: the verbs of the CPU backend, each beside its ceiling, and planning.
//!
//! Throughput counts every byte once per read and once per write. Deltas alternate in sign, so that values
//! stay what they are. For ratios, measured in turns in one run, see `cpu_ceiling`.

#[allow(dead_code, reason = "shared with the other CPU benchmark")]
mod support;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use pie_rope::{Cpu, Edit, Pairing, Plan, Rope, Rotations};
use support::{Cache, Lie, Number, Shape, shift_all, turn_all};

/// Bytes of keys: far past the last-level cache of one core complex.
const BYTES: usize = 256 << 20;

fn planning(c: &mut Criterion) {
    let rows = 131_072;
    let mut group = c.benchmark_group("planning 131072 rows");
    for edits in [1, 6] {
        let list: Vec<_> = (0..edits)
            .map(|edit| Edit::insert(1000 * (edit + 1), edit + 1))
            .collect();
        let mut plan = Plan::from_edits(rows, &list).expect("sound edits");
        let rope = Rope::from_theta(100_000.0, 128).expect("an even dimension");
        let mut rotations = Rotations::new(&plan, &rope).expect("a small table");
        group.bench_function(format!("{edits} edits: plan"), |b| {
            b.iter(|| plan.set_edits(rows, &list).expect("sound edits"));
        });
        group.bench_function(format!("{edits} edits: plan and rotations"), |b| {
            b.iter(|| {
                plan.set_edits(rows, &list).expect("sound edits");
                rotations.update(&plan).expect("a small table");
            });
        });
    }
    group.finish();
}

fn verbs<T: Number>(c: &mut Criterion) {
    let shape = Shape::of_bytes::<T>(Lie::Bhsd, BYTES, 128);
    let bytes = shape.key_bytes::<T>() as u64;
    for threads in [1, 2] {
        let cpu = Cpu::with_threads(threads).expect("threads");
        let mut group = c.benchmark_group(format!("{} x{threads}", T::TYPE));
        group.sample_size(20).sampling_mode(SamplingMode::Flat);
        let mut cache = Cache::<T>::random(shape);
        let mut other = Cache::<T>::random(shape);

        group.throughput(Throughput::Bytes(2 * bytes));
        group.bench_function("sweep in place", |b| {
            b.iter(|| {
                cache.sweep(threads);
            });
        });
        cache = Cache::random(shape);
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            let turns = turn_all(shape, pairing);
            let mut turn = turns.iter().cycle();
            group.bench_function(format!("rotate {pairing:?}"), |b| {
                b.iter(|| cache.rotate(&cpu, turn.next().expect("a cycle")));
            });
        }

        group.throughput(Throughput::Bytes(4 * bytes));
        let mut right = [true, false].into_iter().cycle();
        group.bench_function("memmove in place", |b| {
            b.iter(|| cache.memmove(right.next().expect("a cycle"), threads));
        });
        let shifts = shift_all(shape, Pairing::HalfSplit);
        let mut shift = shifts.iter().cycle();
        group.bench_function("splice", |b| {
            b.iter(|| cache.splice(&cpu, shift.next().expect("a cycle")));
        });

        group.bench_function("memcpy", |b| b.iter(|| cache.memcpy(&mut other, threads)));
        let turns = turn_all(shape, Pairing::HalfSplit);
        group.bench_function("copy", |b| {
            b.iter(|| cache.copy(&mut other, &cpu, &turns[0]))
        });
        group.finish();
    }
}

criterion_group!(benches, planning, verbs::<f32>, verbs::<f16>, verbs::<bf16>);
criterion_main!(benches);
