//! `cargo bench --bench cpu_ceiling`: how near the CPU verbs come to memory, as ratios.
//!
//! Each line is one layout, type, head dimension and number of threads. A verb and its ceiling take turns, round by
//! round, in the same memory; the table gives the ceiling's median throughput and, for each verb, the median
//! over rounds of ceiling time / verb time. 1.00 is a verb that costs what moving its bytes costs.
//!
//! Arguments: `bytes=N` of keys (default 1.5 GiB, far past any last-level cache), `rounds=N`, and any of
//! `f32 f16 bf16 x1 x2 d64 d80 d96 d128 d256 bhsd nhd xpacked` to run only those. The two paged layouts are
//! measured at 128 dimensions, in pages of 16 rows in no order, and so are their ceilings.

#[allow(dead_code, reason = "shared with the other CPU benchmark")]
mod support;

use std::cell::RefCell;
use std::time::Instant;

use half::{bf16, f16};
use pie_rope::{Cpu, Pairing};
use support::{Cache, Lie, Number, Shape, shift_all, turn_all, turn_row_by_row};

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let number = |name: &str, default: usize| {
        let value = arguments
            .iter()
            .find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    let bytes = number("bytes", 1536 << 20);
    let rounds = number("rounds", 11);
    let chosen: Vec<&String> = arguments.iter().filter(|a| !a.contains('=')).collect();
    let wanted = |class: &[&str], name: &str| {
        let of_class = |a: &&&String| class.contains(&a.as_str());
        chosen.iter().filter(of_class).count() == 0 || chosen.iter().any(|a| *a == name)
    };

    println!(
        "instruction set {}, {} MiB of keys, {rounds} rounds",
        Cpu::new().instruction_set(),
        bytes >> 20
    );
    println!(
        "| keys | threads | sweep GB/s | rotate half-split | rotate interleaved | rotate row by row | memmove GB/s | splice | memcpy GB/s | copy |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let dims = [64, 80, 96, 128, 256].map(|dim| (Lie::Bhsd, dim));
    for (lie, dim) in dims
        .into_iter()
        .chain([(Lie::Nhd, 128), (Lie::XPacked, 128)])
    {
        let name = match lie {
            Lie::Bhsd => "bhsd",
            Lie::Nhd => "nhd",
            Lie::XPacked => "xpacked",
        };
        if !wanted(&["d64", "d80", "d96", "d128", "d256"], &format!("d{dim}"))
            || !wanted(&["bhsd", "nhd", "xpacked"], name)
        {
            continue;
        }
        for threads in [1, 2] {
            if !wanted(&["x1", "x2"], &format!("x{threads}")) {
                continue;
            }
            let run = Run {
                lie,
                name,
                dim,
                threads,
                bytes,
                rounds,
            };
            let types = ["f32", "f16", "bf16"];
            if wanted(&types, "f32") {
                run.line::<f32>();
            }
            if wanted(&types, "f16") {
                run.line::<f16>();
            }
            if wanted(&types, "bf16") {
                run.line::<bf16>();
            }
        }
    }
}

/// Something to time, told which round it is.
type Job<'a, T> = &'a mut dyn FnMut(&mut Cache<T>, usize);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Run {
    lie: Lie,
    name: &'static str,
    dim: usize,
    threads: usize,
    bytes: usize,
    rounds: usize,
}

impl Run {
    fn line<T: Number>(&self) {
        let threads = self.threads;
        let shape = Shape::of_bytes::<T>(self.lie, self.bytes, self.dim);
        let cpu = Cpu::with_threads(threads).expect("threads");
        let mut cache = Cache::<T>::random(shape);
        let [half_split, interleaved] =
            [Pairing::HalfSplit, Pairing::Interleaved].map(|pairing| turn_all(shape, pairing));
        let row_by_row = turn_row_by_row(shape);
        let shifts = shift_all(shape, Pairing::HalfSplit);

        let rotate = self.in_turns(
            &mut cache,
            &mut [
                // Twice, so that the values are what they were.
                &mut |cache, _| {
                    cache.sweep(threads);
                    cache.sweep(threads);
                },
                &mut |cache, _| half_split.iter().for_each(|turn| cache.rotate(&cpu, turn)),
                &mut |cache, _| interleaved.iter().for_each(|turn| cache.rotate(&cpu, turn)),
                &mut |cache, _| row_by_row.iter().for_each(|turn| cache.rotate(&cpu, turn)),
            ],
        );
        let splice = self.in_turns(
            &mut cache,
            &mut [
                &mut |cache, _| {
                    [true, false]
                        .iter()
                        .for_each(|&right| cache.memmove(right, threads))
                },
                &mut |cache, _| shifts.iter().for_each(|shift| cache.splice(&cpu, shift)),
            ],
        );
        // Source and destination share the memory that the keys had.
        let small = Shape {
            layers: shape.layers.div_ceil(2),
            ..shape
        };
        cache.layers.truncate(small.layers);
        cache.shape = small;
        let other = RefCell::new(Cache::<T>::random(small));
        let copy = self.in_turns(
            &mut cache,
            &mut [
                &mut |cache, _| cache.memcpy(&mut other.borrow_mut(), threads),
                &mut |cache, round| {
                    cache.copy(&mut other.borrow_mut(), &cpu, &half_split[round % 2]);
                },
            ],
        );

        let moved = |times: &[f64], bytes: usize| bytes as f64 / median(times.to_vec()) / 1e9;
        let ratio = |times: &[Vec<f64>], verb: usize| {
            median(
                times[0]
                    .iter()
                    .zip(&times[verb])
                    .map(|(ceiling, verb)| ceiling / verb)
                    .collect(),
            )
        };
        // Every byte is read once and written once, in both of a job's passes if it has two.
        println!(
            "| {} {} d{} | {threads} | {:.1} | {:.3} | {:.3} | {:.3} | {:.1} | {:.3} | {:.1} | {:.3} |",
            self.name,
            T::TYPE,
            self.dim,
            moved(&rotate[0], 4 * shape.key_bytes::<T>()),
            ratio(&rotate, 1),
            ratio(&rotate, 2),
            ratio(&rotate, 3),
            moved(&splice[0], 8 * shape.key_bytes::<T>()),
            ratio(&splice, 1),
            moved(&copy[0], 4 * small.key_bytes::<T>()),
            ratio(&copy, 1),
        );
    }

    /// Times of each job, round by round.
    fn in_turns<T>(&self, cache: &mut Cache<T>, jobs: &mut [Job<'_, T>]) -> Vec<Vec<f64>> {
        let mut times = vec![Vec::new(); jobs.len()];
        for round in 0..self.rounds + 1 {
            for (job, times) in jobs.iter_mut().zip(&mut times) {
                let start = Instant::now();
                job(cache, round);
                let time = start.elapsed().as_secs_f64();
                // The first round touches the pages.
                if round > 0 {
                    times.push(time);
                }
            }
        }
        times
    }
}
