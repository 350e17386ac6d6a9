//! Edit a file under a code model without encoding it again: `cargo run --release -p live_edit`, `--help` for
//! the rest.
//!
//! `cache` is what an engine has to do, and `compare` what it gains. `model` is the decoder that
//! stands for the engine's, `checkpoint` and `text` read a published model, `edits` finds what is
//! to be replayed, `progress` and `report` print.

mod args;
mod backend;
mod cache;
mod checkpoint;
mod compare;
mod edits;
mod model;
mod progress;
mod report;
mod text;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use pie_rope::{Candle, Cpu};

use crate::args::{Args, BackendName};
use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::compare::{Comparison, Engine};
use crate::edits::{Document, Kind};
use crate::model::Decoder;
use crate::progress::Progress;

fn main() -> ExitCode {
    let args = Args::parse();
    let set = |name: &str, value: &str| {
        // SAFETY: no other thread exists yet that could read the environment.
        unsafe { std::env::set_var(name, value) }
    };
    // candle reads its number of threads from the environment at every matrix product, and where
    // it is not set, looks through the system's list of cores each time: 0.1 ms and more.
    set("RAYON_NUM_THREADS", &args.threads().to_string());
    // candle puts a backtrace into the text of its errors where RUST_BACKTRACE asks panics for one.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        set("RUST_LIB_BACKTRACE", "0");
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough: `live_edit | head`.
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live_edit: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(args: &Args) -> Result<()> {
    let backend = backend(args)?;
    let documents = match (&args.old, &args.new, &args.file) {
        (Some(old), Some(new), _) => vec![edits::difference(old, new)?],
        (_, _, Some(file)) => vec![edits::diffed(file, &args.diff)?],
        _ => edits::shipped()?,
    };
    let mut checkpoint = Checkpoint::open(&args.model)?;
    if let Some(layers) = args.layers {
        checkpoint.truncate(layers as usize)?;
    }
    let text = checkpoint.text()?;
    let documents = documents
        .iter()
        .map(|document| Tokenized::new(document, &text))
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("{}", args.model.display()))?;
    let longest = documents.iter().map(Tokenized::longest).max().unwrap_or(0);
    let capacity = longest + args.line as usize;

    let loading = Progress::busy(&format!("loading {}", checkpoint.name()));
    let decoder = Decoder::load(&checkpoint, capacity)
        .with_context(|| format!("{}", args.model.display()))?;
    drop(loading);

    let config = decoder.config();
    if longest > config.positions {
        eprintln!(
            "live_edit: warning: {longest} tokens, but the model was made for {}",
            config.positions
        );
    }
    let mut out = io::stdout();
    writeln!(
        out,
        "{}: {} layers, {} key/value heads of {} dimensions, {} cache, {} threads\n",
        checkpoint.name(),
        config.layers,
        config.kv_heads,
        config.head_dim,
        args.dtype,
        args.threads()
    )?;
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(device) = &backend {
        writeln!(out, "keys turn on {}\n", device.name()?)?;
    }
    #[cfg(feature = "wgpu")]
    if let Backend::Wgpu(adapter) = &backend {
        writeln!(out, "keys turn on {}\n", adapter.name())?;
    }
    let (repeat, line) = (args.repeat as usize, args.line as usize);
    let engine = Engine::new(decoder, text, backend, repeat, line)?;
    let results = replay(&engine, args, &documents, capacity)?;
    if results.len() > 1 {
        writeln!(out, "{}", report::summary(&results))?;
    }
    Ok(write!(out, "{}", report::LEGEND)?)
}

/// The backend that is asked for.
fn backend(args: &Args) -> Result<Backend> {
    match args.backend {
        BackendName::Cpu => {
            let cpu = Cpu::with_threads(args.threads())?;
            Ok(Backend::Cpu(Candle::with_cpu(cpu)))
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => Ok(Backend::Cuda(backend::Device::open()?)),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => anyhow::bail!(
            "this build has no CUDA backend: cargo run --release -p live_edit --features cuda"
        ),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => Ok(Backend::Wgpu(backend::Adapter::open()?)),
        #[cfg(not(feature = "wgpu"))]
        BackendName::Wgpu => anyhow::bail!(
            "this build has no wgpu backend: cargo run --release -p live_edit --features wgpu"
        ),
    }
}

/// Replays all edits and prints each as it is done.
fn replay(
    engine: &Engine,
    args: &Args,
    documents: &[Tokenized<'_>],
    capacity: usize,
) -> Result<Vec<(Kind, Comparison)>> {
    let total = documents.iter().map(|d| d.to_encode(args.repeat)).sum();
    let progress = Progress::new(total)?;
    let mut base = engine.decoder().cache(capacity, args.dtype.into())?;
    let mut work = engine.decoder().cache(capacity, args.dtype.into())?;
    let mut results = Vec::new();
    for Tokenized {
        document,
        old,
        edited,
    } in documents
    {
        engine.encode(&mut base, old, &progress)?;
        for (edit, new) in document.edits.iter().zip(edited) {
            let comparison = engine.compare(&base, &mut work, old, new, &progress)?;
            let name = format!("{}: {}", document.name, edit.name);
            let table = report::edit(&name, edit.kind, &comparison);
            progress.print(&format!("{table}\n"))?;
            results.push((edit.kind, comparison));
        }
    }
    Ok(results)
}

/// A document and its edits as tokens.
struct Tokenized<'a> {
    document: &'a Document,
    old: Vec<u32>,
    edited: Vec<Vec<u32>>,
}

impl Tokenized<'_> {
    fn new<'a>(document: &'a Document, text: &text::Text) -> Result<Tokenized<'a>> {
        let edited = document.edits.iter().map(|edit| text.encode(&edit.text));
        Ok(Tokenized {
            document,
            old: text.encode(&document.text)?,
            edited: edited.collect::<Result<_>>()?,
        })
    }

    fn longest(&self) -> usize {
        let edited = self.edited.iter().map(Vec::len).max();
        self.old.len().max(edited.unwrap_or(0))
    }

    /// Tokens that the whole replay has to encode, the few that are edited not counted.
    fn to_encode(&self, repeat: u32) -> u64 {
        let full: usize = self.edited.iter().map(Vec::len).sum();
        self.old.len() as u64 + u64::from(repeat) * full as u64
    }
}
