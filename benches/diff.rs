//! `cargo bench --bench diff`: the time that the edits between two token sequences take, of every
//! kind of text and of edit, and how good they are.
//!
//! Each line is one kind of text, made once per kind of edit: tokens to encode as the diff has it, as
//! the best edits have it, and as comparison position by position has it; edits; and the median time
//! of some runs, that of the processor (on other systems than Linux, of the clock). The best edits take
//! half a second for each line.
//!
//! Arguments: `tokens=N` (default 131072), `rounds=N` (default 5), `seed=N` for other texts, `best=0` to
//! leave the best edits out, and any text that the names of the lines to run contain.

#[path = "support/longest.rs"]
mod longest;
#[path = "support/texts.rs"]
mod texts;

use std::time::Duration;

use pie_rope::Edit;

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
    let tokens = number("tokens", 131_072);
    let rounds = number("rounds", 5).max(1);
    let seed = number("seed", 1) as u64;
    let best = number("best", 1) != 0;
    let chosen: Vec<&String> = arguments.iter().filter(|a| !a.contains('=')).collect();

    let mut worst = (1.0, String::new());
    let mut slowest = (Duration::ZERO, String::new());
    println!("{:52} encode   best  in place   edits  time (ms)", "");
    for text in texts::TEXTS {
        for change in texts::CHANGES {
            let name = format!("{}: {}", text.name, change.name);
            if !chosen.is_empty() && !chosen.iter().any(|part| name.contains(*part)) {
                continue;
            }
            let mut random = texts::random(seed);
            let old = (text.make)(tokens, &mut random);
            let new = (change.make)(text, &old, &mut random);
            let mut edits = Vec::new();
            let mut times: Vec<Duration> = (0..rounds)
                .map(|_| {
                    let start = thread_time();
                    edits = Edit::between(&old, &new);
                    thread_time() - start
                })
                .collect();
            times.sort_unstable();
            let time = times[rounds / 2];

            let encode: usize = edits.iter().map(|edit| edit.insert).sum();
            let least = best.then(|| new.len() - longest::common(&old, &new));
            let same = old.iter().zip(&new).filter(|(old, new)| old == new).count();
            println!(
                "{name:52} {encode:6} {:>6} {:9} {:7} {:10.2}",
                least.map_or(String::new(), |least| least.to_string()),
                new.len() - same,
                edits.len(),
                time.as_secs_f64() * 1e3,
            );
            let ratio = least.map_or(1.0, |least| encode as f64 / least.max(1) as f64);
            if ratio > worst.0 {
                worst = (ratio, name.clone());
            }
            slowest = slowest.max((time, name));
        }
    }
    println!("worst: {:.2} times the best, {}", worst.0, worst.1);
    println!(
        "slowest: {:.2} ms, {}",
        slowest.0.as_secs_f64() * 1e3,
        slowest.1
    );
}

/// The time that this thread has had the processor.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn thread_time() -> Duration {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    let mut time = [0; 2];
    // SAFETY: a `timespec` is two 64-bit numbers on these systems, and `time` has room for it.
    let failed = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "a clock of the thread");
    Duration::new(time[0] as u64, time[1] as u32)
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn thread_time() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}
