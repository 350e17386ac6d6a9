//! What has been measured: tables to read, and the same as JSON.

use anyhow::Result;
use serde_json::{Value, json};

use crate::gpu::Facts;

/// From here on a call is to be as fast as memory.
const LARGE: u64 = 256_000_000;

/// Time of a verb and its ceiling, or why there is none.
pub enum Outcome {
    Measured {
        seconds: f64,
        copy_seconds: f64,
        /// Bytes read and written.
        moved: u64,
    },
    /// The device has less than so many bytes for it.
    TooLarge(u64),
    /// Its result is not what it should be.
    Wrong(String),
}

/// Collects everything, and counts what was aimed at and missed.
pub struct Report {
    json: serde_json::Map<String, Value>,
    targets: usize,
    missed: usize,
    wrong: usize,
}

impl Report {
    /// Begins with what device it is.
    pub fn new(facts: &Facts, rounds: usize) -> Report {
        let Facts {
            name,
            cuda,
            driver,
            capability: (major, minor),
            multiprocessors,
            l2,
            memory,
            free,
            date,
        } = facts;
        let cuda = format!("{}.{}", cuda / 1000, cuda % 1000 / 10);
        println!("# {name}, {date}\n");
        println!(
            "driver {driver} (CUDA {cuda}), compute capability {major}.{minor}, {multiprocessors} multiprocessors, \
             L2 {:.1} MB, memory {:.1} GB ({:.1} free); medians of {rounds} rounds",
            *l2 as f64 * 1e-6,
            gigabytes(*memory),
            gigabytes(*free)
        );
        println!(
            "\nGB/s count bytes read and written, those that must move. `of copy`: time of a device-to-device copy \
             that reads and writes as many, over the verb's. ✗: short of what is aimed at, from {} MB on 0.95 of \
             the copy for `rotate` and `copy`, 0.90 for `splice`.",
            LARGE / 1_000_000
        );
        let device = json!({
            "name": name, "driver": driver, "cuda": cuda, "capability": format!("{major}.{minor}"),
            "multiprocessors": multiprocessors, "l2": l2, "memory": memory, "free": free,
        });
        let mut report = Report {
            json: serde_json::Map::new(),
            targets: 0,
            missed: 0,
            wrong: 0,
        };
        report.json.insert("device".into(), device);
        report.json.insert("date".into(), date.as_str().into());
        report.json.insert("rounds".into(), rounds.into());
        report
    }

    /// Adds a line to one of the lists in the JSON.
    pub fn add(&mut self, list: &str, mut line: Value, more: Value) {
        if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
            line.extend(more);
        }
        let list = self.json.entry(list).or_insert_with(|| json!([]));
        list.as_array_mut().expect("a list").push(line);
    }

    /// Three cells of a table: milliseconds, GB/s, of the copy. Also a line of the JSON.
    pub fn verb(&mut self, case: Value, outcome: &Outcome, aimed_at: f64) -> String {
        match outcome {
            Outcome::Measured {
                seconds,
                copy_seconds,
                moved,
            } => {
                let rate = gigabytes(*moved) / seconds;
                let of_copy = copy_seconds / seconds;
                let met = (*moved >= LARGE).then_some(of_copy >= aimed_at);
                let mark = met.map_or("", |met| self.mark(met));
                let measured = json!({
                    "ms": seconds * 1e3, "copy_ms": copy_seconds * 1e3, "bytes": moved, "gb_per_s": rate,
                    "of_copy": of_copy, "met": met,
                });
                self.add("verbs", case, measured);
                format!("{} | {rate:.0} | {of_copy:.3}{mark}", digits(seconds * 1e3))
            }
            Outcome::TooLarge(bytes) => {
                self.add("verbs", case, json!({ "needs_bytes": bytes }));
                format!("needs {:.0} GB | | ", gigabytes(*bytes))
            }
            Outcome::Wrong(problem) => {
                self.add("verbs", case, json!({ "wrong": problem }));
                format!("**{}** | | ", self.wrong(problem))
            }
        }
    }

    /// What is put behind a figure that something was aimed at for.
    pub fn mark(&mut self, met: bool) -> &'static str {
        self.targets += 1;
        self.missed += usize::from(!met);
        if met { "" } else { " ✗" }
    }

    /// Counts a result that is wrong.
    pub fn wrong(&mut self, problem: &str) -> String {
        self.wrong += 1;
        format!("WRONG: {problem}")
    }

    /// Ends with how it went. Returns whether every result was right.
    pub fn finish(mut self, path: Option<String>) -> Result<bool> {
        let Report {
            targets,
            missed,
            wrong,
            ..
        } = self;
        println!("\n{missed} of {targets} targets missed, {wrong} results wrong");
        for (name, count) in [("targets", targets), ("missed", missed), ("wrong", wrong)] {
            self.json.insert(name.into(), count.into());
        }
        if let Some(path) = path {
            std::fs::write(path, serde_json::to_string_pretty(&self.json)?)?;
        }
        Ok(wrong == 0)
    }
}

pub fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 * 1e-9
}

/// A number with as many digits as say something.
pub fn digits(number: f64) -> String {
    let decimals = match number {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{number:.decimals$}")
}
