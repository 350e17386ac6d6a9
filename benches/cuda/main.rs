//! `cargo bench --features cuda --bench cuda`: the verbs of the CUDA backend, each beside a device-to-device copy that
//! reads and writes as many bytes.
//!
//! Time is the device's own, by events. Verb and copy take turns in each round, and a figure is the median over
//! rounds; before each of them the L2 is filled with other things, so that every byte comes from memory. Keys are
//! fresh random numbers of about unit size; deltas alternate in sign, so that they stay so. Before anything is timed,
//! some rows of its result are compared with the CPU backend's, to the bit.
//!
//! Arguments: `quick` (fewer models, layouts and rounds), `model=NAME` (part of one), `tokens=N`, `rounds=N`,
//! `only=verbs|peers|small|host`, `device=N`, `json=PATH`. The binary needs nothing but a driver: it may be carried to another machine.

mod case;
mod check;
mod gpu;
mod peers;
mod report;
mod small;

use std::process::ExitCode;

use anyhow::{Context, Result};
use pie_rope::{ElementType, Error};
use serde_json::json;

use case::{Caches, Change, LEAST_TOKENS, Lie, Model, Verb};
use gpu::Gpu;
use report::{Outcome, Report, digits, gigabytes};

/// The model whose calls are measured in more types, and when they are small.
const TYPICAL: &str = "Llama-3.1 8B";

/// Bytes that a small call reads, and what it and any call may take: the device, and the host.
const SMALL: usize = 1 << 20;
const SMALL_SECONDS: f64 = 8e-6;
const HOST_SECONDS: f64 = 10e-6;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::read()?;
    let models = arguments.models()?;
    let gpu = match Gpu::open(arguments.device, arguments.room(&models)) {
        Ok(gpu) => gpu,
        Err(error) => match error.downcast_ref::<Error>() {
            Some(Error::NoAdapter(problem)) => {
                println!("nothing to measure: {problem}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => return Err(error),
        },
    };
    gpu.warm_up();
    let report = Report::new(&gpu.facts, arguments.rounds);
    let mut run = Run {
        gpu: &gpu,
        arguments: &arguments,
        report,
    };
    for model in &models {
        for &rows in &arguments.tokens {
            if arguments.wants("verbs") {
                for element in arguments.elements(model) {
                    gpu.fill(element);
                    run.verbs(model, element, rows)?;
                }
            }
            if arguments.wants("peers") {
                gpu.fill(ElementType::BF16);
                run.peers(model, rows)?;
            }
        }
    }
    for model in models.iter().filter(|model| model.name == TYPICAL) {
        gpu.fill(ElementType::F16);
        if arguments.wants("small") {
            run.small(model)?;
        }
        if arguments.wants("host") {
            run.host(model)?;
        }
    }
    let sound = run.report.finish(arguments.json)?;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Arguments {
    quick: bool,
    model: String,
    /// Empty: all parts.
    only: String,
    tokens: Vec<usize>,
    rounds: usize,
    device: usize,
    json: Option<String>,
}

impl Arguments {
    fn read() -> Result<Arguments> {
        // Cargo adds `--bench`.
        let given: Vec<String> = std::env::args()
            .skip(1)
            .filter(|argument| !argument.starts_with("--"))
            .collect();
        let quick = given.iter().any(|argument| argument == "quick");
        let mut arguments = Arguments {
            quick,
            model: String::new(),
            only: String::new(),
            tokens: if quick {
                vec![8192]
            } else {
                vec![8192, 131_072]
            },
            rounds: if quick { 10 } else { 20 },
            device: 0,
            json: None,
        };
        for argument in given.iter().filter(|argument| *argument != "quick") {
            let number = |text: &str| text.parse::<usize>().with_context(|| argument.clone());
            match argument.split_once('=') {
                Some(("model", name)) => arguments.model = name.to_lowercase(),
                Some(("only", part)) => {
                    let known = ["verbs", "peers", "small", "host"].contains(&part);
                    anyhow::ensure!(known, "`{argument}`: there is no such part");
                    arguments.only = part.to_owned();
                }
                Some(("tokens", text)) => {
                    let tokens = number(text)?.max(LEAST_TOKENS);
                    arguments.tokens = vec![tokens.next_multiple_of(64)];
                }
                Some(("rounds", text)) => arguments.rounds = number(text)?.max(1),
                Some(("device", text)) => arguments.device = number(text)?,
                Some(("json", path)) => arguments.json = Some(path.to_owned()),
                _ => anyhow::bail!("`{argument}` is no argument of this benchmark"),
            }
        }
        Ok(arguments)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only == part
    }

    fn models(&self) -> Result<Vec<Model>> {
        let mut models = case::models()?;
        models.retain(|model| {
            if self.model.is_empty() {
                !self.quick || model.name == TYPICAL || !model.values
            } else {
                model.name.to_lowercase().contains(&self.model)
            }
        });
        anyhow::ensure!(!models.is_empty(), "no model is called `{}`", self.model);
        Ok(models)
    }

    fn elements(&self, model: &Model) -> Vec<ElementType> {
        if model.name == TYPICAL && !self.quick {
            vec![ElementType::F16, ElementType::BF16, ElementType::F32]
        } else {
            vec![ElementType::F16]
        }
    }

    /// Bytes of the largest caches.
    fn room(&self, models: &[Model]) -> u64 {
        let most = |model: &Model, rows| {
            let elements = self.elements(model).into_iter();
            let copies = elements.map(|element| Verb::Copy.room(model, element, rows));
            copies.chain([peers::room(model, rows)]).max()
        };
        let rows = self.tokens.iter();
        let all = rows.flat_map(|&rows| models.iter().filter_map(move |model| most(model, rows)));
        all.max().unwrap_or(0) as u64
    }

    fn lies(&self, model: &Model) -> Vec<Lie> {
        let mut lies = model.lies();
        if self.quick {
            lies.retain(|lie| !matches!(lie, Lie::Heads | Lie::Pages(64)));
        }
        lies
    }
}

struct Run<'a> {
    gpu: &'a Gpu,
    arguments: &'a Arguments,
    report: Report,
}

impl Run<'_> {
    /// Whether caches of so many bytes can be had.
    fn fits(&self, bytes: usize) -> bool {
        bytes as u64 <= self.gpu.room()
    }

    fn verbs(&mut self, model: &Model, element: ElementType, rows: usize) -> Result<()> {
        println!(
            "\n## {}, {rows} tokens, {element}: {:.3} GB of keys\n",
            model.name,
            gigabytes(model.key_bytes(element, rows) as u64)
        );
        print!("| cache | edits");
        for verb in Verb::ALL {
            print!(" | `{verb}` ms | GB/s | of copy");
        }
        println!(" |\n|---|---|{}", "---|".repeat(3 * Verb::ALL.len()));
        for lie in self.arguments.lies(model) {
            for change in Change::ALL {
                print!("| {lie} | {change}");
                let turns = change.there_and_back(&model.rope, rows)?;
                for verb in Verb::ALL {
                    let outcome = self.verb(verb, model, element, lie, rows, &turns);
                    let case = json!({
                        "model": model.name, "tokens": rows, "type": element.to_string(),
                        "rows": lie.to_string(), "edits": change.to_string(), "verb": verb.to_string(),
                    });
                    let aimed_at = if verb == Verb::Splice { 0.90 } else { 0.95 };
                    print!(" | {}", self.report.verb(case, &outcome, aimed_at));
                }
                println!(" |");
            }
        }
        Ok(())
    }

    fn verb(
        &self,
        verb: Verb,
        model: &Model,
        element: ElementType,
        lie: Lie,
        rows: usize,
        turns: &[pie_rope::Rotations; 2],
    ) -> Outcome {
        let gpu = self.gpu;
        let needed = verb.room(model, element, rows);
        if !self.fits(needed) {
            return Outcome::TooLarge(needed as u64);
        }
        let caches = Caches::new(&mut gpu.arena(), verb, model, element, lie, rows);
        for turn in turns {
            if let Err(problem) = check::call(gpu, &caches, turn) {
                return Outcome::Wrong(problem);
            }
        }
        let moved = verb.moved(model, element, &turns[0]);
        let times = gpu.in_turns(
            self.arguments.rounds,
            &[&|round| caches.call(gpu, &turns[round % 2]), &|round| {
                gpu.copy(moved / 2, round)
            }],
        );
        Outcome::Measured {
            seconds: times[0],
            copy_seconds: times[1],
            moved,
        }
    }

    /// One call beside what others do, on contiguous keys in bf16.
    fn peers(&mut self, model: &Model, rows: usize) -> Result<()> {
        println!(
            "\n{}, {rows} tokens, bf16, {}: milliseconds of `rotate`, and times as long as one call\n",
            model.name,
            Lie::Rows
        );
        println!(
            "| edits | one call | a launch a layer | two rotations in bf16 | the whole cache |"
        );
        println!("|---|---|---|---|---|");
        let needed = peers::room(model, rows);
        for change in Change::ALL {
            if !self.fits(needed) {
                println!(
                    "| {change} | needs {:.0} GB | | | |",
                    gigabytes(needed as u64)
                );
                continue;
            }
            let case = json!({ "model": model.name, "tokens": rows, "edits": change.to_string() });
            match peers::measure(self.gpu, model, rows, change, self.arguments.rounds) {
                Ok(times) => {
                    let cell = |seconds: f64| {
                        let times = digits(seconds / times.one_call);
                        format!("{} ({times} ×)", digits(seconds * 1e3))
                    };
                    println!(
                        "| {change} | {} | {} | {} | {} |",
                        digits(times.one_call * 1e3),
                        cell(times.call_a_layer),
                        times.two_turns.map_or("no bf16 here".into(), cell),
                        cell(times.whole_cache)
                    );
                    let measured = json!({
                        "one_call_ms": times.one_call * 1e3, "call_a_layer_ms": times.call_a_layer * 1e3,
                        "two_turns_ms": times.two_turns.map(|seconds| seconds * 1e3),
                        "whole_cache_ms": times.whole_cache * 1e3,
                    });
                    self.report.add("peers", case, measured);
                }
                Err(problem) => {
                    self.report.add("peers", case, json!({ "wrong": problem }));
                    println!("| {change} | **{}** | | | |", self.report.wrong(&problem));
                }
            }
        }
        Ok(())
    }

    fn small(&mut self, model: &Model) -> Result<()> {
        let rows = self.arguments.tokens[0];
        println!("\n## Small calls: {}, {rows} tokens, f16\n", model.name);
        println!(
            "Microseconds of the device. Each call touches other rows. ✗: {} µs or more.\n",
            SMALL_SECONDS * 1e6
        );
        println!(
            "| cache | verb | touched | alone | copy alone | one of many in a graph | copy in a graph |"
        );
        println!("|---|---|---|---|---|---|---|");
        let element = ElementType::F16;
        for lie in [Lie::Heads, Lie::Rows, Lie::Pages(16)] {
            for verb in Verb::ALL {
                if !self.fits(verb.room(model, element, rows)) {
                    println!("| {lie} | {verb} | does not fit | | | | |");
                    continue;
                }
                let case = json!({ "rows": lie.to_string(), "verb": verb.to_string() });
                let rounds = 5 * self.arguments.rounds;
                match small::device(self.gpu, verb, model, (element, lie), rows, SMALL, rounds) {
                    Ok(times) => {
                        let micros = |seconds: f64| digits(seconds * 1e6);
                        let mark = self.report.mark(times.in_graph < SMALL_SECONDS);
                        println!(
                            "| {lie} | {verb} | {} rows, {:.2} MB | {} | {} | {}{mark} | {} |",
                            times.rows,
                            times.bytes as f64 * 1e-6,
                            micros(times.alone),
                            micros(times.copy_alone),
                            micros(times.in_graph),
                            micros(times.copy_in_graph)
                        );
                        let measured = json!({
                            "touched_rows": times.rows, "bytes": times.bytes,
                            "alone_us": times.alone * 1e6, "copy_alone_us": times.copy_alone * 1e6,
                            "in_graph_us": times.in_graph * 1e6, "copy_in_graph_us": times.copy_in_graph * 1e6,
                        });
                        self.report.add("small", case, measured);
                    }
                    Err(problem) => {
                        println!(
                            "| {lie} | {verb} | **{}** | | | | |",
                            self.report.wrong(&problem)
                        );
                    }
                }
            }
        }
        Ok(())
    }

    fn host(&mut self, model: &Model) -> Result<()> {
        let bare = small::bare_launch(self.gpu, self.arguments.rounds);
        println!("\n## Host: {}, one edit near the start, f16\n", model.name);
        println!(
            "Microseconds of the host for one call, the device not waited for. ✗: {} µs or more. The launch of a \
             kernel with 40 bytes of parameters takes {} µs.\n",
            HOST_SECONDS * 1e6,
            digits(bare * 1e6)
        );
        println!("| tokens | cache | `rotate` | `splice` |\n|---|---|---|---|");
        self.report
            .add("host", json!({ "bare_launch_us": bare * 1e6 }), json!({}));
        let element = ElementType::F16;
        for &rows in &self.arguments.tokens {
            for lie in [Lie::Heads, Lie::Pages(16)] {
                print!("| {rows} | {lie}");
                for verb in [Verb::Rotate, Verb::Splice] {
                    if !self.fits(verb.room(model, element, rows)) {
                        print!(" | does not fit");
                        continue;
                    }
                    let seconds = small::host(
                        self.gpu,
                        verb,
                        model,
                        (element, lie),
                        rows,
                        self.arguments.rounds,
                    )?;
                    print!(
                        " | {}{}",
                        digits(seconds * 1e6),
                        self.report.mark(seconds < HOST_SECONDS)
                    );
                    let case = json!({ "tokens": rows, "rows": lie.to_string(), "verb": verb.to_string() });
                    self.report
                        .add("host", case, json!({ "us": seconds * 1e6 }));
                }
                println!(" |");
            }
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
