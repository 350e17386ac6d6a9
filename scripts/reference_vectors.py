#!/usr/bin/env python3
"""Writes tests/vectors/*.txt: keys that Hugging Face transformers itself caches before and after an edit.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0
    venv/bin/python scripts/reference_vectors.py            # writes all files anew
    venv/bin/python scripts/reference_vectors.py --check    # writes nothing; fails where they would differ

On one machine it writes the same bytes every time. On another, torch may sum what precedes the rotation in another
order; --check then says by how much keys differ, and fails beyond what that explains.

Every file is one model with its published rope. A copy of the model, narrowed to one head and to the first layers
but with everything that its ropes depend on, gets random weights, encodes some tokens at their old positions, then
the same tokens at their new ones, and what it has cached is written down. Each token is a sequence of its own: it
attends to itself alone, so that its hidden states are the same both times (which is checked), and the two keys
differ by the rotation and nothing else. Thus the model's own rotary module, its own way to apply it, its norms and
its order of components are in the keys: what turns the first key must give the second.

A file is text, a keyword at the start of each line:

    pie-rope reference keys, by scripts/reference_vectors.py
    from transformers 5.24.0, torch 2.15.0
    name Gemma 3 27B
    config {"model_type": "gemma3", ...}    the config.json in one line, as far as ropes depend on it
    tokens 131072 130904                    the sequence's length before and after: LongRoPE and dynamic NTK ask
    element f32                             what is cached: f32, f16 or bf16
    layer 0 128 half-split 0                what follows are keys of layer 0: their width, pairing and window's start
    key 32768 32771 3f80... 3f7f...         old position, new position, old key, new key
    ...
    layer 5 128 half-split 0
    ...

The pairing is measured (a pair keeps its magnitude when it turns), `none` for a layer whose keys do not turn. A key
is its components' bits in hexadecimal, 8 digits each for f32 and 4 for the others, the most significant first, without
a space between them. Where transformers caches the rotated part of a latent row as two halves, they are interleaved
again: that is the order of the checkpoint, in which other engines cache it, and the one that
`ModelRope::from_config_json` describes.

How far a turned key may be from the new one, for a pair of components of magnitude r (the larger one of both keys'),
in units in the last place of the cached type at r. `unit` is one of f32 in units of that type: 1, 2^-13 for f16,
2^-16 for bf16; f is the pair's inverse frequency, with the old and the new length of the sequence.

- transformers' angle is one f32 product of the position and an f32 frequency. The product is off by 2^-24 of itself;
  the frequency by 6e-7 of itself (tests/rope_config.rs: a sum of rounded steps), which is F = 6e-7 * 2^24 = 10.1 in
  such parts and common to both keys as long as the frequency is. An angle that is off by x moves a pair by x * r, and
  r is less than 2^24 units of f32. Together:

      angle = unit * (f_old * old + f_new * new + F * |f_new * new - f_old * old|)

  and, where f_old is not f_new, F * (f_old * old + f_new * new) in place of the last term.
- One encoding, besides: cosine and sine in f32, each off by 2^-24 at most (one unit below 1), times |a| + |b|, which
  is sqrt(2) * r at most: sqrt(2) units of f32. Times the magnitude factor: 1. In f16 and bf16 both are then rounded
  to that type, half a unit of each, and |a cos| + |b sin| is at most r: 1/2. Two products, rounded: 1. Their sum: 1/2.

      encoding = (sqrt(2) + 1) * unit + 1.5    (+ 0.5 where the type is not f32)

  The old key's error is turned with it, and each component is then off by sqrt(2) times as much at most.
- The turn itself: own = 1.708 in f32, 0.5003 in f16, 0.5001 in bf16 (tests/conformance/check.rs).

      allowed = angle + (1 + sqrt(2)) * encoding + own

Where nothing turns (a layer without a rope, components outside of the window, a position and frequencies that stay)
the bits are the same.
"""

import argparse
import copy
import json
import pathlib
import sys

import numpy as np
import rope_vectors  # sets transformers up
import torch
import transformers
from rope_vectors import DEINTERLEAVED, PUBLISHED, language_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

INTO = pathlib.Path(__file__).resolve().parent.parent / "tests" / "vectors"

# What a narrow copy has in place of the model's own numbers. No rope depends on any of these.
NARROW = dict(
    vocab_size=64, intermediate_size=32, intermediate_size_mlp=32, moe_intermediate_size=32,
    num_attention_heads=1, num_key_value_heads=1, num_global_key_value_heads=1, num_experts=2, num_local_experts=2,
    n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, q_lora_rank=16, qk_nope_head_dim=16,
    v_head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=64,
)  # fmt: skip

# Lists with an entry for each layer.
BY_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def several(tokens):
    """Insertion, deletion and replacement in a sequence of so many tokens: (start, end, inserted) of each."""
    eighth = tokens // 8
    return [(eighth, eighth, 3), (3 * eighth, 3 * eighth + 200, 0), (6 * eighth, 6 * eighth + 12, 41)]


def case(name, tokens, edits=None, element="f32", layers=(0,), slug=None, rows=None, window=None):
    """Keys of one model before and after edits to a sequence of so many tokens.

    Rows: one after each of three edits, the last token among them; or as given. Window: whole heads, or as given."""
    return dict(
        name=name,
        slug=(slug or name).lower().replace(" ", "-").replace(",", ""),
        config=(PUBLISHED | MORE)[name][0],
        tokens=tokens,
        edits=several(tokens) if edits is None else edits,
        element=element,
        layers=layers,
        rows=rows or [tokens // 4, tokens // 2, tokens - 1],
        window=window,
    )


# Pairs of neighbours in whole heads: Command R's class says it all by its defaults.
MORE = {"Cohere": (dict(model_type="cohere"), 1)}
GROWS = [(1000, 1000, 300)]  # past Phi-3's 4096 tokens
SHRINKS = [(1000, 1300, 0)]

CASES = [
    case("DeepSeek-Coder 6.7B", 16384),
    case("Llama-3.1 8B", 131072),
    case("Llama-3.1 8B", 131072, element="bf16", slug="Llama-3.1 8B bf16"),
    case("Qwen2.5-Coder 0.5B", 32768),
    case("Qwen2.5-Coder 0.5B", 32768, element="f16", slug="Qwen2.5-Coder 0.5B f16"),
    # The first row stays where it is.
    case("Qwen2.5-Coder 7B", 32768, rows=[7, 32768 // 2, 32767]),
    case("Qwen2.5-Coder 7B, yarn", 131072),
    case("DeepSeek-V3", 163840, window=(512, 576)),
    case("DeepSeek-V3", 163840, element="bf16", window=(512, 576), slug="DeepSeek-V3 bf16"),
    # Layer 5 is the first global one.
    case("Gemma 3 27B", 131072, layers=(0, 5)),
    case("Gemma 3 1B", 32768, layers=(0, 5)),
    case("Gemma 3 1B", 32768, element="bf16", layers=(0, 5), slug="Gemma 3 1B bf16"),
    case("Phi-3-mini-128k", 3000, slug="Phi-3-mini-128k short"),
    case("Phi-3-mini-128k", 120000, slug="Phi-3-mini-128k long"),
    # The frequencies change at 4097 tokens: so do keys whose positions stay, as in the first row.
    case("Phi-3-mini-128k", 4000, GROWS, rows=[500, 2000, 3999], slug="Phi-3-mini-128k short to long"),
    case("Phi-3-mini-128k", 4200, SHRINKS, element="bf16", rows=[500, 2000, 4199],
         slug="Phi-3-mini-128k long to short bf16"),
    case("Phi-4-mini's geometry, Phi-3's factors", 3000, window=(0, 96), slug="Phi-4-mini short"),
    case("Phi-4-mini's geometry, Phi-3's factors", 120000, window=(0, 96), slug="Phi-4-mini long"),
    case("gpt-oss 20b", 131072),
    case("gpt-oss 20b", 131072, element="bf16", slug="gpt-oss 20b bf16"),
    case("StarCoder2 7B", 16384),
    case("GPT-J 6B", 2048, window=(0, 64)),
    case("GPT-NeoX 20B", 2048, window=(0, 24)),
    # Dynamic NTK: below 32768 tokens nothing depends on their number, beyond everything does.
    case("InternLM3 8B", 30000, slug="InternLM3 8B short"),
    case("InternLM3 8B", 100000, slug="InternLM3 8B long"),
    case("InternLM3 8B", 32000, [(5000, 5000, 3000)], rows=[4000, 16000, 31999], slug="InternLM3 8B short to long"),
    # Layer 5 is the first whose window is the whole head, of which a quarter turns.
    case("Gemma 4", 131072, layers=(0, 5)),
    # Layer 3 is the first without a rope.
    case("Llama 4 Scout", 262144, layers=(0, 3)),
    case("Cohere", 8192),
]  # fmt: skip


def narrowed(written, layers):
    """The configuration of a narrow copy of the model's text part, with so many layers."""
    config = CONFIG_MAPPING[written["model_type"]](**copy.deepcopy(written)).get_text_config(decoder=True)
    values = config.to_dict()
    of = {own: general for general, own in config.attribute_map.items()}
    head = values.get("head_dim") or config.hidden_size // config.num_attention_heads
    numbers = NARROW | dict(num_hidden_layers=layers, hidden_size=head)
    if getattr(config, "kv_lora_rank", None):
        numbers |= dict(hidden_size=64)
    for name in values:
        if of.get(name, name) in numbers and values[name] is not None:
            values[name] = numbers[of.get(name, name)]
        if name in BY_LAYER and values[name]:
            values[name] = values[name][:layers]
    if "per_layer_config" in values:
        values["per_layer_config"] = {n: own for n, own in values["per_layer_config"].items() if int(n) < layers}
    return type(config)(**values)


def encoded(config, element, tokens, ids, positions):
    """The keys that a model with random weights caches of each token: layer -> [rows, dim]; and what goes into every
    layer."""
    torch.manual_seed(1)
    # As from_pretrained makes a model of that type: its rotary module's frequencies stay in f32.
    torch.set_default_dtype(TYPES[element])
    model = language_model(config).eval()
    torch.set_default_dtype(torch.float32)
    # The last token of the sequence says how long it is.
    ids, positions = ids + [0], positions + [tokens - 1]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids)[:, None],
            position_ids=torch.tensor(positions)[:, None],
            use_cache=True,
            output_hidden_states=True,
        )
    rows = []
    for layer in out.past_key_values.layers:
        keys = layer.keys
        if getattr(config, "kv_lora_rank", None):
            latent, rotated = keys[:-1, 0, 0], layer.values[:-1, 0, 0]
            if config.model_type in DEINTERLEAVED:
                rotated = rotated.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
            rows.append(torch.cat((latent, rotated), -1))
        else:
            rows.append(keys[:-1, 0, 0])
        assert rows[-1].dtype == TYPES[element]
    return rows, [hidden[:-1] for hidden in out.hidden_states]


def pairing(before, after, window, element):
    """Which components of the window are pairs: those whose magnitude stays."""
    if torch.equal(before, after):
        return "none"
    start, end = window or (0, before.shape[-1])
    rest = [torch.cat((keys[:, :start], keys[:, end:]), -1) for keys in (before, after)]
    assert torch.equal(*rest), "what is outside of the window turns"
    pairs = {"half-split": (2, -1), "interleaved": (-1, 2)}
    found = []
    for name, shape in pairs.items():
        old, new = (
            keys[:, start:end].double().unflatten(-1, shape).norm(dim=shape.index(2) - 2) for keys in (before, after)
        )
        if (old - new).abs().max() < {"f32": 1e-5, "f16": 1e-2, "bf16": 5e-2}[element] * old.max():
            found.append(name)
    assert len(found) == 1, found
    return found[0]


def bits(row):
    # A NaN is as it was before, to the last bit, and shows nothing; nor does a key of zeros.
    assert row.isfinite().all() and (row != 0).any(), row
    integers = row.view(torch.int32 if row.dtype == torch.float32 else torch.int16).tolist()
    digits = 2 * row.element_size()
    return "".join(f"{integer & (1 << 4 * digits) - 1:0{digits}x}" for integer in integers)


def text(case):
    def moved(row):
        return row + sum(inserted - (end - start) for start, end, inserted in case["edits"] if end <= row)

    old = case["rows"]
    new = [moved(row) for row in old]
    tokens = case["tokens"], moved(case["tokens"])
    config = narrowed(case["config"], max(case["layers"]) + 1)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 64, (len(old),), generator=generator).tolist()
    before, into_before = encoded(config, case["element"], tokens[0], ids, old)
    after, into_after = encoded(config, case["element"], tokens[1], ids, new)
    # `into_before[n]` goes into layer n: the same both times, or the keys would differ by more than a rotation.
    for layer in case["layers"]:
        assert torch.equal(into_before[layer], into_after[layer]), (case["name"], layer)
    lines = [
        "pie-rope reference keys, by scripts/reference_vectors.py",
        f"from transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}",
        f"name {case['name']}",
        f"config {json.dumps(case['config'])}",
        f"tokens {tokens[0]} {tokens[1]}",
        f"element {case['element']}",
    ]
    for layer in case["layers"]:
        how = pairing(before[layer], after[layer], case["window"], case["element"])
        start = case["window"][0] if case["window"] else 0
        lines.append(f"layer {layer} {before[layer].shape[-1]} {how} {start}")
        for row, positions in enumerate(zip(old, new)):
            lines.append(f"key {positions[0]} {positions[1]} {bits(before[layer][row])} {bits(after[layer][row])}")
    return "\n".join(lines) + "\n"


# By how much of its largest component a key may differ on another machine: some hundred roundings of its type, and
# what the frequency, off by 6e-7 of itself at most, is off by at the key's position.
CHECKED = {"f32": 1e-5, "f16": 1e-2, "bf16": 1e-1}


def numbers(digits, element):
    """A key's components."""
    if element == "f32":
        return np.array(bytearray.fromhex(digits)).view(">u4").astype("u4").view("f4")
    words = np.array(bytearray.fromhex(digits)).view(">u2")
    if element == "f16":
        return words.astype("u2").view("f2").astype("f4")
    return (words.astype("u4") << 16).view("f4")


def difference(there, made, element):
    """By how much of what they may two files' keys differ; None where the files differ in more than keys."""
    there, made = there.splitlines(), made.splitlines()
    if len(there) != len(made):
        return None
    most = 0.0
    for old, new in zip(there, made):
        if old == new:
            continue
        old, new = old.split(" "), new.split(" ")
        if old[0] != "key" or old[:3] != new[:3]:
            return None
        for position, old, new in zip(old[1:3], old[3:], new[3:], strict=True):
            if len(old) != len(new):
                return None
            old, new = numbers(old, element), numbers(new, element)
            allowed = (CHECKED[element] + 6e-7 * int(position)) * np.abs(new).max()
            # Keeps a NaN, which is not within anything.
            most = np.maximum(most, np.abs(old - new).max() / allowed)
    return float(most)


def main():
    parser = argparse.ArgumentParser(description="Writes tests/vectors, or checks it.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where files differ")
    check = parser.parse_args().check
    made = {f"{case['slug']}.txt": (text(case), case["element"]) for case in CASES}
    assert len(made) == len(CASES), "two cases of one name"
    INTO.mkdir(exist_ok=True)
    there = {path.name: path.read_text() for path in INTO.glob("*.txt")}
    wrong = []
    for name in sorted(made.keys() | there.keys()):
        if name not in made or name not in there:
            wrong.append(f"{name} is {'new' if name in made else 'left over'}")
            continue
        lines, element = made[name]
        if lines != there[name]:
            by = difference(there[name], lines, element)
            print(name, "differs" if by is None else f"has other keys, by {by:.3f} of what they may")
            if by is None or not by <= 1:
                wrong.append(f"{name} differs")
    if check:
        print("\n".join(wrong) or f"{len(made)} files are what transformers caches")
        sys.exit(bool(wrong))
    for name in there.keys() - made.keys():
        (INTO / name).unlink()
    for name, (lines, _) in made.items():
        (INTO / name).write_text(lines)
    print(len(made), "files,", sum(len(lines) for lines, _ in made.values()), "bytes")


if __name__ == "__main__":
    main()
