//! Which layers of a model rotate, and by which of its ropes.

use super::model_types::{
    Condition, FULL, Head, Layers, ModelType, Own, Pattern, SLIDING, STATES, Slots,
};
use super::section::{Section, short};
use super::slots;
use crate::Result;

/// What one layer does, as far as layers of a model can differ.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    /// The head's width, where the model has one of its own to rotate.
    pub(super) head_dim: usize,
    pub(super) rope: Which,
}

impl Layer {
    /// Layers of which this is the same have the same rope; nothing for one that has none.
    pub(super) fn description(self) -> Option<(usize, Option<u64>, Option<&'static str>)> {
        let (theta, layer_type) = match self.rope {
            Which::None => return None,
            Which::Only => (None, None),
            Which::WithTheta(theta) => (Some(theta.to_bits()), None),
            Which::Own(own) => (None, Some(own.layer_type)),
        };
        Some((self.head_dim, theta, layer_type))
    }
}

/// Which of the model's ropes a layer has.
#[derive(Clone, Copy)]
pub(super) enum Which {
    None,
    /// The one that the model has.
    Only,
    /// The one that it has, with a theta of the layer's own.
    WithTheta(f64),
    /// Its layer type's.
    Own(&'static Own),
}

/// No model comes near: published ones have up to 126 layers, merges of them a few hundred. More
/// would be a damaged file; and each may have a rope of its own.
pub(crate) const MAX_LAYERS: usize = 1 << 10;

/// Every layer of the cache, in order.
pub(super) fn layers(config: &Section<'_>, model: &ModelType) -> Result<Vec<Layer>> {
    let (_, count) = slots::count(config, model)?;
    let types = layer_types(config, model, count)?;
    let head_dims = head_dims(config, model.2, &types, count)?;
    let ropes = which(config, model, &types, count)?;
    let layers = head_dims
        .into_iter()
        .zip(ropes)
        .map(|(head_dim, rope)| Layer { head_dim, rope })
        .collect();
    slots::expand(config, model, layers)
}

/// Each layer's type; nothing for models whose layers have none that matters here.
fn layer_types<'a>(config: &Section<'a>, model: &ModelType, count: usize) -> Result<Vec<&'a str>> {
    let pattern = match model.3.layers {
        Layers::Typed(_, pattern) | Layers::Own(_, pattern) => pattern,
        Layers::SlidingIfAny(pattern) if !config.is_null("sliding_window") => pattern,
        _ => return Ok(vec![]),
    };
    for key in ["layer_types", "layers_block_type"] {
        if let Some(mut types) = config.texts(key)? {
            if let Slots::Loops = model.3.slots {
                types.retain(|name| *name != slots::MLP);
            }
            if types.len() != count {
                let problem = format!("has {} entries for {count} layers", types.len());
                return Err(config.wrong(key, problem));
            }
            for name in &mut types {
                // As transformers wrote them before 5.0.
                match *name {
                    "attention" => *name = FULL,
                    "mamba" => *name = STATES[0],
                    _ => {}
                }
            }
            if let Pattern::LastAndEnd(_) = pattern {
                types[count - 1] = FULL;
            }
            return Ok(types);
        }
    }
    let period = |key: Option<&str>, every: usize| {
        let Some(key) = key else { return Ok(every) };
        match config.count(key)? {
            Some(0) => Err(config.wrong(key, "is zero")),
            found => Ok(found.unwrap_or(every)),
        }
    };
    Ok(match pattern {
        Pattern::Required => {
            return Err(config.wrong(
                "layer_types",
                "is missing, and which layers rotate depends on it",
            ));
        }
        Pattern::Last { key, every, other } => {
            let n = period(key, every)?;
            let full = |layer: usize| (layer + 1).is_multiple_of(n);
            (0..count)
                .map(|layer| if full(layer) { FULL } else { other })
                .collect()
        }
        Pattern::LastAndEnd(n) => {
            let full = |layer: usize| (layer + 1).is_multiple_of(n) || layer + 1 == count;
            (0..count)
                .map(|layer| if full(layer) { FULL } else { SLIDING })
                .collect()
        }
        Pattern::First { key, every, other } => {
            let n = period(key, every)?;
            let full = |layer: usize| layer.is_multiple_of(n);
            (0..count)
                .map(|layer| if full(layer) { FULL } else { other })
                .collect()
        }
        Pattern::Listed { key, else_all } => {
            let listed = listed(config, key, count)?;
            let full = |layer: usize| listed.as_ref().map_or(else_all, |listed| listed[layer]);
            (0..count)
                .map(|layer| if full(layer) { FULL } else { STATES[0] })
                .collect()
        }
    })
}

/// Which of the layers are in a list of them.
fn listed(config: &Section<'_>, key: &str, count: usize) -> Result<Option<Vec<bool>>> {
    let Some(layers) = config.counts(key)? else {
        return Ok(None);
    };
    let mut listed = vec![false; count];
    for layer in layers {
        let Some(place) = listed.get_mut(layer) else {
            return Err(config.wrong(key, format!("names layer {layer} of {count}")));
        };
        *place = true;
    }
    Ok(Some(listed))
}

fn head_dims(config: &Section<'_>, head: Head, types: &[&str], count: usize) -> Result<Vec<usize>> {
    // JetMoE and ChatGLM call it kv_channels.
    let given = config.first_count(&["head_dim", "kv_channels"])?;
    let given = given.map(|(_, head_dim)| head_dim);
    let mut head_dims = match head {
        // A latent row's window does not depend on a head.
        Head::Latent { .. } => return Ok(vec![0; count]),
        Head::Fixed(default) => vec![given.unwrap_or(default); count],
        Head::Share { hidden, heads } => {
            let head_dim = match given {
                Some(head_dim) => head_dim,
                None => share(config, hidden, heads)?,
            };
            vec![head_dim; count]
        }
        Head::Wider(default, default_full) => {
            let narrow = given.unwrap_or(default);
            let full = config.count("global_head_dim")?.unwrap_or(default_full);
            if config.section("per_layer_config")?.is_some() {
                vec![narrow; count] // which says where it is wider
            } else {
                let wide = |name: &&str| if *name == FULL { full } else { narrow };
                types.iter().map(wide).collect()
            }
        }
    };
    if let Some(overrides) = config.section("per_layer_config")? {
        for key in overrides.keys() {
            let Some(own) = overrides.section(key)?.map(|layer| layer.count("head_dim")) else {
                continue;
            };
            let layer = key.parse().ok().filter(|layer: &usize| *layer < count);
            let Some(layer) = layer else {
                let problem = format!("is not one of {count} layers");
                return Err(overrides.wrong(key, problem));
            };
            if let Some(head_dim) = own? {
                head_dims[layer] = head_dim;
            }
        }
    }
    Ok(head_dims)
}

/// The hidden width shared among the heads.
fn share(config: &Section<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let hidden = config
        .first_count(&["hidden_size", "n_embd", "d_model"])?
        .map_or(hidden, |(_, hidden)| hidden);
    let names = ["num_attention_heads", "n_head", "n_heads"];
    let (key, heads) = config.first_count(&names)?.unwrap_or((names[0], heads));
    if heads == 0 || hidden % heads != 0 {
        let problem = format!("is {heads}, of which a hidden width of {hidden} is not a multiple");
        return Err(config.wrong(key, problem));
    }
    Ok(hidden / heads)
}

fn which(
    config: &Section<'_>,
    model: &ModelType,
    types: &[&str],
    count: usize,
) -> Result<Vec<Which>> {
    let rotates = match model.3.condition {
        Condition::Always => true,
        Condition::NotAlibi => !config.flag("alibi")?.unwrap_or(false),
        Condition::SaysRope => config.text("position_embedding_type")? == Some("rope"),
        // Nothing else tells Baichuan's two sizes from each other.
        Condition::Hidden { rope, alibi } => match config.count("hidden_size")? {
            Some(hidden) if hidden == alibi => false,
            Some(hidden) if hidden != rope => {
                let problem = format!(
                    "is {hidden}: known are {rope}, which rotates, and {alibi}, with alibi"
                );
                return Err(config.wrong("hidden_size", problem));
            }
            _ => true,
        },
    };
    if !rotates {
        return Ok(vec![Which::None; count]);
    }
    let only = |rotates: bool| if rotates { Which::Only } else { Which::None };
    let unknown = |name: &str| {
        let problem = format!(
            "has `{}`, which {} is not known to have",
            short(name),
            model.0
        );
        Err(config.wrong("layer_types", problem))
    };
    let with_types = |turning: &[&str]| {
        let kind = |name: &&str| match *name {
            name if turning.contains(&name) => Ok(Which::Only),
            name if [FULL, SLIDING].contains(&name) || STATES.contains(&name) => Ok(Which::None),
            name => unknown(name),
        };
        types.iter().map(kind).collect()
    };
    match model.3.layers {
        Layers::Alike => Ok(vec![Which::Only; count]),
        Layers::Still => Ok(vec![Which::None; count]),
        Layers::Typed(turning, _) => with_types(turning),
        Layers::SlidingIfAny(_) if types.is_empty() => Ok(vec![Which::Only; count]),
        Layers::SlidingIfAny(_) => with_types(&[SLIDING]),
        Layers::Own(ropes, _) => types
            .iter()
            .map(
                |name| match ropes.iter().find(|own| own.layer_type == *name) {
                    Some(own) => Ok(Which::Own(own)),
                    None if STATES.contains(name) => Ok(Which::None),
                    None => unknown(name),
                },
            )
            .collect(),
        Layers::Flags => {
            let key = "no_rope_layers";
            match config.counts(key)?.filter(|flags| !flags.is_empty()) {
                Some(flags) if flags.len() != count => {
                    let problem = format!("has {} entries for {count} layers", flags.len());
                    Err(config.wrong(key, problem))
                }
                Some(flags) => Ok(flags.iter().map(|flag| only(*flag != 0)).collect()),
                None => {
                    let key = "no_rope_layer_interval";
                    let interval = config.count(key)?.unwrap_or(4);
                    if interval == 0 {
                        return Err(config.wrong(key, "is zero"));
                    }
                    let rotates = |layer: usize| !(layer + 1).is_multiple_of(interval);
                    Ok((0..count).map(|layer| only(rotates(layer))).collect())
                }
            }
        }
        Layers::Thetas { else_alike } => {
            let key = "layer_rope_theta";
            match config.numbers(key)? {
                Some(thetas) if thetas.len() != count => {
                    let problem = format!("has {} entries for {count} layers", thetas.len());
                    Err(config.wrong(key, problem))
                }
                Some(thetas) => Ok(thetas
                    .into_iter()
                    .map(|theta| match theta {
                        0.0 => Which::None,
                        theta => Which::WithTheta(theta),
                    })
                    .collect()),
                None if else_alike => Ok(vec![Which::Only; count]),
                None => Err(config.wrong(key, "is missing, and which layers rotate depends on it")),
            }
        }
        Layers::Cross(default) => {
            let cross = listed(config, "cross_attention_layers", count)?;
            let cross = |layer: usize| match &cross {
                Some(cross) => cross[layer],
                None => default.contains(&layer),
            };
            Ok((0..count).map(|layer| only(!cross(layer))).collect())
        }
    }
}
