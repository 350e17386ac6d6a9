//! A model's published `config.json`, read as a [`ModelRope`].

mod layers;
mod model_types;
mod parameters;
mod section;

use serde_json::{Map, Value};

use super::ModelRope;
use crate::{Error, Result};
use model_types::ModelType;
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
    ///   Llama 4 and the DeepSeek line of latent attentions interleave, most others split in
    ///   halves. It is that of the checkpoint's own channel order. A GGUF file of a Llama permutes
    ///   the keys to interleaved pairs: use [`map`](ModelRope::map) and
    ///   [`with_pairing`](super::Rope::with_pairing).
    /// - **Multi-head latent attention** (DeepSeek-V2 and its like) is described as the row that an
    ///   engine caches: `kv_lora_rank` latent components, then `qk_rope_head_dim` rotated ones, so
    ///   the window starts at `kv_lora_rank` (512, of 576, in DeepSeek-V3). A cache that keeps the
    ///   rotated part by itself moves the window to 0, one of full keys to `qk_nope_head_dim`, with
    ///   [`map`](ModelRope::map). transformers' own cache also reorders that part into halves, but for DeepSeek-V2's. The
    ///   small key cache of a sparse-attention indexer (DeepSeek-V3.2) is not described.
    /// - **Layers without a rope** have none: Cohere 2's, Llama 4's and SmolLM3's global ones, the
    ///   recurrent layers of hybrids, cross-attention. Where layers share the keys of an earlier
    ///   one (Gemma 3n), each still says what its keys are.
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
    /// What a file leaves out has the default of the model's class in transformers.
    ///
    /// # Errors
    /// [`Error::Config`], which names the entry: the text is not JSON; the `model_type` or the type
    /// of scaling is unknown (nothing is guessed, for a wrong rope ruins a cache silently: build it
    /// with [`Rope::from_theta`](super::Rope::from_theta) or
    /// [`Rope::from_scaling`](super::Rope::from_scaling)); an entry is missing; or numbers
    /// contradict each other.
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
        let root: Map<String, Value> =
            serde_json::from_str(json).map_err(|error| Error::Config {
                key: "(whole file)".into(),
                problem: format!("is not a JSON object: {error}"),
            })?;
        let (config, model) = text_part(Section::root(&root))?;
        layers::layers(&config, model)?
            .into_iter()
            .map(|layer| parameters::rope(&config, model, layer, tokens))
            .collect::<Result<Vec<_>>>()
            .map(ModelRope::from_layers)
    }
}

/// The part of a configuration that describes the language model, and that model's type.
fn text_part(root: Section<'_>) -> Result<(Section<'_>, &'static ModelType)> {
    let mut config = root;
    let mut outer = None;
    'down: loop {
        for key in [
            "thinker_config",
            "text_config",
            "llm_config",
            "language_config",
        ] {
            if let Some(inner) = config.section(key)? {
                outer = config.text("model_type")?.or(outer);
                config = inner;
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
        None => Err(config.wrong(
            "model_type",
            format!("`{name}` is not a model type whose rope is known"),
        )),
    }
}
