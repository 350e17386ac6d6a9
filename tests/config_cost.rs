//! What it takes to read a `config.json` is in proportion to its text and to the ropes that come of
//! it, whatever numbers it holds.

#![cfg(feature = "config")]

mod counting;

use counting::taken;
use pie_rope::{Error, ModelRope, Rope};
use serde_json::{Value, json};

/// Reads a text, and holds what that took to its length and to the ropes.
fn read(name: &str, text: &str) -> Result<ModelRope, Error> {
    let (read, taken) = taken(|| ModelRope::from_config_json(text));
    let (peak, total) = (taken.peak, taken.bytes);
    let ropes = read.as_ref().map_or(0, |model| {
        let pairs = model.ropes().iter().map(Rope::pairs);
        pairs.sum::<usize>() * size_of::<f64>()
    });
    let may = |text_times: usize, ropes_times: usize| {
        (1 << 18) + text_times * text.len() + ropes_times * ropes
    };
    println!(
        "{name}: {peak} bytes at once, {total} in all, of {} of text and {ropes} of ropes",
        text.len()
    );
    // A number of two characters is 32 bytes as JSON, and its list is twice as long for growing.
    assert!(peak <= may(150, 2), "{name}: {peak} bytes at once");
    assert!(total <= may(300, 4), "{name}: {total} bytes in all");
    if let Err(error) = &read {
        assert!(error.to_string().len() < 600, "{name}: {error}");
    }
    read
}

/// As `read`, of what must not be read. (A model would be far too long to show.)
fn refused(name: &str, text: &str) -> Error {
    match read(name, text) {
        Err(error) => error,
        Ok(_) => panic!("{name} was read"),
    }
}

#[test]
fn the_numbers_of_a_file_cost_nothing_by_themselves() {
    let llama = |more: Value| {
        let mut config = json!({ "model_type": "llama", "hidden_size": 4096,
                                 "num_attention_heads": 32, "rope_theta": 10000.0 });
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        config.to_string()
    };
    // 130 bytes that asked for a gigabyte once for each form of a rope.
    let absurd = json!({ "num_hidden_layers": 16384, "head_dim": 65536 });
    refused("absurd", &llama(absurd));
    for key in ["num_hidden_layers", "head_dim"] {
        for number in [json!(16384), json!(65536), json!(u64::MAX), json!(1e308)] {
            let error = refused(key, &llama(json!({ key: number })));
            assert!(error.to_string().contains(key), "{error}");
        }
    }
    let most = json!({ "num_hidden_layers": 1024, "head_dim": 4096 });
    let most = read("most", &llama(most)).unwrap();
    assert_eq!((most.layers(), most.ropes().len()), (1024, 1));
    for (model, more) in [
        ("dory", json!({ "n_recurrent_loops": u64::MAX })),
        (
            "dory",
            json!({ "n_recurrent_layers": u64::MAX, "n_input_layers": u64::MAX }),
        ),
        (
            "hrm_text",
            json!({ "H_cycles": u64::MAX, "L_cycles": u64::MAX }),
        ),
        ("longcat_flash", json!({ "num_layers": u64::MAX })),
        (
            "gemma3_text",
            json!({ "num_hidden_layers": 1024, "sliding_window_pattern": u64::MAX }),
        ),
        (
            "gptj",
            json!({ "rotary_dim": u64::MAX, "n_embd": u64::MAX, "n_head": 1 }),
        ),
        (
            "deepseek_v3",
            json!({ "kv_lora_rank": u64::MAX, "qk_rope_head_dim": u64::MAX }),
        ),
    ] {
        let mut config = more;
        config["model_type"] = json!(model);
        let _ = read(model, &config.to_string());
    }
}

/// As many ropes as there may be are the sum of themselves.
#[test]
fn layers_with_thetas_of_their_own() {
    let swa = |layers: usize, more: Value| {
        let thetas: Vec<f64> = (0..layers).map(|layer| 1e4 + layer as f64).collect();
        let mut config = json!({ "model_type": "granite_swa", "num_hidden_layers": layers,
                                 "head_dim": 4096, "layer_rope_theta": thetas });
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        config.to_string()
    };
    let all = read("thetas", &swa(1024, json!({}))).unwrap();
    assert_eq!(all.ropes().len(), 1024);
    refused("too many thetas", &swa(16384, json!({})));

    // What they have in common is not read again for each.
    let many: Vec<(String, Value)> = (0..100_000).map(|n| (format!("k{n}"), json!(0))).collect();
    let mut scaling = json!({ "rope_type": "default" });
    scaling.as_object_mut().unwrap().extend(many);
    let common = swa(1024, json!({ "head_dim": 8, "rope_scaling": scaling }));
    assert_eq!(read("common entries", &common).unwrap().ropes().len(), 1024);
    let sections = [vec![2048], vec![0; 500_000]].concat();
    let sections = json!({ "rope_type": "default", "mrope_section": sections });
    refused("sections", &swa(1024, json!({ "rope_scaling": sections })));
}

#[test]
fn deep_long_and_wordy_files() {
    let mut nested = json!({ "model_type": "llama" });
    for _ in 0..60 {
        nested = json!({ "text_config": nested, "model_type": "llava" });
    }
    refused("nested", &nested.to_string());
    refused("brackets", &"[".repeat(1 << 20));

    let zeros = vec![0; 1 << 19];
    let ones = vec![1.0; 1 << 19];
    let words = vec!["full_attention"; 1 << 16];
    let word = "é".repeat(1 << 19);
    let layers = 1024;
    let mut overrides = json!({});
    for n in 0..10_000 {
        overrides[format!("{n:0>100}")] = json!({ "head_dim": 8 });
    }
    for (name, config) in [
        (
            "lfm2",
            json!({ "full_attn_idxs": zeros, "num_hidden_layers": layers }),
        ),
        (
            "mllama_text_model",
            json!({ "cross_attention_layers": zeros }),
        ),
        ("llama4_text", json!({ "no_rope_layers": zeros })),
        ("granite_swa", json!({ "layer_rope_theta": ones })),
        ("gemma3_text", json!({ "layer_types": words })),
        (
            "gemma3_text",
            json!({ "layer_types": [word], "num_hidden_layers": 1 }),
        ),
        ("gemma4_text", json!({ "per_layer_config": overrides })),
        (
            "gemma4_text",
            json!({ "per_layer_config": { &word: { "head_dim": 8 } } }),
        ),
        (
            "llama",
            json!({ "rope_scaling": { "type": "longrope", "short_factor": ones,
                                      "long_factor": ones, "original_max_position_embeddings": 1 } }),
        ),
        ("llama", json!({ "rope_scaling": { "type": word } })),
        ("llama", json!({ "rope_scaling": word })),
        ("llama", json!({ "head_dim": word })),
        ("llama", json!({ "rope_theta": zeros })),
        ("llama", json!({ "architectures": words, "id2label": word })),
        (&word, json!({})),
    ] {
        let mut config = config;
        config["model_type"] = json!(name);
        let name: String = name.chars().take(20).collect();
        let _ = read(&name, &config.to_string());
    }
    for whole in [json!(word), json!(zeros), json!(1.5)] {
        refused("no object", &whole.to_string());
    }
}
