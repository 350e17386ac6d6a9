#!/usr/bin/env python3
"""A source file is edited under a Llama of transformers, and its cache with it.

    pip install './python[huggingface]' tokenizers
    python python/examples/edit_llama.py

The model is models/tiny-code-lm of this repository, with all of its layers and with the first alone. After each edit
the next token's distribution is compared with that of the whole file encoded again: with one layer they are equal to
rounding, with several the turned cache comes close, and the stale one does not.
"""

import statistics
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from pie_rope import ModelRope, Plan, Rope
from pie_rope.huggingface import cache_argument, edit_cache, encode_spans

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "examples/live_edit/data/page_pool.rs").read_text().rstrip()

# What a developer does to the file: text to replace, and by what.
EDITS = {
    "insertion": [
        (
            "/// One sequence: the pages",
            "/// The most pages of a pool.\npub const MOST_PAGES: usize = 1 << 20;\n\n/// One sequence: the pages",
        )
    ],
    "deletion": [('            PoolError::Unknown(id) => write!(f, "no sequence with id {}", id),\n', "")],
    "several": [("rows", "tokens"), ("wanted {} pages, {} are free", "{} pages were wanted, {} are free")],
}


def load(layers):
    """The model with its first ``layers`` layers."""
    path = ROOT / "models/tiny-code-lm"
    config = LlamaConfig.from_pretrained(path, num_hidden_layers=layers, dtype="float32")
    return LlamaForCausalLM.from_pretrained(path, config=config, dtype="float32").eval()


@torch.no_grad()
def compare(model, old, new):
    """An edit three ways: turned, with stale keys, and encoded again."""
    torch.manual_seed(0)

    def encoded(tokens):
        cache = DynamicCache()
        model(tokens.unsqueeze(0), use_cache=True, **{cache_argument(model): cache})
        return cache

    def edited():
        cache = encoded(old)
        start = time.perf_counter()
        spans = edit_cache(cache, model, Plan.from_tokens(old, new))
        logits = encode_spans(model, cache, new, spans).logits[0, -1]
        return time.perf_counter() - start, spans, logits

    def encoded_again():
        start = time.perf_counter()
        logits = model(new.unsqueeze(0)).logits[0, -1]
        return time.perf_counter() - start, logits

    # The first ones are for warming up.
    edits, fulls = [edited() for _ in range(4)], [encoded_again() for _ in range(4)]
    edit_time, full_time = (statistics.median(run[0] for run in runs[1:]) for runs in (edits, fulls))
    (_, spans, turned), (_, again) = edits[-1], fulls[-1]

    # As if nothing turned: the same plan, by a rope of which no pair moves.
    plan = Plan.from_tokens(old, new)
    stale_cache = encoded(old)
    still = ModelRope.uniform(Rope.from_inv_freq([0.0]), len(stale_cache.layers))
    edit_cache(stale_cache, still, plan)
    stale = encode_spans(model, stale_cache, new, plan.new_spans).logits[0, -1]

    def divergence(logits):
        """From the whole encoded again, in nats."""
        log = torch.log_softmax
        return torch.nn.functional.kl_div(log(logits, -1), log(again, -1), reduction="sum", log_target=True).item()

    return {
        "spans": len(spans),
        "logits": (turned - again).abs().max().item(),
        "size": again.abs().max().item(),
        "turned": divergence(turned),
        "stale": divergence(stale),
        "speed-up": full_time / edit_time,
    }


def main():
    tokenizer = Tokenizer.from_file(str(ROOT / "models/tiny-code-lm/tokenizer.json"))
    results = {}
    print("layers  edit       spans  logits differ by  of      KL turned   KL stale   speed-up")
    for layers in (1, 6):
        model = load(layers)
        for name, replacements in EDITS.items():
            text = SOURCE
            for before, after in replacements:
                assert before in text
                text = text.replace(before, after)
            old, new = (torch.tensor([0, *tokenizer.encode(t).ids]) for t in (SOURCE, text))
            result = results[layers, name] = compare(model, old, new)
            print(
                f"{layers:6}  {name:9} {result['spans']:6}  {result['logits']:16.2g}  {result['size']:5.1f}"
                f"  {result['turned']:10.2g} {result['stale']:10.2g} {result['speed-up']:8.1f} x"
            )
    return results


if __name__ == "__main__":
    main()
