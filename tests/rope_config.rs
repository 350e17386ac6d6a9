//! `ModelRope::from_config_json` against Hugging Face transformers.
//!
//! `configs/keys.json` and `configs/frequencies.json` hold what transformers itself does; their
//! generator, `scripts/rope_vectors.py`, says how they came about and names the version.

#![cfg(feature = "config")]

use pie_rope::{Error, ModelRope, Pairing, Rope, Scaling};
use serde_json::{Value, json};

/// The entries of a fixture.
fn entries(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/configs/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    match file["entries"].take() {
        Value::Array(entries) => entries,
        other => panic!("{path}: {other}"),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap())
        .collect()
}

fn read(config: &Value) -> Result<ModelRope, Error> {
    ModelRope::from_config_json(&config.to_string())
}

/// `config` with some entries replaced, added or, by `null`, taken out.
fn with(config: &Value, changes: Value) -> Value {
    let mut config = config.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// The definition: pair `i` turns by `delta · inv_freq[i]`.
fn turned(row: &[f64], rope: &Rope, delta: f64) -> Vec<f64> {
    let mut out = row.to_vec();
    let (start, n) = (rope.offset(), rope.pairs());
    for (i, freq) in rope.inv_freq().iter().enumerate() {
        let (a, b) = match rope.pairing() {
            Pairing::HalfSplit => (start + i, start + i + n),
            Pairing::Interleaved => (start + 2 * i, start + 2 * i + 1),
        };
        let (sin, cos) = (delta * freq).sin_cos();
        out[a] = row[a] * cos - row[b] * sin;
        out[b] = row[a] * sin + row[b] * cos;
    }
    out
}

/// Every model type's own cached keys at two positions differ by what its rope says: pairing,
/// window, frequencies, and which layers have none.
#[test]
fn ropes_turn_the_keys_that_models_cache() {
    const DELTA: f64 = 40.0 - 3.0;
    let entries = entries("keys.json");
    assert!(entries.len() > 130, "{} model types", entries.len());
    let mut worst: f64 = 0.0;
    for entry in &entries {
        let name = entry["config"]["model_type"].as_str().unwrap();
        let model = read(&entry["config"]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (old, new) = (
            entry["old"].as_array().unwrap(),
            entry["new"].as_array().unwrap(),
        );
        assert_eq!(model.layers(), old.len(), "{name}: layers");
        for layer in 0..old.len() {
            if old[layer].is_null() {
                assert_eq!(
                    model.layer(layer),
                    None,
                    "{name}: layer {layer} has no keys"
                );
                continue;
            }
            let (old, new) = (numbers(&old[layer]), numbers(&new[layer]));
            assert_eq!(old.len(), new.len(), "{name}: layer {layer}");
            // Relative to the window that turns: a latent row is mostly something else.
            let window = model.layer(layer).map_or(0..old.len(), Rope::window);
            let norm = old[window].iter().map(|x| x * x).sum::<f64>().sqrt();
            let distance = |a: &[f64]| {
                let squares = a.iter().zip(&new).map(|(a, b)| (a - b) * (a - b));
                squares.sum::<f64>().sqrt() / norm
            };
            let moved = distance(&old);
            match model.layer(layer) {
                None => assert!(moved < 1e-4, "{name}: layer {layer} turns by {moved}"),
                Some(rope) => {
                    // The test would see a rope that does nothing, or the wrong thing.
                    assert!(moved > 0.05, "{name}: layer {layer} hardly turns: {moved}");
                    let off = distance(&turned(&old, rope, DELTA));
                    worst = worst.max(off);
                    // Five digits are stored, and angles of 40 radians at most were taken in f32.
                    assert!(
                        off < 1e-4,
                        "{name}: layer {layer} is off by {off}: {rope:?}"
                    );
                }
            }
        }
    }
    println!("worst distance over norm: {worst:e}");
}

/// A file that leaves out what equals its class's default reads like one that says it.
#[test]
fn defaults_are_those_of_the_classes() {
    for entry in entries("keys.json") {
        let defaults = &entry["defaults"];
        let name = defaults["model_type"].as_str().unwrap();
        let bare = read(&json!({ "model_type": name }));
        let said = read(defaults);
        match (bare, said) {
            (Ok(bare), Ok(said)) => assert_eq!(bare, said, "{name}"),
            // Either depends on an entry that has to be there, and says so.
            (Err(Error::Config { key, .. }), _) => assert!(
                ["rope_parameters", "layer_types", "layer_rope_theta", "partial_rotary_factor"]
                    .contains(&key.as_str())
                    // Some classes share a width among heads that do not divide it and round down,
                    // which no published file relies on; here `head_dim` has to be said.
                    || key == "num_attention_heads"
                        && !defaults["hidden_size"].as_u64().unwrap()
                            .is_multiple_of(defaults["num_attention_heads"].as_u64().unwrap()),
                "{name}: {key}"
            ),
            (bare, said) => panic!("{name}: {bare:?} against {said:?}"),
        }
    }
}

/// Without `layer_types` the layers are those that the class would have listed, or the file is
/// refused.
#[test]
fn missing_layer_types_are_the_classes_pattern() {
    let mut told = 0;
    for entry in entries("keys.json") {
        let config = &entry["config"];
        let name = config["model_type"].as_str().unwrap();
        // Dory's list says how its layers are counted.
        if config["layer_types"].is_null() || name == "dory" {
            continue;
        }
        match read(&with(config, json!({ "layer_types": null }))) {
            Ok(model) => {
                assert_eq!(model, read(config).unwrap(), "{name}");
                told += 1;
            }
            Err(Error::Config { key, .. }) => assert_eq!(key, "layer_types", "{name}"),
            Err(other) => panic!("{name}: {other}"),
        }
    }
    assert!(told > 20, "{told} told");
}

/// An entry that no class has is not read, even one without a name.
#[test]
fn entries_of_no_class_are_not_read() {
    for entry in entries("keys.json") {
        let config = &entry["config"];
        let name = config["model_type"].as_str().unwrap();
        let bare = with(config, json!({ "layer_types": null }));
        for config in [config, &bare] {
            let more = with(config, json!({ "": -128, "of_no_class": -128 }));
            assert_eq!(read(&more), read(config), "{name}");
        }
    }
}

/// Inverse frequencies of published configurations, against those that transformers computed in
/// f32.
///
/// There the exponent `2i / dim` is rounded to f32 before theta is raised to it, which alone makes
/// a relative error of up to `ln(theta) · 2^-25`: 5e-7 for InternLM3's theta of 5e7. The power,
/// the division, and the weights with which llama3 and yarn blend two frequencies add roundings of
/// 6e-8 each. The worst seen is 3.2e-7, under three units in the last place of an f32; the bound is
/// five.
#[test]
fn frequencies_of_published_configurations() {
    let mut worst: f64 = 0.0;
    for entry in entries("frequencies.json") {
        let name = entry["name"].as_str().unwrap();
        let tokens = entry["tokens"].as_u64().unwrap() as usize;
        let model = ModelRope::from_config_json_at(&entry["config"].to_string(), tokens)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let layers = entry["layers"].as_array().unwrap();
        assert_eq!(model.layers(), layers.len(), "{name}: layers");
        for (layer, index) in layers.iter().enumerate() {
            let Some(index) = index.as_u64() else {
                assert_eq!(model.layer(layer), None, "{name}: layer {layer}");
                continue;
            };
            let rope = model.layer(layer).unwrap();
            let want = numbers(&entry["inv_freq"][index as usize]);
            assert_eq!(rope.pairs(), want.len(), "{name}: layer {layer}");
            for (i, (got, want)) in rope.inv_freq().iter().zip(&want).enumerate() {
                if *want == 0.0 {
                    assert_eq!(*got, 0.0, "{name}: layer {layer}, pair {i}");
                    continue;
                }
                let off = (got / want - 1.0).abs();
                worst = worst.max(off);
                assert!(
                    off < 6e-7,
                    "{name}: layer {layer}, pair {i}: {got:e}, {want:e}, off by {off:e}"
                );
            }
        }
    }
    println!("worst relative difference: {worst:e}");
}

const LLAMA3: &str = r#"{
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 32,
    "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"
    }
}"#;

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

/// The published configuration of a model in `frequencies.json`.
fn published(name: &str) -> Value {
    let entry = entries("frequencies.json")
        .into_iter()
        .find(|entry| entry["name"] == name);
    entry.unwrap_or_else(|| panic!("no {name}"))["config"].take()
}

/// `rope_theta` and `rope_scaling`, with either name of the type, against `rope_parameters`.
#[test]
fn both_forms_say_the_same() {
    let older = parsed(LLAMA3);
    let mut scaling = older["rope_scaling"].clone();
    scaling["rope_theta"] = json!(500000.0);
    let newer = with(
        &older,
        json!({ "rope_scaling": null, "rope_theta": null, "rope_parameters": &scaling }),
    );
    assert_eq!(read(&older).unwrap(), read(&newer).unwrap());
    let mut oldest = older.clone();
    oldest["rope_scaling"]["type"] = oldest["rope_scaling"]["rope_type"].take();
    assert_eq!(read(&older).unwrap(), read(&oldest).unwrap());

    // Both at once, for readers of either.
    let both = with(&older, json!({ "rope_parameters": scaling }));
    assert_eq!(read(&older).unwrap(), read(&both).unwrap());
    let mut torn = both;
    torn["rope_parameters"]["factor"] = json!(4.0);
    let refused = read(&torn).unwrap_err().to_string();
    assert!(refused.contains("`rope_scaling`: contradicts"), "{refused}");

    // Keyed by layer type.
    let older = published("Gemma 3 27B");
    let newer = json!({ "model_type": "gemma3", "text_config": with(&older["text_config"], json!({
        "rope_scaling": null,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    })) });
    assert_eq!(read(&older).unwrap(), read(&newer).unwrap());
}

/// Gemma 3's ropes are of different layers, and only the global one is scaled.
#[test]
fn gemma_3_has_two_ropes() {
    let model = read(&published("Gemma 3 27B")).unwrap();
    assert_eq!(model.layers(), 62);
    assert_eq!(model.ropes().len(), 2);
    for layer in 0..62 {
        let first = model.layer(layer).unwrap().inv_freq()[0];
        assert_eq!(
            first,
            if layer % 6 == 5 { 0.125 } else { 1.0 },
            "layer {layer}"
        );
    }
}

/// Llama 4 and SmolLM3: every fourth layer sees no position, or those that a list says.
#[test]
fn layers_without_a_rope() {
    let model = read(&published("Llama 4 Scout")).unwrap();
    for layer in 0..48 {
        assert_eq!(
            model.layer(layer).is_none(),
            layer % 4 == 3,
            "layer {layer}"
        );
    }
    assert_eq!(model.ropes()[0].pairing(), Pairing::Interleaved);
    let smol =
        json!({ "model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [0, 1, 0] });
    let turns: Vec<bool> = {
        let model = read(&smol).unwrap();
        (0..3).map(|layer| model.layer(layer).is_some()).collect()
    };
    assert_eq!(turns, [false, true, false]);
    // ALiBi and Granite's position-free hybrids: no layer turns.
    for config in [
        json!({ "model_type": "falcon", "alibi": true }),
        json!({ "model_type": "granitemoehybrid", "num_hidden_layers": 2,
                "layer_types": ["mamba", "attention"], "position_embedding_type": "nope" }),
    ] {
        assert!(read(&config).unwrap().ropes().is_empty(), "{config}");
    }
    // EXAONE 4 rotates all layers where it has no sliding ones.
    let exaone = read(&json!({ "model_type": "exaone4", "sliding_window": null })).unwrap();
    assert!((0..32).all(|layer| exaone.layer(layer).is_some()));
}

/// The row that an engine caches: 512 latent components, then 64 rotated ones.
#[test]
fn latent_rows_have_their_window_at_the_end() {
    let config = published("DeepSeek-V3");
    let model = read(&config).unwrap();
    assert_eq!((model.layers(), model.ropes().len()), (61, 1));
    assert_eq!(model.ropes()[0].window(), 512..576);
    assert_eq!(model.ropes()[0].pairing(), Pairing::Interleaved);
    let half = read(&with(&config, json!({ "rope_interleave": false }))).unwrap();
    assert_eq!(half.ropes()[0].pairing(), Pairing::HalfSplit);
    assert_eq!(
        read(&with(&config, json!({ "model_type": "kimi_k2" }))).unwrap(),
        model
    );
}

/// Magnitude factors scale a key and its re-rotation alike, so no rope has them.
#[test]
fn magnitudes_have_no_influence() {
    for (name, extra) in [
        (
            "DeepSeek-V3",
            json!({ "mscale": 7.0, "mscale_all_dim": 0.5, "attention_factor": 3.0 }),
        ),
        (
            "gpt-oss 20b",
            json!({ "attention_factor": 1.3465735902799727, "mscale": 2.0 }),
        ),
        ("Olmo 3 7B", json!({ "attention_factor": 9.0 })),
        (
            "Phi-3-mini-128k",
            json!({ "attention_factor": 1.19, "short_mscale": 1.2, "long_mscale": 1.3, "factor": 32.0 }),
        ),
    ] {
        let config = published(name);
        let mut changed = config.clone();
        changed["rope_scaling"] = with(&config["rope_scaling"], extra);
        assert_ne!(config, changed);
        for tokens in [0, 100_000] {
            let read = |config: &Value| ModelRope::from_config_json_at(&config.to_string(), tokens);
            assert_eq!(read(&config).unwrap(), read(&changed).unwrap(), "{name}");
        }
    }
}

/// LongRoPE's switch and dynamic NTK: which sequences see other frequencies.
#[test]
fn frequencies_depend_on_the_length_where_they_should() {
    let at = |config: &Value, tokens| {
        ModelRope::from_config_json_at(&config.to_string(), tokens).unwrap()
    };
    for (name, same, other) in [
        ("Phi-3-mini-128k", 4096, 4097),
        ("InternLM3 8B", 32768, 32769),
    ] {
        let config = published(name);
        assert_eq!(read(&config).unwrap(), at(&config, same), "{name}");
        assert_ne!(read(&config).unwrap(), at(&config, other), "{name}");
    }
    let config = published("Llama-3.1 8B");
    assert_eq!(at(&config, 0), at(&config, 1 << 20));
}

/// The older names of LongRoPE.
#[test]
fn su_is_longrope() {
    let config = published("Phi-3-mini-128k");
    for name in ["su", "yarn"] {
        let mut older = config.clone();
        older["rope_scaling"]["type"] = json!(name);
        assert_eq!(read(&config).unwrap(), read(&older).unwrap(), "{name}");
    }
}

/// Three components of a position that move together are one position.
#[test]
fn m_rope_is_an_ordinary_rope_for_equal_components() {
    let vl = read(&published("Qwen2-VL 7B")).unwrap();
    let text = read(&published("Qwen2.5-Coder 7B")).unwrap();
    assert_eq!(vl, text);
}

/// Types that transformers runs through a model's own code only: nothing measured stands behind
/// them but that code.
#[test]
fn remote_code() {
    // GLM-4 9B chat: half of each head, interleaved, theta stretched by `rope_ratio`.
    let glm = json!({
        "model_type": "chatglm", "num_layers": 40, "hidden_size": 4096, "num_attention_heads": 32,
        "kv_channels": 128, "original_rope": true, "rope_ratio": 500
    });
    let rope = Rope::from_theta(5e6, 64)
        .unwrap()
        .with_pairing(Pairing::Interleaved);
    assert_eq!(read(&glm).unwrap(), ModelRope::uniform(rope.clone(), 40));
    assert_eq!(
        read(&with(&glm, json!({ "original_rope": false }))).unwrap(),
        ModelRope::uniform(rope.with_pairing(Pairing::HalfSplit), 40)
    );
    let same = |name: &str, like: &str| {
        let config = |name: &str| {
            json!({
                "model_type": name, "hidden_size": 2048, "num_hidden_layers": 3,
                "num_attention_heads": 16, "max_position_embeddings": 32768, "rope_theta": 1e6,
                "rope_scaling": {"type": "dynamic", "factor": 2.0}
            })
        };
        assert_eq!(read(&config(name)).unwrap(), read(&config(like)).unwrap());
    };
    for name in [
        "internlm2",
        "deepseek",
        "minicpm",
        "mimo",
        "orion",
        "xverse",
        "bailing_moe",
    ] {
        same(name, "llama");
    }
    let uniform = |rope: Rope, layers| Ok(ModelRope::uniform(rope, layers));
    let plain = |theta, dim| Rope::from_theta(theta, dim).unwrap();

    // Baichuan's 7B rotates, its 13B has ALiBi, and nothing but the width says so.
    let baichuan = |hidden: usize| {
        read(
            &json!({ "model_type": "baichuan", "hidden_size": hidden, "num_attention_heads": hidden / 128 }),
        )
    };
    assert_eq!(baichuan(4096), uniform(plain(1e4, 128), 32));
    assert!(baichuan(5120).unwrap().ropes().is_empty());
    assert!(
        baichuan(2048)
            .unwrap_err()
            .to_string()
            .contains("`hidden_size`: is 2048")
    );

    // Phi-3-small names theta by itself, and its lists as Phi-3's.
    let small = json!({ "model_type": "phi3small", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "rope_embedding_base": 1000000, "rope_position_scale": 1.0 });
    assert_eq!(read(&small), uniform(plain(1e6, 128), 32));
    let scaled = read(&with(&small, json!({ "rope_position_scale": 2.0 })));
    assert!(
        scaled
            .unwrap_err()
            .to_string()
            .contains("`rope_position_scale`: is 2")
    );

    // Ling's second version turns half of each head.
    let ling = json!({ "model_type": "bailing_moe", "hidden_size": 2048, "num_hidden_layers": 20,
        "num_attention_heads": 16, "head_dim": 128, "rope_theta": 600000, "partial_rotary_factor": 0.5 });
    assert_eq!(read(&ling), uniform(plain(6e5, 64), 20));

    let step = json!({ "model_type": "step3_vl", "text_config": { "model_type": "step3_text",
        "hidden_size": 7168, "num_attention_heads": 64, "num_attention_groups": 1, "head_dim": 256,
        "share_q_dim": 2048, "num_hidden_layers": 61, "rope_theta": 500000 } });
    assert_eq!(read(&step), uniform(plain(5e5, 256), 61));

    // InternLM's dynamic rope stands under `rotary`.
    let intern = json!({ "model_type": "internlm", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048,
        "rotary": { "base": 20000, "type": "dynamic" } });
    let at = |config: &Value, tokens| ModelRope::from_config_json_at(&config.to_string(), tokens);
    assert_eq!(at(&intern, 2048), uniform(plain(2e4, 128), 32));
    let dynamic = Scaling::Dynamic {
        factor: 1.0,
        max_position_embeddings: 2048,
    };
    let longer = Rope::from_scaling(2e4, 128, &dynamic, 4096).unwrap();
    assert_eq!(at(&intern, 4096), uniform(longer, 32));
    let origin = with(
        &intern,
        json!({ "rotary": { "base": 1e4, "type": "origin" } }),
    );
    assert_eq!(at(&origin, 4096), uniform(plain(1e4, 128), 32));
    let first = with(&intern, json!({ "rotary": null }));
    assert_eq!(at(&first, 2048), uniform(plain(1e4, 128), 32));
    assert!(
        at(&first, 2049)
            .unwrap_err()
            .to_string()
            .contains("`rotary`: is missing")
    );

    // Qwen's first version, as short as it was trained.
    let qwen = json!({ "model_type": "qwen", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "kv_channels": 128, "rotary_pct": 1.0, "rotary_emb_base": 10000,
        "seq_length": 8192, "use_dynamic_ntk": true });
    assert_eq!(at(&qwen, 8192), uniform(plain(1e4, 128), 32));
    assert!(
        at(&qwen, 8193)
            .unwrap_err()
            .to_string()
            .contains("`use_dynamic_ntk`: is true")
    );
    let plainly = with(&qwen, json!({ "use_dynamic_ntk": false }));
    assert_eq!(at(&plainly, 100_000), uniform(plain(1e4, 128), 32));
}

/// Entries of single model types that no measured configuration shows.
#[test]
fn odd_entries() {
    let refused = |config: Value, key: &str, says: &str| match read(&config) {
        Err(Error::Config {
            key: found,
            problem,
        }) => {
            assert_eq!(found, key, "{config}: {problem}");
            assert!(problem.contains(says), "{problem:?} lacks {says:?}");
        }
        other => panic!("{config}: {other:?}"),
    };
    let layers = |config: Value| read(&config).unwrap().layers();
    // DBRX as published: engines do not agree on which theta counts.
    let dbrx = json!({ "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40,
        "max_seq_len": 32768, "attn_config": { "clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000 } });
    refused(dbrx.clone(), "attn_config.rope_theta", "under both names");
    let said = read(&with(&dbrx, json!({ "rope_theta": 500000 })));
    let rope = Rope::from_theta(5e5, 128).unwrap();
    assert_eq!(said, Ok(ModelRope::uniform(rope, 40)));

    refused(
        json!({ "model_type": "roformer", "rotary_value": true }),
        "rotary_value",
        "values turn",
    );

    // MiniMax-M3: its sparse layers have an indexer, and its window is what the factor says.
    let m3 = json!({ "model_type": "minimax_m3_vl_text", "num_hidden_layers": 2, "rotary_dim": 64,
        "partial_rotary_factor": 0.5, "rope_theta": 5000000 });
    let rope = Rope::from_theta(5e6, 64).unwrap();
    assert_eq!(read(&m3), Ok(ModelRope::uniform(rope, 2)));
    let sparse = json!({ "layer_types": ["full_attention", "minimax_m3_sparse"] });
    refused(with(&m3, sparse), "layer_types", "indexer");
    // Others are refused by their types, and a file that relabels one by what it says.
    for name in [
        "axk2",
        "deepseek_v32",
        "dots3_note_text",
        "glm_moe_dsa",
        "hy_v4",
        "hy_v4_vl_text",
        "mistral_large4_text",
        "step3p5",
    ] {
        refused(json!({ "model_type": name }), "model_type", "indexer");
    }
    let deepseek = published("DeepSeek-V3");
    refused(
        with(&deepseek, json!({ "index_topk": 2048 })),
        "index_topk",
        "indexer",
    );
    assert_eq!(
        read(&with(&deepseek, json!({ "index_topk": 0 }))),
        read(&deepseek)
    );
    for name in [
        "indexed_attention",
        "deepseek_sparse_attention",
        "qwen_sparse_attention",
    ] {
        let types = json!({ "layer_types": ["full_attention", name] });
        refused(with(&deepseek, types), "layer_types", "indexer");
    }
    let minicpm = json!({ "model_type": "minicpm" });
    assert!(read(&minicpm).is_ok());
    refused(
        with(&minicpm, json!({ "sparse_config": { "topk": 64 } })),
        "sparse_config",
        "beside",
    );
    let sparse = json!({ "sparse_attention_config": { "sparse_attention_freq": [0, 1] } });
    refused(
        with(&m3, sparse),
        "sparse_attention_config.sparse_attention_freq",
        "indexer",
    );
    let dim = json!({ "partial_rotary_factor": null });
    refused(with(&m3, dim), "partial_rotary_factor", "missing");

    // Sarvam's first files say yarn by an engine's name.
    let mut sarvam = published("DeepSeek-V3");
    let deepseek = read(&sarvam).unwrap();
    sarvam["model_type"] = json!("sarvam_mla");
    sarvam["rope_scaling"]["type"] = json!("deepseek_yarn");
    assert_eq!(read(&sarvam).unwrap(), deepseek);

    // LongCat counts layers, or their caches.
    let longcat = |more: Value| with(&json!({ "model_type": "longcat_flash" }), more);
    assert_eq!(layers(longcat(json!({ "num_layers": 14 }))), 28);
    assert_eq!(layers(longcat(json!({ "num_hidden_layers": 28 }))), 28);
    for hidden in [14, 28] {
        let both = json!({ "num_layers": 14, "num_hidden_layers": hidden });
        assert_eq!(layers(longcat(both)), 28);
    }
    refused(
        longcat(json!({ "num_layers": 14, "num_hidden_layers": 15 })),
        "num_hidden_layers",
        "two attentions",
    );
    // HRM counts its stack, or all that the cycles make of it.
    let hrm = |more: Value| with(&json!({ "model_type": "hrm_text", "L_cycles": 1 }), more);
    assert_eq!(layers(hrm(json!({}))), 64);
    assert_eq!(layers(hrm(json!({ "num_hidden_layers": 3 }))), 12);
    let both = json!({ "num_hidden_layers": 12, "num_layers_per_stack": 3 });
    assert_eq!(layers(hrm(both)), 12);
    refused(
        hrm(json!({ "num_hidden_layers": 3, "num_layers_per_stack": 3 })),
        "num_hidden_layers",
        "make 12",
    );
    // Dory's loops.
    let dory = |more: Value| with(&json!({ "model_type": "dory" }), more);
    assert_eq!(layers(dory(json!({}))), 36 + 20);
    assert_eq!(layers(dory(json!({ "n_recurrent_loops": 1 }))), 36);
    let last = json!({ "recurrent_kv_cache_mode": "last_loop" });
    assert_eq!(layers(dory(last)), 36);
    refused(
        dory(json!({ "n_input_layers": 40 })),
        "n_recurrent_layers",
        "40 before",
    );
    refused(
        dory(json!({ "n_recurrent_loops": 0 })),
        "n_recurrent_loops",
        "is 0",
    );
    // T5Gemma's decoder stands beside its encoder.
    let t5 = json!({ "model_type": "t5gemma",
        "encoder": { "model_type": "t5_gemma_module", "num_hidden_layers": 9 },
        "decoder": { "model_type": "t5_gemma_module", "num_hidden_layers": 3 } });
    assert_eq!(layers(t5), 3);
}

/// Every complaint names the entry, by its path.
#[test]
fn complaints_name_the_entry() {
    let llama = parsed(LLAMA3);
    let scaling = |changes: Value| {
        let scaling = with(&llama["rope_scaling"], changes);
        with(&llama, json!({ "rope_scaling": scaling }))
    };
    let deepseek = published("DeepSeek-V3");
    let gemma = json!({ "model_type": "gemma3_text", "num_hidden_layers": 2 });
    let phi = published("Phi-3-mini-128k");
    let vl = published("Qwen2-VL 7B");
    for (config, key, says) in [
        (json!([]), "(whole file)", "not a JSON object"),
        (json!({}), "model_type", "missing"),
        (
            json!({ "model_type": "gpt2" }),
            "model_type",
            "`gpt2` adds positions to the hidden states",
        ),
        (
            json!({ "model_type": "nanochat" }),
            "model_type",
            "`nanochat` turns its keys backwards",
        ),
        (json!({ "model_type": 3 }), "model_type", "not a text"),
        (
            json!({ "model_type": "llava", "text_config": { "hidden_size": 64 } }),
            "text_config.model_type",
            "llava_text",
        ),
        (
            json!({ "model_type": "gpt_oss" }),
            "rope_parameters",
            "missing",
        ),
        (
            with(&llama, json!({ "num_hidden_layers": 0 })),
            "num_hidden_layers",
            "0",
        ),
        (
            with(&llama, json!({ "num_hidden_layers": 1e12 })),
            "num_hidden_layers",
            "not 1 to",
        ),
        (
            with(&llama, json!({ "num_hidden_layers": -1 })),
            "num_hidden_layers",
            "whole",
        ),
        (
            with(&llama, json!({ "num_attention_heads": 33 })),
            "num_attention_heads",
            "33",
        ),
        (
            with(&llama, json!({ "num_attention_heads": 0 })),
            "num_attention_heads",
            "0",
        ),
        (with(&llama, json!({ "head_dim": 0 })), "head_dim", "0"),
        (
            with(&llama, json!({ "head_dim": 1e15 })),
            "head_dim",
            "1 to",
        ),
        (
            with(&llama, json!({ "rope_theta": -1.0 })),
            "rope_theta",
            "-1",
        ),
        (
            with(&llama, json!({ "rope_theta": "10k" })),
            "rope_theta",
            "not a number",
        ),
        (
            with(&llama, json!({ "partial_rotary_factor": 0.5 })),
            "partial_rotary_factor",
            "whole head",
        ),
        (
            with(&llama, json!({ "rotary_dim": 64 })),
            "rotary_dim",
            "64",
        ),
        (
            with(&llama, json!({ "rope_scaling": 4.0 })),
            "rope_scaling",
            "not an object",
        ),
        (
            with(
                &llama,
                json!({ "rope_scaling": null, "rope_parameters": {
                "full_attention": {"rope_type": "default"} } }),
            ),
            "rope_parameters",
            "one rope",
        ),
        (
            scaling(json!({ "rope_type": "warp" })),
            "rope_scaling.rope_type",
            "`warp`",
        ),
        (
            scaling(json!({ "rope_type": "axial" })),
            "rope_scaling.rope_type",
            "two-dimensional",
        ),
        (
            scaling(json!({ "type": "yarn" })),
            "rope_scaling.type",
            "llama3",
        ),
        (
            scaling(json!({ "rope_type": null })),
            "rope_scaling.rope_type",
            "missing",
        ),
        (
            scaling(json!({ "factor": null })),
            "rope_scaling.factor",
            "missing",
        ),
        (
            scaling(json!({ "factor": 0 })),
            "rope_scaling.factor",
            "positive",
        ),
        (
            scaling(json!({ "factor": 1e-320 })),
            "rope_scaling.factor",
            "inf radians",
        ),
        (
            scaling(json!({ "high_freq_factor": 0.5 })),
            "rope_scaling.high_freq_factor",
            "below",
        ),
        (
            scaling(json!({ "rope_type": "dynamic", "alpha": 1000.0 })),
            "rope_scaling.alpha",
            "Hunyuan",
        ),
        (
            with(
                &scaling(json!({ "rope_type": "dynamic" })),
                json!({ "max_position_embeddings": null }),
            ),
            "max_position_embeddings",
            "missing",
        ),
        (
            with(&phi, json!({ "partial_rotary_factor": 0.5 })),
            "rope_scaling.short_factor",
            "48 entries for 24 pairs",
        ),
        (
            with(&phi, json!({ "partial_rotary_factor": 1.5 })),
            "partial_rotary_factor",
            "at most 1",
        ),
        (
            with(&deepseek, json!({ "qk_rope_head_dim": 0 })),
            "qk_rope_head_dim",
            "0",
        ),
        (
            with(&deepseek, json!({ "partial_rotary_factor": 0.7 })),
            "partial_rotary_factor",
            "qk_rope_head_dim 64",
        ),
        (
            with(&deepseek, json!({ "use_mla": false })),
            "use_mla",
            "false",
        ),
        (
            with(&gemma, json!({ "layer_types": ["full_attention"] })),
            "layer_types",
            "1 entries",
        ),
        (
            with(
                &gemma,
                json!({ "layer_types": ["full_attention", "spiral"] }),
            ),
            "layer_types",
            "`spiral`",
        ),
        (
            with(&gemma, json!({ "sliding_window_pattern": 0 })),
            "sliding_window_pattern",
            "zero",
        ),
        (
            with(
                &gemma,
                json!({ "rope_parameters": { "rope_type": "default" } }),
            ),
            "rope_parameters",
            "several ropes",
        ),
        (
            with(
                &vl,
                json!({ "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 23] } }),
            ),
            "rope_scaling.mrope_section",
            "63 pairs, but 64",
        ),
        (
            json!({ "model_type": "gemma4", "text_config": {
                "model_type": "gemma4_text", "num_hidden_layers": 1,
                "rope_parameters": { "full_attention": { "rope_type": "linear" },
                                     "sliding_attention": { "rope_theta": 1e4 } } } }),
            "text_config.rope_parameters.full_attention.rope_theta",
            "missing",
        ),
        (
            json!({ "model_type": "llama4_text", "no_rope_layers": [1, 0] }),
            "no_rope_layers",
            "2 entries for 48",
        ),
        (
            json!({ "model_type": "mllama_text_model", "cross_attention_layers": [40] }),
            "cross_attention_layers",
            "layer 40 of 40",
        ),
    ] {
        match read(&config) {
            Err(Error::Config {
                key: found,
                problem,
            }) => {
                assert_eq!(found, key, "{config}: {problem}");
                assert!(
                    problem.contains(says),
                    "{config}: {problem:?} lacks {says:?}"
                );
            }
            other => panic!("{config}: {other:?}"),
        }
    }
    let error = ModelRope::from_config_json("{").unwrap_err();
    assert!(matches!(error, Error::Config { key, .. } if key == "(whole file)"));
}

/// A frequency that is finite and still too fast for any angle to be computed is refused by the
/// entry that makes it so.
#[test]
fn too_fast_to_compute() {
    let llama = json!({ "model_type": "llama", "num_hidden_layers": 1 });
    let scaled = |scaling: Value| with(&llama, json!({ "rope_scaling": scaling }));
    let tiny = 1e-300;
    for (config, key) in [
        (with(&llama, json!({ "rope_theta": tiny })), "rope_theta"),
        (
            with(&llama, json!({ "rope_parameters": { "rope_theta": tiny } })),
            "rope_parameters.rope_theta",
        ),
        (
            json!({ "model_type": "gpt_neox", "rotary_emb_base": tiny }),
            "rotary_emb_base",
        ),
        (
            json!({ "model_type": "phi3small", "rope_embedding_base": tiny }),
            "rope_embedding_base",
        ),
        (
            json!({ "model_type": "gemma3_text", "rope_local_base_freq": tiny }),
            "rope_local_base_freq",
        ),
        (
            json!({ "model_type": "granite_swa", "num_hidden_layers": 2,
                    "layer_rope_theta": [1e4, tiny] }),
            "layer_rope_theta",
        ),
        (
            scaled(json!({ "type": "linear", "factor": tiny })),
            "rope_scaling.factor",
        ),
        (
            scaled(json!({ "type": "yarn", "factor": tiny,
                           "original_max_position_embeddings": 4096 })),
            "rope_scaling.factor",
        ),
        (
            scaled(json!({ "type": "longrope", "short_factor": vec![1.0; 64],
                           "long_factor": vec![tiny; 64],
                           "original_max_position_embeddings": 4096 })),
            "rope_scaling.long_factor",
        ),
    ] {
        match read(&config) {
            Err(Error::Config {
                key: found,
                problem,
            }) => {
                assert_eq!(found, key, "{config}: {problem}");
                assert!(problem.contains("radians per position"), "{problem}");
            }
            other => panic!("{config}: {other:?}"),
        }
    }
    // Slow is fine, and so is a theta below one that is not absurd.
    for theta in [1e300, 1e-3] {
        let model = read(&with(&llama, json!({ "rope_theta": theta }))).unwrap();
        let inv_freq = model.ropes()[0].inv_freq();
        let sane = 0.0..=Rope::MAX_INV_FREQ;
        assert!(
            inv_freq.iter().all(|f| sane.contains(f)),
            "{theta}: {inv_freq:?}"
        );
    }
}

/// What half of a head would be, in a file of a model whose heads turn as a whole: its own code
/// looks at the entry under a scaling only, where it then does not run.
#[test]
fn partial_rotary_factors_are_read_as_the_classes_read_them() {
    let mut same = 0;
    for entry in entries("keys.json") {
        let (config, half) = (&entry["config"], entry["half"].as_str());
        let name = config["model_type"].as_str().unwrap();
        if half.is_none() || config["kv_lora_rank"].is_u64() {
            continue;
        }
        let mut halved = config.clone();
        let given = halved["rope_parameters"].as_object_mut().unwrap();
        if given.values().any(Value::is_object) {
            for rope in given.values_mut().filter(|rope| rope.is_object()) {
                rope["partial_rotary_factor"] = json!(0.5);
            }
        } else {
            given.insert("partial_rotary_factor".into(), json!(0.5));
        }
        match half.unwrap() {
            "same" => {
                assert_eq!(read(&halved).unwrap(), read(config).unwrap(), "{name}");
                same += 1;
            }
            "fails" => {
                // Two classes read the entry and then do not run by it.
                let read_half = ["mellum", "solar_open"].contains(&name);
                assert!(read_half || read(&halved).is_err(), "{name}");
            }
            "other" => assert_ne!(read(&halved).ok(), read(config).ok(), "{name}"),
            half => panic!("{name}: {half}"),
        }
    }
    assert!(same > 70, "{same}");
    // A whole head under a scaling is no contradiction.
    let llama = with(&parsed(LLAMA3), json!({ "partial_rotary_factor": 1.0 }));
    assert_eq!(read(&llama).unwrap(), read(&parsed(LLAMA3)).unwrap());
}

/// Every causal language model of transformers is known, or refused for a reason that names itself.
#[test]
fn no_causal_model_of_transformers_is_unheard_of() {
    let path = format!("{}/tests/configs/keys.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let names = file["causal"].as_array().unwrap();
    assert!(names.len() > 150, "{}", names.len());
    for name in names {
        if let Err(Error::Config { problem, .. }) = read(&json!({ "model_type": name })) {
            assert!(!problem.contains("not a model type"), "{problem}");
        }
    }
}

/// Whatever stands in an entry, the answer is a rope or a complaint about the file: no panic, no
/// other error, no absurd allocation.
#[test]
fn damaged_files_are_refused_or_read() {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(1e-320),
        json!(0.3),
        json!(1e18),
        json!(u64::MAX),
        json!(1e308),
        json!(""),
        json!("yarn"),
        json!([]),
        json!([1, 2]),
        json!(["full_attention"]),
        json!({}),
        json!({ "factor": 2 }),
    ];
    let mut configs: Vec<Value> = entries("frequencies.json")
        .iter()
        .chain(&entries("keys.json"))
        .map(|entry| entry["config"].clone())
        .collect();
    // One rope type after the other on the same model.
    for kind in [
        "linear",
        "dynamic",
        "yarn",
        "longrope",
        "proportional",
        "default",
    ] {
        let mut config = parsed(LLAMA3);
        config["rope_scaling"]["rope_type"] = json!(kind);
        config["rope_scaling"]["short_factor"] = json!(vec![1.0; 64]);
        config["rope_scaling"]["long_factor"] = json!(vec![2.0; 64]);
        assert!(read(&config).is_ok(), "{config}");
        configs.push(config);
    }
    let (mut tried, mut refused) = (0, 0);
    for config in &configs {
        for path in paths(config, String::new()) {
            for value in &odd {
                let mut damaged = config.clone();
                *damaged.pointer_mut(&path).unwrap() = value.clone();
                for tokens in [0, usize::MAX] {
                    tried += 1;
                    match ModelRope::from_config_json_at(&damaged.to_string(), tokens) {
                        Ok(model) => assert!(model.layers() > 0),
                        Err(Error::Config { .. }) => refused += 1,
                        Err(other) => panic!("{path} = {value}: {other}"),
                    }
                }
            }
        }
    }
    println!("{tried} tried, {refused} refused");
    assert!(refused > tried / 4 && refused < tried);
}

/// JSON pointers to every entry of an object, at any depth; not into lists.
fn paths(value: &Value, at: String) -> Vec<String> {
    let mut all = vec![];
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{at}/{key}");
        all.extend(paths(value, path.clone()));
        all.push(path);
    }
    all
}

/// What a factor is given for need not be there, nor right.
#[test]
fn a_yarn_without_a_factor_is_named_by_it() {
    let mut config = json!({
        "model_type": "llama", "num_hidden_layers": 2, "head_dim": 64, "rope_theta": 1e4,
        "rope_scaling": { "rope_type": "yarn", "original_max_position_embeddings": 2048, "factor": 4.0 },
    });
    let read = |config: &Value| ModelRope::from_config_json(&config.to_string());
    let four = read(&config).unwrap();
    config["max_position_embeddings"] = json!(0);
    assert_eq!(read(&config).unwrap(), four);
    config["rope_scaling"]
        .as_object_mut()
        .unwrap()
        .remove("factor");
    let text = read(&config).unwrap_err().to_string();
    assert!(
        text.contains("max_position_embeddings") && text.contains("is zero"),
        "{text}"
    );
    config["max_position_embeddings"] = json!(8192);
    assert_eq!(read(&config).unwrap(), four);
    config
        .as_object_mut()
        .unwrap()
        .remove("max_position_embeddings");
    let text = read(&config).unwrap_err().to_string();
    assert!(
        text.contains("rope_scaling.factor") && text.contains("is missing"),
        "{text}"
    );
}
