//! What the code of each model type does with its configuration: the facts that a `config.json`
//! leaves unsaid.
//!
//! The list is closed on purpose. A type that is not in it is refused, because a wrong pairing or
//! a layer that was taken to rotate spoils a cache without a sound. Every row is held to Hugging
//! Face transformers 5.24 by `tests/configs/keys.json`, which records what the model itself caches,
//! except the rows that are marked as remote code. Types that are refused for a reason, and the
//! reason, are in `refused.rs`.

use crate::Pairing::{self, HalfSplit, Interleaved};

/// The row of a model type.
pub(super) fn find(name: &str) -> Option<&'static ModelType> {
    let index = MODEL_TYPES.binary_search_by(|row| row.0.cmp(name)).ok()?;
    Some(&MODEL_TYPES[index])
}

/// Name, `num_hidden_layers` where the configuration does not say it, head, everything else.
///
/// Files do leave such entries out: a nested `text_config` is saved without what equals the class's
/// default.
pub(super) struct ModelType(
    pub(super) &'static str,
    pub(super) usize,
    pub(super) Head,
    pub(super) Family,
);

/// How wide a head is, and what follows from it.
#[derive(Clone, Copy)]
pub(super) enum Head {
    /// `head_dim`, else the hidden width shared among the heads; the defaults of both.
    Share { hidden: usize, heads: usize },
    /// `head_dim`, else this.
    Fixed(usize),
    /// `head_dim`, else the first; but `global_head_dim`, else the second, in layers that attend
    /// fully.
    Wider(usize, usize),
    /// Multi-head latent attention. One row serves all heads: `kv_lora_rank` latent components and,
    /// after them, `qk_rope_head_dim` rotated ones; the defaults of both.
    Latent { rank: usize, rotated: usize },
}

/// What the models of one family have in common.
#[derive(Clone, Copy)]
pub(super) struct Family {
    pub(super) pairing: Pairing,
    /// The default of `rope_theta`.
    pub(super) theta: f64,
    pub(super) width: Width,
    pub(super) layers: Layers,
    pub(super) condition: Condition,
    /// The class's default is a scaled rope, so a configuration that says nothing is not trusted.
    pub(super) explicit: bool,
    pub(super) slots: Slots,
}

/// Which layers of a cache the model's layers write.
#[derive(Clone, Copy)]
pub(super) enum Slots {
    /// Each its own.
    Each,
    /// Each of `num_layers` has two attentions.
    Two,
    /// One stack of layers runs `H_cycles · (L_cycles + 1)` times, each time with layers of the
    /// cache of its own. `num_hidden_layers` counts those of the cache where
    /// `num_layers_per_stack` counts those of the stack.
    Cycles,
    /// The layers between `n_input_layers` and `n_output_layers` run `n_recurrent_loops` times;
    /// the layers of the cache of all but the first time come last.
    Loops,
}

/// How much of a head turns.
#[derive(Clone, Copy)]
pub(super) enum Width {
    /// All of it. The model's code does not look at a partial rotary factor, or, under a scaling,
    /// does not run with one.
    Whole,
    /// The fraction given by a partial rotary factor; its default.
    Partial(f64),
    /// As `Partial`, but a file that does not give it is refused: the code of the class turns
    /// something else than its default configuration says.
    Stated,
    /// `rotary_dim` components; its default.
    Dim(usize),
}

/// Something that has to hold for any layer to rotate.
#[derive(Clone, Copy)]
pub(super) enum Condition {
    Always,
    /// Falcon's ALiBi variants put positions into the scores and leave keys alone.
    NotAlibi,
    /// A model that has a rope at the one hidden width and ALiBi at the other.
    Hidden {
        rope: usize,
        alibi: usize,
    },
    /// Granite 4 hybrids rotate only where `position_embedding_type` is "rope".
    SaysRope,
}

/// Which layers rotate, and which of the model's ropes they have.
#[derive(Clone, Copy)]
pub(super) enum Layers {
    Alike,
    /// None does: attention without positional encoding.
    Still,
    /// Layers of these types rotate, all alike.
    Typed(&'static [&'static str], Pattern),
    /// As `Typed` with sliding layers, but all rotate where `sliding_window` is null.
    SlidingIfAny(Pattern),
    /// Each layer type has a rope of its own.
    Own(&'static [Own], Pattern),
    /// `no_rope_layers` holds 1 for each layer that rotates (the name says the opposite); without it
    /// every `no_rope_layer_interval`-th, 4th by default, does not.
    Flags,
    /// `layer_rope_theta` holds each layer's theta, 0 for a layer that does not rotate. Without it
    /// all are alike, if this says so.
    Thetas {
        else_alike: bool,
    },
    /// All but those listed under `cross_attention_layers`, which keep no token's key.
    Cross(&'static [usize]),
}

/// What each layer's type is where `layer_types` is missing.
#[derive(Clone, Copy)]
pub(super) enum Pattern {
    /// Nothing can be told.
    Required,
    /// The last of every n layers attends fully, the others are of type `other`; n is `every` unless
    /// there is a key for it and the file has that.
    Last {
        key: Option<&'static str>,
        every: usize,
        other: &'static str,
    },
    /// As `Last` with sliding others, but the model's last layer attends fully whatever
    /// `layer_types` says.
    LastAndEnd(usize),
    /// As `Last`, but the first of every n.
    First {
        key: Option<&'static str>,
        every: usize,
        other: &'static str,
    },
    /// The layers listed under a key attend fully; without the list, all do if `else_all`.
    Listed { key: &'static str, else_all: bool },
}

/// One layer type's rope in a model whose layer types differ.
#[derive(Clone, Copy)]
pub(super) struct Own {
    pub(super) layer_type: &'static str,
    /// Where configurations older than `rope_parameters` keep this rope's theta.
    pub(super) theta_key: Option<&'static str>,
    /// Its default. None: a layer type that does not rotate unless the configuration says so.
    pub(super) theta: Option<f64>,
    /// Whether the older `rope_scaling` is about this rope.
    pub(super) scaled: bool,
    /// The partial rotary factor of the default rope, and whether it is a "proportional" one.
    pub(super) partial: Option<f64>,
    pub(super) proportional: bool,
}

pub(super) const FULL: &str = "full_attention";
pub(super) const SLIDING: &str = "sliding_attention";
/// Layers that keep a state instead of keys.
pub(super) const STATES: [&str; 2] = ["linear_attention", "conv"];
/// Layers with an indexer, which caches keys of its own beside theirs.
pub(super) const INDEXED: [&str; 4] = [
    "deepseek_sparse_attention",
    "indexed_attention",
    "minimax_m3_sparse",
    "qwen_sparse_attention",
];

const HALF: Family = Family {
    pairing: HalfSplit,
    theta: 10_000.0,
    width: Width::Whole,
    layers: Layers::Alike,
    condition: Condition::Always,
    explicit: false,
    slots: Slots::Each,
};
const INTERLEAVED: Family = Family {
    pairing: Interleaved,
    ..HALF
};

impl Family {
    const fn theta(self, theta: f64) -> Family {
        Family { theta, ..self }
    }
    const fn partial(self, default: f64) -> Family {
        let width = Width::Partial(default);
        Family { width, ..self }
    }
    const fn rotary_dim(self, default: usize) -> Family {
        let width = Width::Dim(default);
        Family { width, ..self }
    }
    const fn layers(self, layers: Layers) -> Family {
        Family { layers, ..self }
    }
    const fn on(self, condition: Condition) -> Family {
        Family { condition, ..self }
    }
    const fn stated(self) -> Family {
        let width = Width::Stated;
        Family { width, ..self }
    }
    const fn slots(self, slots: Slots) -> Family {
        Family { slots, ..self }
    }
    const fn explicit(self) -> Family {
        let explicit = true;
        Family { explicit, ..self }
    }
}

const fn share(hidden: usize, heads: usize) -> Head {
    Head::Share { hidden, heads }
}
const fn fixed(head_dim: usize) -> Head {
    Head::Fixed(head_dim)
}
const fn latent(rank: usize, rotated: usize) -> Head {
    Head::Latent { rank, rotated }
}

const fn last(key: Option<&'static str>, every: usize) -> Pattern {
    let other = SLIDING;
    Pattern::Last { key, every, other }
}
const fn last_linear(key: Option<&'static str>, every: usize) -> Pattern {
    let other = STATES[0];
    Pattern::Last { key, every, other }
}

/// Full attention sees no position, sliding layers do.
const fn sliding_only(pattern: Pattern) -> Layers {
    Layers::Typed(&[SLIDING], pattern)
}
/// Some layers attend, the others keep a recurrent state.
const fn full_only(pattern: Pattern) -> Layers {
    Layers::Typed(&[FULL], pattern)
}

/// A rope that only `rope_parameters` can describe; its default.
const fn own(layer_type: &'static str, theta: f64) -> Own {
    Own {
        layer_type,
        theta_key: None,
        theta: Some(theta),
        scaled: false,
        partial: None,
        proportional: false,
    }
}
impl Own {
    const fn older(self, theta_key: &'static str, scaled: bool) -> Own {
        let theta_key = Some(theta_key);
        Own {
            theta_key,
            scaled,
            ..self
        }
    }
    const fn partial(self, partial: f64) -> Own {
        let partial = Some(partial);
        Own { partial, ..self }
    }
    const fn proportional(self, partial: f64) -> Own {
        let (partial, proportional) = (Some(partial), true);
        Own {
            partial,
            proportional,
            ..self
        }
    }
    const fn still(self) -> Own {
        let theta = None;
        Own { theta, ..self }
    }
}

const GEMMA3: &[Own] = &[
    own(FULL, 1e6).older("rope_theta", true),
    own(SLIDING, 1e4).older("rope_local_base_freq", false),
];
const GEMMA4: &[Own] = &[own(FULL, 1e6).proportional(0.25), own(SLIDING, 1e4)];
const OLMO3: &[Own] = &[
    own(FULL, 5e5).older("rope_theta", true),
    own(SLIDING, 5e5).older("rope_theta", false),
];
const MODERNBERT: &[Own] = &[
    own(FULL, 1.6e5).older("global_rope_theta", true),
    own(SLIDING, 1e4).older("local_rope_theta", true),
];
const BEAM: &[Own] = &[own(FULL, 1e4).still(), own(SLIDING, 1e4)];
const COMPASS: &[Own] = &[own(FULL, 1e4).still(), own(SLIDING, 1e4).still()];
const DORY: &[Own] = &[own(FULL, 1e7), own(SLIDING, 1e4)];
const LAGUNA: &[Own] = &[own(FULL, 5e5).partial(0.5), own(SLIDING, 1e4)];
const LFM3: &[Own] = &[own(FULL, 1e6).proportional(0.5), own(SLIDING, 1e4)];
const MELLUM: &[Own] = &[own(FULL, 5e5), own(SLIDING, 1e4)];
const MIMO: &[Own] = &[own(FULL, 5e6), own(SLIDING, 1e4)];

// Interleaved pairs, and where the reason stands in transformers:
// - GPT-J, CodeGen: `rotate_every_two`.
// - Cohere's, ERNIE 4.5's, GLM, GLM-4, GLM-4.1V, GLM-OCR, Helium: `rotate_half` takes every other
//   component (GLM-4.5's and GLM-Image do not).
// - Llama 4 and DeepSeek-V2: components 2i and 2i + 1 are one complex number.
// - RoFormer: `rotate_half_key_layer` takes every other component.
// - DeepSeek-V3 and the latent attentions after its pattern: `rope_interleave`, or always.
#[rustfmt::skip]
const MODEL_TYPES: &[ModelType] = &[
    ModelType("afmoe", 32, fixed(128), HALF.layers(sliding_only(last(Some("global_attn_every_n_layers"), 4)))),
    ModelType("apertus", 32, share(4096, 32), HALF.theta(1.2e7).explicit()),
    ModelType("apertus1p5_text", 32, share(4096, 32), HALF.theta(1.2e7).explicit()),
    ModelType("arcee", 32, share(2560, 32), HALF),
    ModelType("aria_text", 32, share(4096, 32), HALF),
    ModelType("axk1", 61, latent(512, 64), INTERLEAVED),
    ModelType("baichuan", 32, share(4096, 32), HALF.on(Condition::Hidden { rope: 4096, alibi: 5120 })), // remote code, Llama's rope in the 7B, ALiBi in the 13B
    ModelType("bailing_hybrid", 42, latent(512, 64), INTERLEAVED.theta(6e6).layers(full_only(last_linear(Some("layer_group_size"), 6)))),
    ModelType("bailing_moe", 24, share(1024, 16), HALF.partial(1.0)), // remote code
    ModelType("bamba", 32, share(4096, 32), HALF.partial(0.5).layers(full_only(Pattern::Listed { key: "attn_layer_indices", else_all: false }))),
    ModelType("beam", 52, fixed(128), HALF.layers(Layers::Own(BEAM, Pattern::Required))),
    ModelType("bitnet", 30, share(2560, 20), HALF.theta(5e5)),
    ModelType("chameleon", 32, share(4096, 32), HALF),
    ModelType("chatglm", 28, share(4096, 32), INTERLEAVED.partial(0.5)), // remote code; half the head
    ModelType("codegen", 28, share(4096, 16), INTERLEAVED.rotary_dim(64)),
    ModelType("cohere", 40, share(8192, 64), INTERLEAVED.theta(5e5)),
    ModelType("cohere2", 40, share(8192, 64), INTERLEAVED.layers(sliding_only(last(Some("sliding_window_pattern"), 4)))),
    ModelType("cohere2_moe", 40, fixed(128), INTERLEAVED.layers(sliding_only(Pattern::Required))),
    ModelType("cohere_compass_text", 40, share(8192, 64), HALF.explicit().layers(Layers::Own(COMPASS, Pattern::Required))),
    ModelType("cosmos3_edge_text", 28, fixed(128), HALF.theta(1e8)),
    ModelType("cwm", 64, fixed(128), HALF.theta(1e6).explicit()),
    ModelType("dbrx", 24, share(2048, 16), HALF),
    ModelType("deepseek", 30, share(4096, 32), HALF), // remote code, Llama's rope
    ModelType("deepseek_v2", 32, latent(512, 64), INTERLEAVED),
    ModelType("deepseek_v3", 61, latent(512, 64), INTERLEAVED),
    ModelType("diffllama", 16, share(2048, 32), HALF),
    ModelType("doge", 32, share(1024, 8), HALF),
    ModelType("dory", 36, fixed(256), HALF.layers(Layers::Own(DORY, last(None, 4))).slots(Slots::Loops)),
    ModelType("dots1", 62, share(4608, 32), HALF),
    ModelType("emu3_text_model", 32, share(4096, 32), HALF.theta(1e6)),
    ModelType("ernie4_5", 18, fixed(128), INTERLEAVED.theta(5e5)),
    ModelType("ernie4_5_moe", 28, share(2560, 20), INTERLEAVED.theta(5e5)),
    ModelType("ernie4_5_vl_moe_text", 28, share(2560, 20), INTERLEAVED.theta(5e5)),
    ModelType("evolla", 32, share(4096, 32), HALF.theta(5e5)),
    ModelType("exaone", 32, share(4096, 32), HALF.theta(5e5)),
    ModelType("exaone4", 32, share(4096, 32), HALF.layers(Layers::SlidingIfAny(last(Some("sliding_window_pattern"), 4)))),
    ModelType("exaone_moe", 32, share(4096, 32), HALF.layers(Layers::SlidingIfAny(last(Some("sliding_window_pattern"), 4)))),
    ModelType("falcon", 32, share(4544, 71), HALF.on(Condition::NotAlibi)),
    ModelType("falcon_h1", 32, share(4096, 32), HALF),
    ModelType("flex_olmo", 32, share(4096, 32), HALF.theta(5e5)),
    ModelType("flint", 49, fixed(128), HALF.layers(sliding_only(Pattern::Required))),
    ModelType("gemma", 28, fixed(256), HALF),
    ModelType("gemma2", 26, fixed(256), HALF),
    ModelType("gemma3_text", 26, fixed(256), HALF.layers(Layers::Own(GEMMA3, last(Some("sliding_window_pattern"), 6)))),
    ModelType("gemma3n_text", 35, fixed(256), HALF.layers(Layers::Own(GEMMA3, last(None, 5)))),
    ModelType("gemma4_text", 30, Head::Wider(256, 512), HALF.layers(Layers::Own(GEMMA4, Pattern::LastAndEnd(6)))),
    ModelType("gemma4_unified_text", 30, Head::Wider(256, 512), HALF.layers(Layers::Own(GEMMA4, Pattern::LastAndEnd(6)))),
    ModelType("glm", 40, fixed(128), INTERLEAVED.partial(0.5)),
    ModelType("glm4", 40, fixed(128), INTERLEAVED.partial(0.5)),
    ModelType("glm4_moe", 46, share(4096, 96), HALF.partial(0.5)),
    ModelType("glm4_moe_lite", 47, latent(512, 64), INTERLEAVED),
    ModelType("glm4v_moe_text", 46, share(4096, 96), HALF.partial(0.5)),
    ModelType("glm4v_text", 40, share(4096, 32), INTERLEAVED.partial(1.0)),
    ModelType("glm_image_text", 40, share(4096, 32), HALF.partial(1.0)),
    ModelType("glm_ocr_text", 16, share(1024, 16), INTERLEAVED.partial(1.0)),
    ModelType("gpt_neox", 44, share(6144, 64), HALF.partial(0.25)),
    ModelType("gpt_neox_japanese", 32, share(2560, 32), HALF.partial(1.0)),
    ModelType("gpt_oss", 36, fixed(64), HALF.theta(1.5e5).explicit()),
    ModelType("gptj", 28, share(4096, 16), INTERLEAVED.rotary_dim(64)),
    ModelType("granite", 32, share(4096, 32), HALF),
    ModelType("granite_docling_text", 28, share(1024, 16), HALF),
    ModelType("granite_swa", 24, share(2560, 20), HALF.layers(Layers::Thetas { else_alike: true })),
    ModelType("granitemoe", 32, share(4096, 32), HALF),
    ModelType("granitemoe_swa", 32, share(4096, 32), HALF.layers(Layers::Thetas { else_alike: true })),
    ModelType("granitemoehybrid", 32, share(4096, 32), HALF.on(Condition::SaysRope).layers(full_only(Pattern::Required))),
    ModelType("granitemoeshared", 32, share(4096, 32), HALF),
    ModelType("helium", 24, fixed(128), INTERLEAVED.theta(1e5)),
    ModelType("hrm_text", 16, fixed(128), HALF.slots(Slots::Cycles)),
    ModelType("hy_v3", 80, fixed(128), HALF.theta(11_158_840.0)),
    ModelType("hyperclovax", 32, share(4096, 32), HALF),
    ModelType("internlm", 32, share(4096, 32), HALF), // remote code; `rotary` instead of `rope_scaling`
    ModelType("internlm2", 32, share(4096, 32), HALF), // remote code, Llama's rope
    ModelType("internlm3", 48, fixed(128), HALF),
    ModelType("iquestcoder", 80, fixed(128), HALF),
    ModelType("jais2", 32, share(3328, 26), HALF),
    ModelType("jetmoe", 12, fixed(128), HALF),
    ModelType("kimi_k2", 61, latent(512, 64), INTERLEAVED), // DeepSeek-V3's code
    ModelType("kimi_linear", 27, latent(512, 64), HALF.layers(Layers::Still)),
    ModelType("kolibri1", 50, fixed(128), HALF.layers(sliding_only(last(None, 5)))),
    ModelType("laguna", 40, fixed(128), HALF.partial(1.0).layers(Layers::Own(LAGUNA, last(None, 1)))),
    ModelType("lara_mini", 34, fixed(128), HALF.layers(sliding_only(Pattern::Required))),
    ModelType("lfm2", 32, share(2560, 32), HALF.theta(1e6).layers(full_only(Pattern::Listed { key: "full_attn_idxs", else_all: true }))),
    ModelType("lfm2_moe", 32, share(2048, 32), HALF.theta(1e6).layers(full_only(Pattern::Required))),
    ModelType("lfm3", 24, fixed(128), HALF.layers(Layers::Own(LFM3, Pattern::Required))),
    ModelType("llama", 32, share(4096, 32), HALF),
    ModelType("llama4_text", 48, fixed(128), INTERLEAVED.theta(5e5).layers(Layers::Flags)),
    ModelType("longcat_flash", 56, latent(512, 64), INTERLEAVED.theta(1e7).slots(Slots::Two)),
    ModelType("mellum", 28, fixed(128), HALF.partial(1.0).layers(Layers::Own(MELLUM, last(None, 1)))),
    ModelType("mimo", 32, share(4096, 32), HALF), // remote code, Qwen2's rope
    ModelType("mimo_v2_flash", 48, fixed(192), HALF.partial(0.334).layers(Layers::Own(MIMO, Pattern::Required))),
    ModelType("minicpm", 32, share(4096, 32), HALF), // remote code, Llama's rope
    ModelType("minicpm3", 62, latent(256, 32), HALF),
    ModelType("minimax", 32, share(4096, 32), HALF.theta(1e6).layers(full_only(Pattern::Required))),
    ModelType("minimax_m2", 62, fixed(128), HALF.theta(5e6).partial(1.0)),
    ModelType("minimax_m3_vl_text", 60, fixed(128), HALF.theta(5e6).stated().layers(Layers::Typed(&[FULL], last(None, 1)))),
    ModelType("ministral", 32, share(4096, 32), HALF),
    ModelType("ministral3", 34, fixed(128), HALF.theta(1e6).explicit()),
    ModelType("mistral", 32, share(4096, 32), HALF),
    ModelType("mistral4", 36, latent(256, 64), INTERLEAVED.explicit()),
    ModelType("mixtral", 32, share(4096, 32), HALF.theta(1e6)),
    ModelType("mllama_text_model", 40, share(4096, 32), HALF.theta(5e5).layers(Layers::Cross(&[3, 8, 13, 18, 23, 28, 33, 38]))),
    ModelType("modernbert-decoder", 22, share(768, 12), HALF.layers(Layers::Own(MODERNBERT, Pattern::First { key: Some("global_attn_every_n_layers"), every: 3, other: SLIDING }))),
    ModelType("molmo2_text", 36, fixed(128), HALF),
    ModelType("moshi", 32, share(4096, 32), HALF),
    ModelType("muse_glimmer_text", 52, fixed(128), HALF.layers(Layers::Thetas { else_alike: false })),
    ModelType("muse_spark_text", 62, fixed(64), HALF.theta(5e5).layers(Layers::Thetas { else_alike: false })),
    ModelType("nemotron", 32, share(6144, 48), HALF.partial(0.5)),
    ModelType("olmo", 32, share(4096, 32), HALF),
    ModelType("olmo2", 32, share(4096, 32), HALF),
    ModelType("olmo3", 32, share(4096, 32), HALF.layers(Layers::Own(OLMO3, last(None, 4)))),
    ModelType("olmo_hybrid", 32, share(3840, 30), HALF.layers(full_only(last_linear(None, 4)))),
    ModelType("olmoe", 16, share(2048, 16), HALF),
    ModelType("orion", 40, share(5120, 40), HALF), // remote code, Llama's rope
    ModelType("persimmon", 36, share(4096, 64), HALF.partial(0.5)),
    ModelType("phi", 24, share(2048, 32), HALF.partial(0.5)),
    ModelType("phi3", 32, share(3072, 32), HALF.partial(1.0)),
    ModelType("phi3small", 32, share(4096, 32), HALF.theta(1e6)), // remote code
    ModelType("phi4_multimodal", 32, share(3072, 32), HALF.partial(1.0)),
    ModelType("phimoe", 32, share(4096, 32), HALF.theta(1e6)),
    ModelType("qwen", 32, share(4096, 32), HALF.partial(1.0)), // remote code
    ModelType("qwen2", 32, share(4096, 32), HALF),
    ModelType("qwen2_5_omni_text", 28, share(3584, 28), HALF.theta(1e6)),
    ModelType("qwen2_5_vl", 80, share(8192, 64), HALF.theta(1e6)), // as published, without text_config
    ModelType("qwen2_5_vl_text", 80, share(8192, 64), HALF.theta(1e6)),
    ModelType("qwen2_moe", 24, share(2048, 16), HALF),
    ModelType("qwen2_vl", 80, share(8192, 64), HALF.theta(1e6)), // as published, without text_config
    ModelType("qwen2_vl_text", 80, share(8192, 64), HALF.theta(1e6)),
    ModelType("qwen3", 32, fixed(128), HALF),
    ModelType("qwen3_5_moe_text", 40, fixed(256), HALF.partial(0.25).layers(full_only(last_linear(Some("full_attention_interval"), 4)))),
    ModelType("qwen3_5_text", 32, fixed(256), HALF.partial(0.25).layers(full_only(last_linear(Some("full_attention_interval"), 4)))),
    ModelType("qwen3_moe", 24, share(2048, 32), HALF),
    ModelType("qwen3_next", 48, fixed(256), HALF.partial(0.25).layers(full_only(last_linear(Some("full_attention_interval"), 4)))),
    ModelType("qwen3_omni_moe_text", 28, share(2048, 28), HALF.theta(1e6)),
    ModelType("qwen3_vl_moe_text", 24, share(2048, 16), HALF.theta(5e5)),
    ModelType("qwen3_vl_text", 32, fixed(128), HALF.theta(5e5)),
    ModelType("roformer", 12, share(768, 12), INTERLEAVED),
    ModelType("sarvam_mla", 32, latent(512, 64), INTERLEAVED),
    ModelType("sarvam_moe", 19, fixed(64), HALF.theta(8e6).partial(1.0)),
    ModelType("seed_oss", 64, fixed(128), HALF),
    ModelType("smollm3", 36, share(2048, 16), HALF.theta(2e6).layers(Layers::Flags)),
    ModelType("solar_open", 48, fixed(128), HALF.theta(1e6).partial(1.0)),
    ModelType("stablelm", 32, share(2560, 32), HALF.partial(0.25)),
    ModelType("starcoder2", 30, share(3072, 24), HALF),
    ModelType("step3_text", 61, fixed(256), HALF.theta(5e5)), // remote code
    ModelType("t5_gemma_module", 26, fixed(256), HALF), // T5Gemma's decoder
    ModelType("vaultgemma", 26, fixed(256), HALF),
    ModelType("xverse", 40, share(5120, 40), HALF), // remote code, Llama's rope
    ModelType("youtu", 32, latent(512, 64), INTERLEAVED),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that transformers cannot run by itself, or runs under another name.
    const NOT_MEASURED: [&str; 16] = [
        "baichuan",
        "bailing_moe",
        "chatglm",
        "deepseek",
        "internlm",
        "internlm2",
        "kimi_k2",
        "mimo",
        "minicpm",
        "orion",
        "phi3small",
        "qwen",
        "qwen2_5_vl",
        "qwen2_vl",
        "step3_text",
        "xverse",
    ];

    #[test]
    fn every_row_is_measured() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs/keys.json");
        let file: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let entries = file["entries"].as_array().unwrap();
        for row in MODEL_TYPES {
            let measured = entries.iter().any(|e| e["config"]["model_type"] == row.0);
            assert_ne!(measured, NOT_MEASURED.contains(&row.0), "{}", row.0);
        }
        assert_eq!(entries.len() + NOT_MEASURED.len(), MODEL_TYPES.len());
    }

    #[test]
    fn rows_are_sorted_and_distinct() {
        assert!(MODEL_TYPES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
