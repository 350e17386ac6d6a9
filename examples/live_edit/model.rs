//! A decoder of the Llama family that encodes tokens anywhere in its cache.
//!
//! It differs from any engine's in one point only: a token to encode comes with its row and its
//! position, and attends to the rows at positions up to its own. So tokens can be encoded in the
//! middle of what is cached.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, RmsNorm, VarBuilder};
use pie_rope::{ModelRope, Pairing};

use crate::cache::{Cache, Part, Shape};
use crate::checkpoint::{Checkpoint, Config, Family};

/// A decoder with f32 weights.
pub(crate) struct Decoder {
    config: Config,
    embedding: Embedding,
    layers: Vec<DecoderLayer>,
    norm: Norm,
    head: Linear,
    rope: ModelRope,
    /// The inverse frequencies of every layer, in radians per position.
    inv_freq: Vec<f64>,
}

struct DecoderLayer {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: Norm,
    mlp: Mlp,
}

enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

enum Mlp {
    /// `down(silu(gate(x)) * up(x))`.
    Gated {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    /// `project(gelu(fully_connected(x)))`.
    Plain {
        fully_connected: Linear,
        project: Linear,
    },
}

/// What all layers need to know about the tokens that are being encoded.
struct Pass<'a> {
    rows: &'a [usize],
    /// cos and sin of each token's angles: `[token, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// 0 where a token may look and -inf where it may not: `[token, visible]`.
    mask: Tensor,
    /// Rows `0..visible` hold all positions that any of the tokens may look at.
    visible: usize,
}

impl Decoder {
    /// Loads a checkpoint. `tokens` is the longest sequence that will be encoded: some rotary
    /// encodings depend on it.
    pub(crate) fn load(checkpoint: &Checkpoint, tokens: usize) -> Result<Decoder> {
        let config = checkpoint.config()?;
        let rope = ModelRope::from_config_json_at(&checkpoint.json(), tokens)?;
        let inv_freq = shared_inv_freq(&rope, &config)?;
        let weights = checkpoint.weights()?;
        let model = weights.pp("model");
        let embedding =
            candle_nn::embedding(config.vocabulary, config.hidden, model.pp("embed_tokens"))?;
        let head = match config.tied_embeddings {
            true => Linear::new(embedding.embeddings().clone(), None),
            false => linear(&weights, "lm_head", config.hidden, config.vocabulary, false)?,
        };
        let layers = (0..config.layers)
            .map(|layer| DecoderLayer::load(&config, &model.pp("layers").pp(layer)))
            .collect::<Result<_>>()?;
        Ok(Decoder {
            norm: Norm::load(&config, &model.pp("norm"))?,
            embedding,
            layers,
            head,
            rope,
            inv_freq,
            config,
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary encoding, for the crate to turn keys with.
    pub(crate) fn rope(&self) -> &ModelRope {
        &self.rope
    }

    /// An empty cache for sequences of up to `capacity` tokens.
    pub(crate) fn cache(&self, capacity: usize, dtype: DType) -> Result<Cache> {
        let shape = Shape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            capacity,
            head_dim: self.config.head_dim,
        };
        Cache::new(shape, dtype)
    }

    /// Encodes `tokens[i]` in row `rows[i]` at position `positions[i]`, writes its keys and values
    /// to the cache, and returns the last hidden states: `[token, hidden]`.
    ///
    /// Each token attends to every row in use at a position up to its own, those of the other
    /// tokens of this call included; no row behind it changes.
    pub(crate) fn encode(
        &self,
        cache: &mut Cache,
        tokens: &[u32],
        rows: &[usize],
        positions: &[i32],
    ) -> Result<Tensor> {
        ensure!(
            tokens.len() == rows.len() && !tokens.is_empty(),
            "{} tokens for {} rows",
            tokens.len(),
            rows.len()
        );
        cache.claim(rows, positions)?;
        let (cos, sin) = self.angles(positions)?;
        let (mask, visible) = self.mask(cache.positions(), positions)?;
        let pass = Pass {
            rows,
            cos,
            sin,
            mask,
            visible,
        };
        let tokens = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.forward(&tokens)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&self.config, index, cache, &pass, &x)?;
        }
        self.norm.forward(&x)
    }

    /// Next-token logits, `[token, vocabulary]`, of hidden states, `[token, hidden]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden)?)
    }

    /// cos and sin of position × inverse frequency, taken in f64. Yarn's magnitude factor is the
    /// model's own business, so it is put on here.
    fn angles(&self, positions: &[i32]) -> Result<(Tensor, Tensor)> {
        let angles = positions
            .iter()
            .flat_map(|&p| self.inv_freq.iter().map(move |f| f64::from(p) * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| {
                let magnitude = self.config.magnitude;
                let (sin, cos) = angle.sin_cos();
                ((magnitude * sin) as f32, (magnitude * cos) as f32)
            })
            .unzip();
        let shape = (positions.len(), self.inv_freq.len());
        Ok((
            Tensor::from_vec(cos, shape, &Device::Cpu)?,
            Tensor::from_vec(sin, shape, &Device::Cpu)?,
        ))
    }

    /// The causal mask by position, and the number of rows it covers.
    fn mask(&self, cached: &[i32], new: &[i32]) -> Result<(Tensor, usize)> {
        let latest = new.iter().max().context("no tokens to encode")?;
        // Rows are in order of their positions.
        let visible = cached.partition_point(|position| position <= latest);
        let window = self.config.window.unwrap_or(usize::MAX);
        let mask: Vec<f32> = new
            .iter()
            .flat_map(|&query| {
                cached[..visible].iter().map(move |&key| match query - key {
                    distance if distance < 0 || distance as usize >= window => f32::NEG_INFINITY,
                    _ => 0.0,
                })
            })
            .collect();
        let mask = Tensor::from_vec(mask, (new.len(), visible), &Device::Cpu)?;
        Ok((mask, visible))
    }
}

impl DecoderLayer {
    fn load(config: &Config, weights: &VarBuilder<'_>) -> Result<DecoderLayer> {
        let attention = weights.pp("self_attn");
        let queries = config.heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        let (hidden, bias) = (config.hidden, config.qkv_bias);
        Ok(DecoderLayer {
            attention_norm: Norm::load(config, &weights.pp("input_layernorm"))?,
            query: linear(&attention, "q_proj", hidden, queries, bias)?,
            key: linear(&attention, "k_proj", hidden, keys, bias)?,
            value: linear(&attention, "v_proj", hidden, keys, bias)?,
            output: linear(&attention, "o_proj", queries, hidden, config.output_bias)?,
            mlp_norm: Norm::load(config, &weights.pp("post_attention_layernorm"))?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(
        &self,
        config: &Config,
        layer: usize,
        cache: &Cache,
        pass: &Pass<'_>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let attended = self.attend(config, layer, cache, pass, &self.attention_norm.forward(x)?)?;
        let x = (x + attended)?;
        let fed = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        Ok((x + fed)?)
    }

    fn attend(
        &self,
        config: &Config,
        layer: usize,
        cache: &Cache,
        pass: &Pass<'_>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let &Config {
            heads,
            kv_heads,
            head_dim,
            ..
        } = config;
        let tokens = x.dim(0)?;
        let split = |projected: Tensor, heads: usize| -> Result<Tensor> {
            let split = projected.reshape((tokens, heads, head_dim))?;
            Ok(split.transpose(0, 1)?.contiguous()?)
        };
        let rotate = |x: Tensor| -> Result<Tensor> {
            let rotated = candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &pass.cos, &pass.sin)?;
            Ok(rotated.squeeze(0)?)
        };
        let query = rotate(split(self.query.forward(x)?, heads)?)?;
        let key = rotate(split(self.key.forward(x)?, kv_heads)?)?;
        let value = split(self.value.forward(x)?, kv_heads)?;
        cache.write(layer, Part::Keys, pass.rows, &key)?;
        cache.write(layer, Part::Values, pass.rows, &value)?;

        let keys = cache.rows(layer, Part::Keys, pass.visible)?;
        let values = cache.rows(layer, Part::Values, pass.visible)?;
        let (keys, values) = (keys.to_dtype(DType::F32)?, values.to_dtype(DType::F32)?);
        // Query heads that share a key/value head lie side by side: one product per shared head.
        let shared = (kv_heads, heads / kv_heads * tokens);
        let query = (query / (head_dim as f64).sqrt())?;
        let scores = query
            .reshape((shared.0, shared.1, head_dim))?
            .matmul(&keys.t()?)?
            .reshape((heads, tokens, pass.visible))?
            .broadcast_add(&pass.mask)?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?
            .reshape((shared.0, shared.1, pass.visible))?
            .matmul(&values)?
            .reshape((heads, tokens, head_dim))?
            .transpose(0, 1)?
            .reshape((tokens, heads * head_dim))?;
        Ok(self.output.forward(&mixed)?)
    }
}

impl Norm {
    fn load(config: &Config, weights: &VarBuilder<'_>) -> Result<Norm> {
        let (hidden, eps) = (config.hidden, config.norm_eps);
        Ok(match config.family {
            Family::Llama | Family::Qwen2 => {
                Norm::Rms(candle_nn::rms_norm(hidden, eps, weights.clone())?)
            }
            Family::StarCoder2 => Norm::Layer(candle_nn::layer_norm(hidden, eps, weights.clone())?),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Norm::Rms(norm) => norm.forward(x)?,
            Norm::Layer(norm) => norm.forward(x)?,
        })
    }
}

impl Mlp {
    fn load(config: &Config, weights: &VarBuilder<'_>) -> Result<Mlp> {
        let (hidden, inner, bias) = (config.hidden, config.intermediate, config.mlp_bias);
        Ok(match config.family {
            Family::Llama | Family::Qwen2 => Mlp::Gated {
                gate: linear(weights, "gate_proj", hidden, inner, bias)?,
                up: linear(weights, "up_proj", hidden, inner, bias)?,
                down: linear(weights, "down_proj", inner, hidden, bias)?,
            },
            Family::StarCoder2 => Mlp::Plain {
                fully_connected: linear(weights, "c_fc", hidden, inner, bias)?,
                project: linear(weights, "c_proj", inner, hidden, bias)?,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Mlp::Gated { gate, up, down } => {
                down.forward(&(gate.forward(x)?.silu()? * up.forward(x)?)?)?
            }
            // candle's `gelu` is the tanh approximation, as the model wants it.
            Mlp::Plain {
                fully_connected,
                project,
            } => project.forward(&fully_connected.forward(x)?.gelu()?)?,
        })
    }
}

fn linear(
    weights: &VarBuilder<'_>,
    name: &str,
    inputs: usize,
    outputs: usize,
    bias: bool,
) -> Result<Linear> {
    Ok(candle_nn::linear_b(
        inputs,
        outputs,
        bias,
        weights.pp(name),
    )?)
}

/// The inverse frequencies that all layers share, with the checks that the decoder relies on.
fn shared_inv_freq(rope: &ModelRope, config: &Config) -> Result<Vec<f64>> {
    ensure!(
        rope.layers() == config.layers,
        "the rotary encoding is of {} layers, the model of {}",
        rope.layers(),
        config.layers
    );
    let mut layers = (0..config.layers).map(|index| {
        rope.layer(index)
            .with_context(|| format!("layer {index} has no rotary encoding"))
    });
    let first = layers.next().context("the model has no layers")??;
    ensure!(
        first.pairing() == Pairing::HalfSplit
            && first.offset() == 0
            && first.rotary_dim() == config.head_dim,
        "this decoder rotates whole heads with half-split pairs; the model rotates {} of {} \
         dimensions from {} on, {:?}",
        first.rotary_dim(),
        config.head_dim,
        first.offset(),
        first.pairing()
    );
    for layer in layers {
        ensure!(
            layer? == first,
            "layers rotate differently; this decoder has one rope for all"
        );
    }
    Ok(first.inv_freq().to_vec())
}
