//! Entries that a single model type has for itself.

use super::model_types::{INDEXED, ModelType};
use super::section::Section;
use crate::Result;
use crate::rope::scaling::Scaling;
use crate::rope::shown;

/// Refuses a file that makes a model something else than its type stands for.
pub(super) fn check(config: &Section<'_>, model: &ModelType) -> Result<()> {
    beside(config)?;
    match model.0 {
        "roformer" if config.flag("rotary_value")? == Some(true) => Err(config.wrong(
            "rotary_value",
            "is true: its values turn too, and no rope says so",
        )),
        // How published files say which layers have an indexer.
        "minimax_m3_vl_text" if !config.has("layer_types") => {
            let key = "sparse_attention_freq";
            let Some(sparse) = config.section("sparse_attention_config")? else {
                return Ok(());
            };
            match sparse.counts(key)? {
                Some(flags) if flags.iter().any(|flag| *flag != 0) => {
                    let problem = "makes layers with an indexer, which caches keys of its own";
                    Err(sparse.wrong(key, problem))
                }
                _ => Ok(()),
            }
        }
        // MiniCPM 4's attention to blocks, which it chooses by keys of each that are cached too.
        "minicpm" if config.has("sparse_config") => Err(config.wrong(
            "sparse_config",
            "is there: its layers cache keys of whole blocks beside their own",
        )),
        // Phi-3-small's positions are divided by it; every published file says 1.
        "phi3small" => match config.number("rope_position_scale")? {
            Some(scale) if scale != 1.0 => Err(config.wrong(
                "rope_position_scale",
                format!("is {}; known is 1", shown(scale)),
            )),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Refuses any type's layers that cache other keys beside their own, as those of a type that is relabelled.
fn beside(config: &Section<'_>) -> Result<()> {
    // Most types do not look at this entry, whatever it holds.
    let types = config.texts("layer_types").ok().flatten();
    let mut types = types.iter().flatten();
    if let Some(name) = types.find(|name| INDEXED.contains(name)) {
        let problem = format!("has `{name}`: layers with an indexer, which caches keys of its own");
        return Err(config.wrong("layer_types", problem));
    }
    match config.count("index_topk") {
        Ok(Some(0) | None) | Err(_) => Ok(()),
        Ok(Some(rows)) => Err(config.wrong(
            "index_topk",
            format!("is {rows}: an indexer, which caches keys of its own, chooses so many rows"),
        )),
    }
}

/// The theta that a model makes of the one that its file gives, or leaves out.
pub(super) fn theta(config: &Section<'_>, model: &ModelType, theta: f64) -> Result<f64> {
    match model.0 {
        // ChatGLM3 and GLM-4 stretch it.
        "chatglm" => Ok(theta * config.number("rope_ratio")?.unwrap_or(1.0)),
        "internlm" => {
            let rotary = config.section("rotary")?;
            let base = rotary.map(|rotary| rotary.number("base")).transpose()?;
            Ok(base.flatten().unwrap_or(theta))
        }
        // vLLM, and transformers before 5, turn by this one; transformers 5 does not look at it.
        "dbrx" => {
            let key = "rope_theta";
            let Some(attention) = config.section("attn_config")? else {
                return Ok(theta);
            };
            match attention.number(key)? {
                Some(other) if other != theta => Err(attention.wrong(
                    key,
                    format!(
                        "is {}, by which some engines turn, and {} is what the others read; \
                         say the one that yours turns by under both names, `{key}` and this, or pass a \
                         `ModelRope` of your own",
                        shown(other),
                        shown(theta)
                    ),
                )),
                _ => Ok(theta),
            }
        }
        _ => Ok(theta),
    }
}

/// A scaling of the model's own, for a sequence of `tokens`.
pub(super) fn scaling(
    config: &Section<'_>,
    model: &ModelType,
    tokens: usize,
) -> Result<Option<Scaling>> {
    let longer = |key: &str| -> Result<bool> {
        Ok(config.count(key)?.is_some_and(|context| tokens > context))
    };
    match model.0 {
        // InternLM's first release has a dynamic rope unless it says otherwise.
        "internlm" => {
            let context = "max_position_embeddings";
            let Some(rotary) = config.section("rotary")? else {
                if longer(context)? {
                    let problem =
                        format!("is missing, and the rope depends on it at {tokens} tokens");
                    return Err(config.wrong("rotary", problem));
                }
                return Ok(None);
            };
            match rotary.text("type")? {
                Some("origin") => Ok(None),
                Some("dynamic") => match config.count(context)? {
                    Some(max_position_embeddings) => Ok(Some(Scaling::Dynamic {
                        factor: rotary.number("scaling_factor")?.unwrap_or(1.0),
                        max_position_embeddings,
                    })),
                    None => Err(config.wrong(context, "is missing, and the scaling depends on it")),
                },
                _ => Err(rotary.wrong("type", "is neither origin nor dynamic")),
            }
        }
        // Qwen's first release stretches theta in steps that its engines do not agree on.
        "qwen" if config.flag("use_dynamic_ntk")? == Some(true) && longer("seq_length")? => {
            let problem = format!("is true, and what it does at {tokens} tokens is not known");
            Err(config.wrong("use_dynamic_ntk", problem))
        }
        _ => Ok(None),
    }
}
