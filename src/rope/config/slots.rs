//! How many layers of a cache a model writes: mostly one for each of its own.

use super::layers::MAX_LAYERS;
use super::model_types::{ModelType, Slots};
use super::section::Section;
use crate::Result;

/// The block type that Dory's `layer_types` list after each attention.
pub(super) const MLP: &str = "mlp";

/// The number of layers that differ from one another, and the entry that says it.
pub(super) fn count(config: &Section<'_>, model: &ModelType) -> Result<(&'static str, usize)> {
    let names = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
    let default = (names[0], model.1);
    let given = config.first_count(&names)?;
    let (key, count) = given.unwrap_or(default);
    let (key, count) = match model.3.slots {
        Slots::Each => (key, count),
        Slots::Two => match config.count("num_layers")? {
            // A file that counts caches says twice as much, one that counts layers the same.
            Some(layers) if [layers, layers.saturating_mul(2)].contains(&count) => {
                ("num_layers", layers.saturating_mul(2))
            }
            Some(layers) if given.is_some() => {
                let problem = format!("is {count}, but num_layers is {layers}, of two attentions");
                return Err(config.wrong(key, problem));
            }
            _ => (key, count),
        },
        Slots::Cycles => {
            let high = config.count("H_cycles")?.unwrap_or(2);
            let low = config.count("L_cycles")?.unwrap_or(3);
            let all = |stack: usize| {
                let once = low.saturating_add(1).saturating_mul(high);
                stack.saturating_mul(once)
            };
            match config.count("num_layers_per_stack")? {
                Some(stack) if given.is_some() && all(stack) != count => {
                    let problem = format!("is {count}, but {stack} layers make {}", all(stack));
                    return Err(config.wrong(key, problem));
                }
                stack => (key, all(stack.unwrap_or(count))),
            }
        }
        Slots::Loops => {
            let (_, halve) = halved(config)?;
            (key, halve(count))
        }
    };
    if count == 0 || count > MAX_LAYERS {
        return Err(config.wrong(key, format!("is {count}, not 1 to {MAX_LAYERS}")));
    }
    Ok((key, count))
}

/// Whether Dory's file lists an MLP after each attention, and what that makes of its counts.
fn halved(config: &Section<'_>) -> Result<(bool, impl Fn(usize) -> usize + use<>)> {
    let types = config.texts("layer_types")?.unwrap_or_default();
    let halved = types.contains(&MLP);
    Ok((halved, move |count| if halved { count / 2 } else { count }))
}

/// The layers of the cache, from those of the model.
pub(super) fn expand<T: Copy>(
    config: &Section<'_>,
    model: &ModelType,
    mut layers: Vec<T>,
) -> Result<Vec<T>> {
    if !matches!(model.3.slots, Slots::Loops) {
        return Ok(layers);
    }
    if config.text("recurrent_kv_cache_mode")? == Some("last_loop") {
        return Ok(layers);
    }
    let (_, halve) = halved(config)?;
    let first = halve(config.count("n_input_layers")?.unwrap_or(8));
    let last = halve(config.count("n_output_layers")?.unwrap_or(8));
    let looped = layers.len().checked_sub(first.saturating_add(last));
    let looped = match (config.count("n_recurrent_layers")?.map(&halve), looped) {
        (Some(said), Some(left)) if said != left => None,
        (_, left) => left,
    };
    let Some(looped) = looped else {
        let problem = format!(
            "of {first} before and {last} behind do not make {}",
            layers.len()
        );
        return Err(config.wrong("n_recurrent_layers", problem));
    };
    let key = "n_recurrent_loops";
    let loops = config.count(key)?.unwrap_or(2);
    let all = looped
        .checked_mul(loops.saturating_sub(1))
        .map(|more| layers.len().saturating_add(more));
    if loops == 0 || all.is_none_or(|all| all > MAX_LAYERS) {
        let problem = format!("is {loops}, of {looped} layers; a cache has 1 to {MAX_LAYERS}");
        return Err(config.wrong(key, problem));
    }
    // The first loop writes to the layers themselves, each later one to copies behind all of them.
    layers.extend(layers[first..first + looped].repeat(loops - 1));
    Ok(layers)
}
