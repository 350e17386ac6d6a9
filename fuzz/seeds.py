#!/usr/bin/env python3
"""Writes the seeds of the target `config`: published configurations that the library's tests have, and odd ones.

The seeds of the other targets are bytes that no person reads: `scripts/fuzz --seeds` keeps of what a run has found
the least that covers as much.
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PLAIN = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}

# Each was once a fault, or is next to one.
ODD = {
    "wide-and-deep": PLAIN | {"num_hidden_layers": 16384, "head_dim": 65536},
    "many-wide-thetas": PLAIN | {"model_type": "granite_swa", "head_dim": 65536, "layer_rope_theta": [1e4, 2e4]},
    "tiny-theta": PLAIN | {"rope_theta": 1e-300},
    "tiny-factor": PLAIN | {"rope_scaling": {"type": "linear", "factor": 1e-300}},
    "huge-numbers": PLAIN | {"hidden_size": 2**64 - 1, "head_dim": 9e15, "num_hidden_layers": 1e18},
    "dynamic": PLAIN
    | {"max_position_embeddings": 1, "rope_scaling": {"rope_type": "dynamic", "factor": 1e300}},
    "both-forms": PLAIN
    | {
        "rope_theta": 1e4,
        "rope_scaling": {"type": "linear", "factor": 2},
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2},
    },
    "nested": {"model_type": "llava", "text_config": {"model_type": "qwen2_vl_text", "text_config": PLAIN}},
    "no-name": PLAIN | {"model_type": "kolibri1", "": -128},
    "endless-latent": {"model_type": "deepseek_v3", "kv_lora_rank": 2**64 - 1},
    "empty": {},
}


def main() -> None:
    into = HERE / "corpus" / "config"
    into.mkdir(parents=True, exist_ok=True)
    entries = json.loads((HERE / "../tests/configs/frequencies.json").read_text())["entries"]
    seeds = {re.sub("[^a-z0-9.]+", "-", entry["name"].lower()): entry["config"] for entry in entries} | ODD
    for name, config in seeds.items():
        (into / f"{name}.json").write_text(json.dumps(config, separators=(",", ":")))


main()
