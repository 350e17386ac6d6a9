//! The command line.

use std::fmt;
use std::path::PathBuf;

use candle_core::DType;
use clap::{Parser, ValueEnum};

/// Edit a file under a code model without encoding it again.
///
/// A model has encoded a file into its KV cache; then the file is edited somewhere above the
/// cursor. Three ways to the next prediction are run side by side: encode everything again; encode
/// the edited tokens only and keep the other keys as they are (conflict fast encoding); encode the
/// edited tokens only and turn the other keys to their new positions (Positional Integrity
/// Encoding). With no arguments, edits of this example's own data run on the model that comes with
/// the repository.
///
/// The cursor is behind the last line of the file.
#[derive(Debug, Parser)]
#[command(name = "live_edit", max_term_width = 100)]
pub(crate) struct Args {
    /// Checkpoint directory: config.json, tokenizer.json, and model.safetensors or its shards with
    /// model.safetensors.index.json. Llama (DeepSeek-Coder, CodeLlama), Qwen2 and StarCoder2
    /// [default: models/tiny-code-lm of the repository]
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-code-lm"), hide_default_value = true)]
    pub(crate) model: PathBuf,

    /// A file before an edit.
    #[arg(long, value_name = "FILE", requires = "new", conflicts_with = "file")]
    pub(crate) old: Option<PathBuf>,

    /// The same file after it.
    #[arg(long, value_name = "FILE", requires = "old")]
    pub(crate) new: Option<PathBuf>,

    /// A file to which each --diff is applied, one at a time.
    #[arg(long, value_name = "FILE", requires = "diff")]
    pub(crate) file: Option<PathBuf>,

    /// A unified diff of --file, as `diff -u` and `git diff` write it; may be repeated.
    #[arg(long, value_name = "DIFF", requires = "file")]
    pub(crate) diff: Vec<PathBuf>,

    /// Element type of the KV cache. Arithmetic is f32 in any case.
    #[arg(long, value_enum, default_value_t = CacheType::F32)]
    pub(crate) dtype: CacheType,

    /// Use the first N layers of the model only. With one layer, turned keys are exactly those of
    /// a full recomputation, but for rounding.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) layers: Option<u32>,

    /// Where keys turn. The model runs on the processor in any case, so with `cuda` and `wgpu` the
    /// cache goes to the GPU and comes back, and that counts as turning. `WGPU_ADAPTER_NAME`
    /// chooses the adapter of `wgpu`.
    #[arg(long, value_enum, default_value_t = BackendName::Cpu)]
    pub(crate) backend: BackendName,

    /// Threads for the model and for turning [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,

    /// Times are medians over this many runs of each way.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Longest predicted line, in tokens.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) line: u32,
}

impl Args {
    /// Threads to use.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            Some(threads) => threads as usize,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Backends of the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendName {
    Cpu,
    /// The first NVIDIA GPU; scripts/live-edit builds it in, cargo with `--features cuda`.
    Cuda,
    /// Any graphics adapter that wgpu finds; scripts/live-edit builds it in, cargo with `--features wgpu`.
    Wgpu,
}

/// Element types that the cache may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheType {
    F32,
    F16,
    Bf16,
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Bf16 => "bf16",
        })
    }
}

impl From<CacheType> for DType {
    fn from(dtype: CacheType) -> DType {
        match dtype {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
            CacheType::Bf16 => DType::BF16,
        }
    }
}
