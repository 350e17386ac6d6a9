//! A checkpoint directory as published: what the model is, its weights, its tokenizer.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde_json::Value;

use crate::text::Text;

/// The decoders this example can build. They differ in normalisation, MLP and biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    StarCoder2,
}

/// What of `config.json` the decoder needs. The rotary encoding is not here: the crate reads it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Positions that the model was made for.
    pub(crate) positions: usize,
    pub(crate) norm_eps: f64,
    pub(crate) tied_embeddings: bool,
    /// Biases of the query, key and value projections; of the output projection; of the MLP.
    pub(crate) qkv_bias: bool,
    pub(crate) output_bias: bool,
    pub(crate) mlp_bias: bool,
    /// A token sees this many positions, its own included; `None`: all.
    pub(crate) window: Option<usize>,
    /// Factor on cos and sin of queries and keys alike (yarn). The crate leaves it out: it is already
    /// in a cached key, and turning must not apply it again.
    pub(crate) magnitude: f64,
}

/// A directory with `config.json`, `tokenizer.json` and safetensors weights.
pub(crate) struct Checkpoint {
    dir: PathBuf,
    json: Value,
}

impl Checkpoint {
    pub(crate) fn open(dir: &Path) -> Result<Checkpoint> {
        ensure!(
            dir.is_dir(),
            "{}: not a directory with a model",
            dir.display()
        );
        let json = read_json(&dir.join("config.json"))?;
        Ok(Checkpoint {
            dir: dir.to_owned(),
            json,
        })
    }

    /// The directory's own name.
    pub(crate) fn name(&self) -> String {
        let dir = self.dir.canonicalize().unwrap_or(self.dir.clone());
        let name = dir.file_name().unwrap_or(dir.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Drops all layers but the first `layers`.
    pub(crate) fn truncate(&mut self, layers: usize) -> Result<()> {
        let available = self.config()?.layers;
        ensure!(
            (1..=available).contains(&layers),
            "cannot use {layers} layers: the model has {available}"
        );
        self.json["num_hidden_layers"] = layers.into();
        // Some configurations also say what each layer is; the lists have to agree.
        if let Some(Value::Array(types)) = self.json.get_mut("layer_types") {
            types.truncate(layers);
        }
        Ok(())
    }

    /// The text of `config.json`, truncated like the model.
    pub(crate) fn json(&self) -> String {
        self.json.to_string()
    }

    pub(crate) fn config(&self) -> Result<Config> {
        Config::read(&self.json)
            .with_context(|| format!("{}", self.dir.join("config.json").display()))
    }

    pub(crate) fn text(&self) -> Result<Text> {
        let path = self.dir.join("tokenizer_config.json");
        let settings = match path.exists() {
            true => read_json(&path)?,
            false => Value::Null,
        };
        Text::open(&self.dir.join("tokenizer.json"), &self.json, &settings)
    }

    /// The weights in f32, whatever they are stored in.
    pub(crate) fn weights(&self) -> Result<VarBuilder<'static>> {
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for path in self.weight_files()? {
            let shard = candle_core::safetensors::load(&path, &Device::Cpu)
                .with_context(|| format!("{}", path.display()))?;
            for (name, tensor) in &shard {
                ensure!(
                    tensor.dtype().is_float() || !name.ends_with(".weight"),
                    "{}: {name} is {:?}; weights of f32, f16 and bf16 can be used",
                    path.display(),
                    tensor.dtype()
                );
            }
            tensors.extend(shard);
        }
        Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
    }

    fn weight_files(&self) -> Result<Vec<PathBuf>> {
        let single = self.dir.join("model.safetensors");
        let index = self.dir.join("model.safetensors.index.json");
        if single.exists() {
            return Ok(vec![single]);
        }
        if !index.exists() {
            bail!(
                "{}: neither model.safetensors nor model.safetensors.index.json is there",
                self.dir.display()
            );
        }
        let json = read_json(&index)?;
        let map = json["weight_map"]
            .as_object()
            .with_context(|| format!("{}: no `weight_map`", index.display()))?;
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        Ok(names.iter().map(|name| self.dir.join(name)).collect())
    }
}

impl Config {
    fn read(json: &Value) -> Result<Config> {
        let architecture = json["architectures"][0]
            .as_str()
            .context("`architectures` is missing")?;
        let family = match architecture {
            "LlamaForCausalLM" => Family::Llama,
            "Qwen2ForCausalLM" => Family::Qwen2,
            "Starcoder2ForCausalLM" => Family::StarCoder2,
            other => bail!(
                "`architectures`: {other} is not one of LlamaForCausalLM, Qwen2ForCausalLM, \
                 Starcoder2ForCausalLM"
            ),
        };
        let (activation, eps_key) = match family {
            Family::Llama | Family::Qwen2 => ("silu", "rms_norm_eps"),
            Family::StarCoder2 => ("gelu_pytorch_tanh", "norm_epsilon"),
        };
        if let Some(other) = json["hidden_act"].as_str().filter(|act| *act != activation) {
            bail!("`hidden_act`: {architecture} is known here with {activation}, not {other}");
        }
        ensure!(
            json["quantization_config"].is_null(),
            "`quantization_config`: quantised weights cannot be used; take the checkpoint they were made from"
        );
        let star_coder2 = family == Family::StarCoder2;
        let use_bias = flag(json, "use_bias", true)?;
        let hidden = size(json, "hidden_size", None)?;
        let heads = size(json, "num_attention_heads", None)?;
        let kv_heads = size(json, "num_key_value_heads", Some(heads))?;
        ensure!(
            heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
            "`num_attention_heads`: {heads} heads cannot share {kv_heads} key/value heads"
        );
        let window = json["sliding_window"].as_u64().map(|rows| rows as usize);
        if family == Family::Qwen2 && flag(json, "use_sliding_window", false)? {
            bail!("`use_sliding_window`: windows in some layers only are not supported");
        }
        Ok(Config {
            family,
            vocabulary: size(json, "vocab_size", None)?,
            hidden,
            intermediate: size(json, "intermediate_size", None)?,
            layers: size(json, "num_hidden_layers", None)?,
            heads,
            kv_heads,
            head_dim: size(json, "head_dim", Some(hidden / heads))?,
            positions: size(json, "max_position_embeddings", Some(usize::MAX))?,
            norm_eps: number(json, eps_key, if star_coder2 { 1e-5 } else { 1e-6 })?,
            tied_embeddings: flag(json, "tie_word_embeddings", star_coder2)?,
            qkv_bias: match family {
                Family::Llama => flag(json, "attention_bias", false)?,
                Family::Qwen2 => true,
                Family::StarCoder2 => use_bias,
            },
            output_bias: match family {
                Family::Llama => flag(json, "attention_bias", false)?,
                Family::Qwen2 => false,
                Family::StarCoder2 => use_bias,
            },
            mlp_bias: match family {
                Family::Llama => flag(json, "mlp_bias", false)?,
                Family::Qwen2 => false,
                Family::StarCoder2 => use_bias,
            },
            window: window.filter(|_| star_coder2),
            magnitude: magnitude(json)?,
        })
    }
}

/// The factor that yarn puts on cos and sin (Peng et al., arXiv 2309.00071, section 3.4), with the
/// defaults of Hugging Face transformers.
fn magnitude(json: &Value) -> Result<f64> {
    let rope = match &json["rope_parameters"] {
        Value::Null => &json["rope_scaling"],
        parameters => parameters,
    };
    match rope["rope_type"].as_str().or(rope["type"].as_str()) {
        Some("yarn") => {
            let factor = number(rope, "factor", 1.0)?;
            let default = 1.0 + 0.1 * factor.max(1.0).ln();
            number(rope, "attention_factor", default)
        }
        Some("longrope") => bail!("longrope: this decoder does not know its magnitude factor"),
        _ => Ok(1.0),
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

fn size(json: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    match &json[key] {
        Value::Null => default.ok_or_else(|| anyhow!("`{key}` is missing")),
        value => value
            .as_u64()
            .map(|size| size as usize)
            .ok_or_else(|| anyhow!("`{key}` is not a whole number: {value}")),
    }
}

fn number(json: &Value, key: &str, default: f64) -> Result<f64> {
    match &json[key] {
        Value::Null => Ok(default),
        value => value
            .as_f64()
            .ok_or_else(|| anyhow!("`{key}` is not a number: {value}")),
    }
}

fn flag(json: &Value, key: &str, default: bool) -> Result<bool> {
    match &json[key] {
        Value::Null => Ok(default),
        value => value
            .as_bool()
            .ok_or_else(|| anyhow!("`{key}` is neither true nor false: {value}")),
    }
}
