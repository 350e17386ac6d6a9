//! A model's published `config.json`, read as a [`ModelRope`].

mod layers;
mod model_types;
mod odd;
mod parameters;
mod refused;
mod section;
mod slots;

use std::collections::HashMap;

use serde_json::Value;

use super::ModelRope;
use crate::{Error, Result};
#[cfg(feature = "capi")]
pub(crate) use layers::MAX_LAYERS;
use model_types::ModelType;
use parameters::Parameters;
use section::Section;

impl ModelRope {
    /// Reads a model's `config.json` as Hugging Face publishes it: the frequencies for short
    /// sequences.
    ///
    /// The older form (`rope_theta` and `rope_scaling`, with `type` or `rope_type`) is read, and so
    /// is the newer one (`rope_parameters`, flat or keyed by layer type), inside the text part of a
    /// multimodal configuration too. The result says for each layer what the model's own code does:
    ///
    /// - **Pairing** follows from `model_type`: GPT-J, CodeGen, Cohere, ERNIE 4.5, GLM-4, Helium,
    ///   Llama 4, RoFormer and the DeepSeek line of latent attentions (LongCat-Flash and Sarvam
    ///   among them) interleave, most others split in halves. It is that of the checkpoint's own channel order. A GGUF file of a Llama permutes
    ///   the keys to interleaved pairs: use [`map`](ModelRope::map) and
    ///   [`with_pairing`](super::Rope::with_pairing).
    /// - **Multi-head latent attention** (DeepSeek-V2 and its like) is described as the row that an
    ///   engine caches: `kv_lora_rank` latent components, then `qk_rope_head_dim` rotated ones, so
    ///   the window starts at `kv_lora_rank` (512, of 576, in DeepSeek-V3). A cache that keeps the
    ///   rotated part by itself moves the window to 0, one of full keys to `qk_nope_head_dim`, with
    ///   [`map`](ModelRope::map). transformers' own cache also reorders that part into halves, but for DeepSeek-V2's.
    ///   Where an indexer caches keys of its own beside these (DeepSeek-V3.2), the file is refused.
    /// - **Layers without a rope** have none: Cohere 2's, Llama 4's and SmolLM3's global ones, the
    ///   recurrent layers of hybrids, cross-attention, all of a model with ALiBi (some Falcons,
    ///   Baichuan 13B). Where layers share the keys of an earlier one (Gemma 3n), each still says
    ///   what its keys are.
    /// - **Layers of the cache** are what is counted, where a model's own write several: the two
    ///   attentions of each in LongCat-Flash, the cycles of HRM, the loops of Dory (last).
    /// - **A partial rotary factor** counts where the model's class looks at it. Llama's, for one,
    ///   does not under a plain rope, and turns whole heads; under a scaling it does not run with
    ///   one, and such a file is refused. (vLLM's Llama turns the part. Build its rope with
    ///   [`Rope::from_theta`](super::Rope::from_theta).)
    /// - **Magnitude factors** (`attention_factor`, `mscale`, `short_mscale` and the rest) have no
    ///   influence: see [`Rope`](super::Rope).
    /// - **M-RoPE** (`mrope_section`; Qwen2-VL and later) gives some pairs another component of a
    ///   position than others. A re-rotation knows differences only, so this rope is exact
    ///   wherever all components of a token's position move by the same amount: for text, whose
    ///   components agree, and for a whole image or clip that an edit before it shifts. It is
    ///   wrong for rows whose components move by different amounts, which an edit of text never
    ///   does; such rows have to be encoded again. Note that a position after an image is not a
    ///   count of rows.
    ///
    /// What a file leaves out has the default of the model's class in transformers. Reading takes
    /// time and memory for its text and for each distinct rope, not for each layer; more than 1024
    /// layers, or a window of more than 4096 components or behind more than 65 536, are refused as damage.
    ///
    /// # Errors
    /// [`Error::Config`], which names the entry: the text is not JSON; the `model_type` or the type
    /// of scaling is unknown, or known to do what no rope describes, which the message explains
    /// (nothing is guessed, for a wrong rope ruins a cache silently: who knows better builds it with
    /// [`Rope::from_theta`](super::Rope::from_theta),
    /// [`Rope::from_scaling`](super::Rope::from_scaling) or
    /// [`Rope::from_inv_freq`](super::Rope::from_inv_freq), and the model with
    /// [`ModelRope::uniform`] or [`ModelRope::from_layers`]); an entry is missing; numbers
    /// contradict each other; or they make a pair turn faster than
    /// [`Rope::MAX_INV_FREQ`](super::Rope::MAX_INV_FREQ).
    ///
    /// ```
    /// use pie_rope::ModelRope;
    ///
    /// let model = ModelRope::from_config_json(r#"{
    ///     "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    ///     "num_attention_heads": 32, "max_position_embeddings": 16384, "rope_theta": 100000,
    ///     "rope_scaling": {"type": "linear", "factor": 4.0}
    /// }"#)?;
    /// assert_eq!(model.layers(), 32);
    /// assert_eq!(model.ropes()[0].inv_freq()[0], 0.25);
    /// # Ok::<(), pie_rope::Error>(())
    /// ```
    pub fn from_config_json(json: &str) -> Result<ModelRope> {
        ModelRope::from_config_json_at(json, 0)
    }

    /// As [`from_config_json`](ModelRope::from_config_json), with the frequencies that the model
    /// uses when the sequence is `tokens` long.
    ///
    /// They depend on it under LongRoPE, which switches to its long factors beyond
    /// `original_max_position_embeddings`, and under dynamic NTK, whose theta grows beyond
    /// `max_position_embeddings`. A cached key keeps the frequencies of the forward pass that made
    /// it: describe the old keys by one call and the new ones by another. (Where a model's magnitude
    /// changes at the switch as well, `short_mscale` and `long_mscale` of Phi-3.5-MoE, no rotation
    /// can make up for it.)
    ///
    /// # Errors
    /// As [`from_config_json`](ModelRope::from_config_json).
    pub fn from_config_json_at(json: &str, tokens: usize) -> Result<ModelRope> {
        let refused = |problem: String| Error::Config {
            key: "(whole file)".into(),
            problem: format!("is not a JSON object{problem}"),
        };
        let root: Value =
            serde_json::from_str(json).map_err(|error| refused(format!(": {error}")))?;
        let root = root.as_object().ok_or_else(|| refused(String::new()))?;
        let (config, model) = text_part(Section::root(root))?;
        odd::check(&config, model)?;
        let layers = layers::layers(&config, model)?;
        // A file without a rope is not asked about one.
        if layers.iter().all(|layer| layer.description().is_none()) {
            return Ok(ModelRope::from_layers(layers.iter().map(|_| None)));
        }
        let parameters = Parameters::read(&config, model, tokens)?;
        let mut ropes = HashMap::new();
        let mut of_layer = |layer: layers::Layer| {
            let Some(description) = layer.description() else {
                return Ok(None);
            };
            if let Some(rope) = ropes.get(&description) {
                return Ok(Option::clone(rope));
            }
            let rope = parameters.rope(layer)?;
            ropes.insert(description, rope.clone());
            Ok(rope)
        };
        let layers: Result<Vec<_>> = layers.into_iter().map(&mut of_layer).collect();
        layers.map(ModelRope::from_layers)
    }
}

/// Where a multimodal configuration keeps the text part.
const INNER: [&str; 4] = [
    "thinker_config",
    "text_config",
    "llm_config",
    "language_config",
];

/// Published files nest twice at most.
const MAX_DEPTH: usize = 8;

/// The part of a configuration that describes the language model, and that model's type.
fn text_part(root: Section<'_>) -> Result<(Section<'_>, &'static ModelType)> {
    let mut config = root;
    let mut outer = None;
    let mut depth = 0;
    'down: loop {
        let model_type = config.text("model_type");
        // The one encoder and decoder whose decoder has a rope that is known.
        let decoder = matches!(model_type, Ok(Some("t5gemma"))).then_some("decoder");
        for key in INNER.into_iter().chain(decoder) {
            if let Some(inner) = config.section(key)? {
                if depth == MAX_DEPTH {
                    return Err(config.wrong(key, "is nested more deeply than any model's"));
                }
                outer = config.text("model_type")?.or(outer);
                config = inner;
                depth += 1;
                continue 'down;
            }
        }
        break;
    }
    let name = match (config.text("model_type")?, outer) {
        (Some(name), _) => name.to_owned(),
        (None, Some(outer)) => format!("{outer}_text"),
        (None, None) => return Err(config.wrong("model_type", "is missing")),
    };
    match model_types::find(&name) {
        Some(model) => Ok((config, model)),
        None => Err(config.wrong("model_type", refused::refusal(&name))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::parameters::tests::READ;
    use super::*;

    /// How many ropes were read, and the model.
    fn read(config: &Value) -> (usize, Result<ModelRope>) {
        let before = READ.get();
        let model = ModelRope::from_config_json(&config.to_string());
        (READ.get() - before, model)
    }

    #[test]
    fn a_rope_is_read_once_for_all_layers_that_have_it() {
        let thetas: Vec<f64> = (0..layers::MAX_LAYERS)
            .map(|layer| 1e4 + (layer % 3) as f64)
            .collect();
        let gemma = ["full_attention", "sliding_attention"].repeat(layers::MAX_LAYERS / 2);
        for (config, ropes) in [
            (json!({ "model_type": "llama", "head_dim": 4096 }), 1),
            // Both forms at once are one rope's description.
            (
                json!({ "model_type": "llama", "rope_parameters": { "rope_theta": 1e4 },
                        "rope_scaling": { "type": "default" } }),
                1,
            ),
            (
                json!({ "model_type": "granite_swa", "layer_rope_theta": thetas }),
                3,
            ),
            (
                json!({ "model_type": "gemma3_text", "layer_types": gemma }),
                2,
            ),
            (json!({ "model_type": "gemma4_text" }), 2),
            (json!({ "model_type": "kimi_linear" }), 0),
        ] {
            let mut config = config;
            config["num_hidden_layers"] = json!(layers::MAX_LAYERS);
            let (reads, model) = read(&config);
            let model = model.unwrap_or_else(|error| panic!("{config}: {error}"));
            assert_eq!(model.layers(), layers::MAX_LAYERS);
            assert_eq!((reads, model.ropes().len()), (ropes, ropes), "{config}");
        }
    }

    /// Every limit is there before work is done that it would not let through.
    #[test]
    fn what_no_model_has_is_refused_before_it_is_built() {
        let nested = |depth: usize| {
            let mut config = json!({ "model_type": "llama" });
            for _ in 0..depth {
                config = json!({ "model_type": "llava", "text_config": config });
            }
            config
        };
        assert_eq!(read(&nested(8)).1.unwrap().layers(), 32);
        for (config, key) in [
            (
                json!({ "model_type": "llama", "num_hidden_layers": 1025 }),
                "num_hidden_layers",
            ),
            (
                json!({ "model_type": "llama", "head_dim": 4098 }),
                "head_dim",
            ),
            (
                json!({ "model_type": "deepseek_v3", "qk_rope_head_dim": 4098 }),
                "qk_rope_head_dim",
            ),
            (
                json!({ "model_type": "deepseek_v3", "kv_lora_rank": u64::MAX }),
                "kv_lora_rank",
            ),
            (
                json!({ "model_type": "longcat_flash", "num_layers": 513 }),
                "num_layers",
            ),
            (
                json!({ "model_type": "hrm_text", "num_hidden_layers": 129 }),
                "num_hidden_layers",
            ),
            (
                json!({ "model_type": "dory", "n_recurrent_loops": 1_000_000_000_000_u64 }),
                "n_recurrent_loops",
            ),
        ] {
            match read(&config) {
                (_, Err(Error::Config { key: found, .. })) => assert_eq!(found, key, "{config}"),
                other => panic!("{config}: {other:?}"),
            }
        }
        let Err(Error::Config { key, .. }) = read(&nested(9)).1 else {
            panic!("nine deep");
        };
        assert!(key.ends_with("text_config") && key.len() < 200, "{key}");
    }
}
