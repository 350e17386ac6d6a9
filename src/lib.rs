//! Positional Integrity Encoding: when a developer edits code, the tokens after the edit keep their meaning
//! but change position, so the rotary encoding (RoPE) inside their cached keys is stale. This crate turns
//! each cached key from its old position to its new one, in place, in the memory where the engine keeps it:
//!
//! ```text
//! K_new = R(p_new) · R(p_old)ᵀ · K_old          per head; values never turn
//! ```
//!
//! An engine then encodes the edited tokens alone, instead of everything again (He et al., "Let the Code LLM
//! Edit Itself When You Edit the Code", ICLR 2025, arXiv 2407.03157).
//!
//! # In one line
//!
//! ```text
//! Rope + Edits → Plan → Rotations → { Cpu | Cuda | Wgpu } → keys, in place
//! ```
//!
//! - [`Rope`] / [`ModelRope`]: what the model's rotary encoding is; read from its `config.json`.
//! - [`Edit`] → [`Plan`]: which cached rows survive, where they go, and which tokens are to be encoded.
//! - [`Rotations`]: one (cos, sin) row per distinct delta, its angles composed in f64.
//! - [`KeyLayout`] / [`CacheLayout`]: where rows lie; every unquantised cache layout in use.
//! - [`Cpu`]: the verbs [`rotate`](Cpu::rotate), [`splice`](Cpu::splice) and [`copy`](Cpu::copy); `Cuda`, `Wgpu`
//!   and `Candle`, with the features of these names, have the same.
//! - [`oracle`]: the definition in f64, which every backend is tested against.
//!
//! # Example
//!
//! ```
//! use pie_rope::{Cpu, ElementType, KeyLayout, Layer, ModelRope, Plan, Rotations};
//!
//! // A model of two layers, as published.
//! let model = ModelRope::from_config_json(
//!     r#"{ "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256,
//!          "num_attention_heads": 4, "rope_theta": 10000.0 }"#,
//! )?;
//!
//! // The cache: `[batch, heads, seq, dim]` in each layer, with room for 32 tokens.
//! let layout = KeyLayout::bhsd(ElementType::F32, [1, 4, 32, 64]);
//! let mut cache: Vec<_> = (0..2).map(|_| (vec![0.1f32; 4 * 32 * 64], vec![0.2f32; 4 * 32 * 64])).collect();
//!
//! // The tokens before and after the developer's edit.
//! let old = [1, 2, 3, 4, 5, 6, 7, 8];
//! let new = [1, 2, 3, 90, 91, 4, 5, 7, 8];
//! let plan = Plan::from_tokens(&old, &new)?;
//!
//! // Rows move to their new places and keys turn on the way, in all layers.
//! let rotations = Rotations::for_model(&plan, &model)?;
//! let mut layers: Vec<_> = cache.iter_mut().map(|(keys, values)| Layer::new(keys, values)).collect();
//! Cpu::new().splice(&rotations, layout, &mut layers)?;
//!
//! // What is left for the engine to encode.
//! for span in plan.new_spans() {
//!     println!("encode {:?} from position {}", &new[span.row..span.row + span.len], span.position);
//! }
//! # assert_eq!(plan.new_spans().len(), 1);
//! # Ok::<(), pie_rope::Error>(())
//! ```
//!
//! # Features
//!
//! - `config` (default): [`ModelRope::from_config_json`]; brings `serde_json`.
//! - `diff` (default): [`Plan::from_tokens`]; brings no dependency.
//! - `rayon` (default): the CPU backend on all cores; brings `rayon`.
//! - `cuda`: `Cuda`, the same verbs on an NVIDIA GPU, with nothing but its driver; brings `cudarc`, and exports it.
//! - `wgpu`: `Wgpu`, the same verbs on a GPU; brings `wgpu`, and exports it.
//! - `candle`: `Candle`, the same verbs over candle's tensors on the CPU; brings `candle-core`, and exports it.
//! - `candle-cuda`: and over its tensors on NVIDIA GPUs; brings candle's own CUDA feature, which needs nvcc to build.
//! - `capi`: the functions of `include/pie_rope.h`, for C and C++.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "candle")]
mod candle;
#[cfg(feature = "capi")]
mod capi;
mod check;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod element;
mod error;
mod layout;
mod memory;
pub mod oracle;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod order;
mod plan;
mod rope;
mod rotations;
#[cfg(feature = "wgpu")]
mod webgpu;

/// The README's snippets are compiled and run with the documentation's, where there is all that they use: they show
/// no line that says so.
#[cfg(all(
    doctest,
    feature = "config",
    feature = "diff",
    feature = "cuda",
    feature = "wgpu",
    feature = "candle"
))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "candle")]
pub use candle::{Candle, CandleLayer};
pub use cpu::{Cpu, Layer, LayerRef, RawLayer};
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaLayer, CudaLayerRef, CudaRawLayer, CudaWorkspace};
pub use element::{Element, ElementType};
pub use error::{Error, Result};
pub use layout::{Axis, CacheLayout, KeyLayout, Strides};
pub use plan::{Edit, NewSpan, Plan, Span};
pub use rope::{ModelRope, Pairing, Rope, Scaling};
pub use rotations::{Rotations, Table, Turn, TurnedSpan};
#[cfg(feature = "wgpu")]
pub use webgpu::{Wgpu, WgpuLayer, WgpuSlice};

/// The candle-core that this crate was built with.
#[cfg(feature = "candle")]
pub use ::candle_core;
/// The cudarc that this crate was built with.
#[cfg(feature = "cuda")]
pub use ::cudarc;
/// The half that this crate was built with: its types are the elements of slices in f16 and bf16.
pub use ::half;
/// The wgpu that this crate was built with.
#[cfg(feature = "wgpu")]
pub use ::wgpu;
