//! Any text as a model's `config.json`: it is refused, or it is a rope that can be computed with. Either way, the
//! work is in proportion to the text, not to the numbers in it.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use pie_rope::{Error, ModelRope, Plan, Rotations};
use pie_rope_fuzz::{Limits, Noise, Source, watch};
use serde_json::{Map, Value, json};

/// A model that is published takes 100 KiB and 0.2 ms. The most that any text may ask for is 1024 layers with a rope
/// of 2048 pairs each: 16 MiB, in small allocations.
const LIMITS: Limits = Limits {
    memory: 12 << 20,
    time: Duration::from_secs(2),
};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else {
        return Corpus::Reject;
    };
    // Short, past most original lengths, and past anything.
    for tokens in [0, 100_000, usize::MAX] {
        let read = || ModelRope::from_config_json_at(text, tokens);
        match watch("from_config_json_at", LIMITS, read) {
            Ok(model) => check(&model),
            Err(Error::Config { key, problem }) => {
                assert!(
                    !key.is_empty() && !problem.is_empty(),
                    "{key:?}: {problem:?}"
                );
                // What a text says is shown cut short.
                assert!(problem.len() < 1000, "{problem}");
            }
            Err(other) => panic!("an error that is not a config's: {other}"),
        }
    }
    Corpus::Keep
});

/// What every model's rope is.
fn check(model: &ModelRope) {
    assert!(model.layers() > 0);
    let mut used = vec![false; model.ropes().len()];
    for layer in 0..model.layers() {
        let index = model.rope_index(layer);
        assert_eq!(model.layer(layer), index.map(|index| &model.ropes()[index]));
        if let Some(index) = index {
            used[index] = true;
        }
    }
    assert!(used.iter().all(|used| *used), "a rope of no layer");
    for (index, rope) in model.ropes().iter().enumerate() {
        assert!(
            !model.ropes()[..index].contains(rope),
            "a rope is there twice"
        );
        assert!(rope.pairs() > 0 && rope.inv_freq().len() == rope.pairs());
        assert_eq!(rope.window().len(), 2 * rope.pairs());
        for frequency in rope.inv_freq() {
            assert!(frequency.is_finite() && *frequency >= 0.0, "{frequency}");
        }
    }
    // Computed with: as near and as far as there are positions.
    let plan =
        Plan::from_positions(&[0, 7, i32::MAX, 1000], &[1, 7, 0, i32::MAX]).expect("positions");
    let of = || Rotations::for_model(&plan, model);
    let rotations = watch("for_model", LIMITS, of).expect("three deltas");
    assert_eq!(rotations.layers(), Some(model.layers()));
    for table in rotations.tables() {
        assert_eq!(table.rows(), 3);
        for number in table.as_slice() {
            assert!((-1.0..=1.0).contains(number), "{number} in a table");
        }
    }
}

/// The configurations that the library's tests hold to Hugging Face transformers, and their parts by name.
struct Known {
    configs: Vec<Value>,
    entries: Vec<(String, Value)>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let files = [
        include_str!("../../tests/configs/keys.json"),
        include_str!("../../tests/configs/frequencies.json"),
    ];
    let mut configs = Vec::new();
    for file in files {
        let file: Value = serde_json::from_str(file).expect("JSON");
        let entries = file["entries"].as_array().expect("a list").iter();
        configs.extend(entries.map(|entry| entry["config"].clone()));
    }
    let mut entries = Vec::new();
    for config in &configs {
        gather(config, &mut entries);
    }
    Known { configs, entries }
});

fn gather(value: &Value, into: &mut Vec<(String, Value)>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        into.push((key.clone(), value.clone()));
        gather(value, into);
    }
}

// Bytes alone seldom come to a configuration: most mutations are of what the text says.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut noise = Source::new(&seed.to_be_bytes()).noise();
    let parsed = serde_json::from_slice::<Map<String, Value>>(&data[..size]);
    let mut value = match parsed {
        _ if noise.below(8) == 0 => return fuzzer_mutate(data, size, max_size),
        Ok(object) => Value::Object(object),
        Err(_) => KNOWN.configs[noise.below(KNOWN.configs.len())].clone(),
    };
    for _ in 0..=noise.below(3) {
        mutate(&mut value, &mut noise);
    }
    let text = value.to_string();
    if text.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..text.len()].copy_from_slice(text.as_bytes());
    text.len()
});

/// One change somewhere inside.
fn mutate(value: &mut Value, noise: &mut Noise) {
    let known = |noise: &mut Noise| KNOWN.entries[noise.below(KNOWN.entries.len())].clone();
    match value {
        Value::Object(object) if !object.is_empty() && noise.below(4) > 0 => {
            let at = noise.below(object.len());
            let key = object.keys().nth(at).expect("one of so many").clone();
            match noise.below(8) {
                0 => {
                    object.remove(&key);
                }
                // The same under another name.
                1 => {
                    let value = object.remove(&key).expect("it is there");
                    object.insert(known(noise).0, value);
                }
                // As another configuration has it.
                2 => {
                    let same = KNOWN.entries.iter().filter(|(name, _)| *name == key);
                    let same: Vec<_> = same.collect();
                    if !same.is_empty() {
                        object.insert(key, same[noise.below(same.len())].1.clone());
                    }
                }
                _ => mutate(&mut object[&key], noise),
            }
        }
        Value::Object(object) => {
            let (key, value) = known(noise);
            object.insert(key, value);
        }
        Value::Array(list) if !list.is_empty() && noise.below(3) > 0 => {
            let at = noise.below(list.len());
            match noise.below(4) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, list[at].clone()),
                _ => mutate(&mut list[at], noise),
            }
        }
        Value::Number(number) if noise.below(4) > 0 => {
            let n = number.as_f64().unwrap_or(0.0);
            *value = match noise.below(6) {
                0 => json!(n + 1.0),
                1 => json!(-n),
                2 => json!(n * 2.0),
                3 => json!((n / 2.0).floor()),
                4 => json!(n as i32),
                _ => any_number(noise),
            };
        }
        Value::String(text) if noise.below(2) > 0 => {
            let texts: Vec<_> = KNOWN
                .entries
                .iter()
                .filter_map(|(_, value)| value.as_str())
                .collect();
            *text = texts[noise.below(texts.len())].to_owned();
        }
        _ => {
            *value = match noise.below(7) {
                0 => Value::Null,
                1 => json!(noise.below(2) == 0),
                2 => json!([]),
                3 => json!({}),
                4 => json!(vec![any_number(noise); noise.below(40)]),
                5 => known(noise).1,
                _ => any_number(noise),
            }
        }
    }
}

fn any_number(noise: &mut Noise) -> Value {
    let bytes = [noise.bits(), noise.bits()].map(u64::to_be_bytes).concat();
    let mut source = Source::new(&bytes);
    match noise.below(3) {
        0 => json!(source.double()), // null, where it is no number
        1 => json!(source.wild()),
        _ => {
            let bits = 1 + noise.below(17);
            json!(noise.below(1 << bits))
        }
    }
}
