"""Caches of transformers: with one layer, an edited cache gives the logits of the whole text encoded anew."""

import json
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import AutoConfig, DynamicCache, EncoderDecoderCache, StaticCache  # noqa: E402
from transformers.cache_utils import Cache, DynamicLayer  # noqa: E402

import pie_rope  # noqa: E402
from pie_rope import Edit, ModelRope, Plan, Rope, Rotations  # noqa: E402
from pie_rope.huggingface import cache_argument, edit_cache, encode_spans, model_rope  # noqa: E402
from pie_rope.huggingface.model import LATENT as LATENT_PAIRINGS  # noqa: E402

VOCABULARY, TOKENS = 97, 60
SMALL = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4)
LATENT = dict(
    moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=24,
    kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, num_key_value_heads=4,
    first_k_dense_replace=1, max_position_embeddings=512, pad_token_id=0,
)  # fmt: skip
MODELS = {
    "llama": dict(num_key_value_heads=2, max_position_embeddings=512),
    "gemma3_text": dict(num_key_value_heads=2, head_dim=16, sliding_window=512, layer_types=["sliding_attention"]),
    "gptj": dict(n_embd=64, n_layer=1, n_head=4, rotary_dim=8),
    "gpt_neox": dict(max_position_embeddings=512),
    "phi3": dict(num_key_value_heads=2, max_position_embeddings=512, partial_rotary_factor=0.5, pad_token_id=0),
    "qwen3": dict(num_key_value_heads=2, head_dim=32, max_position_embeddings=512),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
}  # fmt: skip
EDITS = {
    "insertion": [Edit.insert(20, 5)],
    "deletion": [Edit.delete(20, 25)],
    "insertion at the end": [Edit.insert(TOKENS, 3)],
    "several": [Edit.replace(3, 6, 9), Edit.insert(12, 1), Edit.delete(20, 31), Edit.replace(50, 51, 4)],
}


def model_of(model_type, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **MODELS.get(model_type, {}), **changes})
    if model_type == "mistral4":
        # In no auto class.
        from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

        model = Mistral4ForCausalLM(config).eval()
    else:
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh norms have weights of 1, which would hide what they do to a key that has been turned.
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def edited(tokens, edits):
    """New tokens: random ones where the edits put some."""
    rows, done = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.stop)):
        rows += [tokens[..., done : edit.start], torch.randint(VOCABULARY, (*tokens.shape[:-1], edit.inserted))]
        done = edit.stop
    return torch.cat([*rows, tokens[..., done:]], -1)


def cached(model, tokens, cache):
    argument = cache_argument(model)
    with torch.no_grad():
        model(tokens, use_cache=True, **{argument: cache})
    return cache


def same(got, want):
    """Finite, and equal to the rounding of float32: angles of positions below 100, taken in float32, are off by
    100 * 2**-24, which is 6e-6, and a hundred products are summed in another order. What has not turned is a thousand
    times as far."""
    assert want.numel() > 0 and want.isfinite().all()
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.detach().abs().max()))


CACHES = {
    "dynamic": lambda config: DynamicCache(),
    "dynamic of the config": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=96),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("model_type", MODELS)
def test_logits_equal_those_of_full_recomputation(model_type, kind, edit):
    model = model_of(model_type)
    tokens = torch.randint(VOCABULARY, (2, TOKENS))
    new_tokens = edited(tokens, EDITS[edit])
    cache = cached(model, tokens, CACHES[kind](model.config))
    with torch.no_grad():
        want = model(new_tokens).logits[:, -1]
    stale = cached(model, tokens, CACHES[kind](model.config))

    spans = edit_cache(cache, model, EDITS[edit], tokens=tokens)
    plan = Plan.from_edits(TOKENS, EDITS[edit])
    assert spans == plan.new_spans
    assert int(cache.get_seq_length()) == plan.new_rows == new_tokens.shape[-1]
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    assert int(cache.get_seq_length()) == plan.new_rows
    same(got, want)

    # Every row is that of the text encoded anew, new ones included.
    anew = cached(model, new_tokens, CACHES[kind](model.config))
    for ours, theirs in zip(cache.layers, anew.layers, strict=True):
        for name in ("keys", "values"):
            mine, other = (getattr(layer, name)[:, :, : plan.new_rows] for layer in (ours, theirs))
            same(mine, other)
    if edit != "insertion at the end":
        # Rows that move without being turned are not.
        last, other = (layers.layers[0] for layers in (stale, anew))
        turns = "values" if model_type.startswith("deepseek") else "keys"
        mine, other = getattr(last, turns)[:, :, TOKENS - 1], getattr(other, turns)[:, :, plan.new_rows - 1]
        assert (mine - other).abs().max() > 0.01 * other.abs().max()


FREQUENCIES = {
    "longrope": ("phi3", dict(
        partial_rotary_factor=1.0, original_max_position_embeddings=32, rope_parameters=dict(
            rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 8, long_factor=[4.0] * 8, factor=16.0,
            original_max_position_embeddings=32,
        ),
    )),
    "dynamic": ("llama", dict(
        max_position_embeddings=32, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
    )),
}  # fmt: skip


@pytest.mark.parametrize("rows", [29, 60], ids=["across the switch", "beyond it"])
@pytest.mark.parametrize("rope_type", FREQUENCIES)
def test_frequencies_that_depend_on_the_length(rope_type, rows):
    """All keys get the frequencies of the edited length, those of new tokens at small positions included."""
    model_type, changes = FREQUENCIES[rope_type]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (1, rows))
    edits = [Edit.insert(3, 2), Edit.replace(20, 22, 6)]
    new_tokens = edited(tokens, edits)
    cache = cached(model, tokens, DynamicCache())
    old = cache.layers[0].keys.clone()
    got = encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits)).logits[:, -1]
    # Another one: under dynamic NTK a model remembers the longest sequence that it has seen.
    fresh = model_of(model_type, **changes)
    anew = cached(fresh, new_tokens, DynamicCache()).layers[0].keys
    with torch.no_grad():
        want = fresh(new_tokens).logits[:, -1]
    same(got, want)
    same(cache.layers[0].keys, anew)
    # The switch, or the stretch, turns rows before the first edit as well.
    if rows < 32 or rope_type == "dynamic":
        assert (old[:, :, 2] - anew[:, :, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "a pass for each span"])
def test_ways_to_encode_agree(implementation, monkeypatch):
    if implementation.startswith("a pass"):
        monkeypatch.setattr("pie_rope.huggingface.preflight.why_apart", lambda config, rows: "it is asked for")
        model = model_of("llama", num_hidden_layers=2)
    else:
        model = model_of("llama", num_hidden_layers=2, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
    tokens = torch.randint(VOCABULARY, (2, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = cached(model, tokens, StaticCache(config=model.config, max_cache_len=80))
    spans = edit_cache(cache, model, EDITS["several"], tokens=tokens)
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    # By hand, token by token, on the same edited cache.
    other = cached(model, tokens, DynamicCache())
    edit_cache(other, model, EDITS["several"], attention_mask=torch.ones_like(tokens))
    rows = [row for span in spans for row in range(span.row, span.row + span.len)] + [new_tokens.shape[-1] - 1]
    for row in rows:
        view = DynamicCache()
        for index, layer in enumerate(other.layers):
            view.update(layer.keys[:, :, :row], layer.values[:, :, :row], index)
        with torch.no_grad():
            positions = torch.tensor([[row]])
            arguments = {cache_argument(model): view, "position_ids": positions, "use_cache": True}
            want = model(new_tokens[:, row : row + 1], **arguments).logits[:, -1]
        for layer, one in zip(other.layers, view.layers, strict=True):
            layer.keys[:, :, row], layer.values[:, :, row] = one.keys[:, :, row], one.values[:, :, row]
    same(got, want)
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        same(ours.keys[:, :, : rows[-1] + 1], theirs.keys)
        same(ours.values[:, :, : rows[-1] + 1], theirs.values)


def test_lengths_say_which_frequencies_keys_have():
    """Dynamic NTK: transformers remembers the longest sequence, and goes on with its frequencies after a deletion."""
    model_type, changes = FREQUENCIES["dynamic"]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["deletion"])
    cache = cached(model, tokens, DynamicCache())
    edit_cache(cache, model, EDITS["deletion"], lengths=(TOKENS, TOKENS))
    anew = cached(model, new_tokens, DynamicCache())
    same(cache.layers[0].keys, anew.layers[0].keys)


PHIMOE = dict(
    num_key_value_heads=2, num_local_experts=2, max_position_embeddings=512, original_max_position_embeddings=32,
    pad_token_id=0,
    rope_parameters=dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 8, long_factor=[4.0] * 8, factor=16.0,
        short_mscale=1.0, long_mscale=1.0, original_max_position_embeddings=32,
    ),
)  # fmt: skip


@pytest.mark.parametrize("rows", [29, 60], ids=["across the switch", "beyond it"])
def test_phimoe_keeps_its_short_factors(rows):
    """Beyond its switch transformers scales keys otherwise, but turns them as before."""
    model = model_of("phimoe", **PHIMOE)
    tokens = torch.randint(VOCABULARY, (1, rows))
    edits = [Edit.insert(3, 2), Edit.replace(20, 22, 6)]
    new_tokens = edited(tokens, edits)
    cache, anew = cached(model, tokens, DynamicCache()), cached(model, new_tokens, DynamicCache())
    encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits))
    same(cache.layers[0].keys, anew.layers[0].keys)
    assert model_rope(model.config, 60) == model_rope(model.config, 20)


def test_keys_of_another_magnitude_are_refused(monkeypatch):
    rope = {**PHIMOE["rope_parameters"], "long_mscale": 1.3}
    model = model_of("phimoe", **{**PHIMOE, "rope_parameters": rope})
    tokens = torch.randint(VOCABULARY, (1, 40))
    cache = cached(model, tokens[:, :29], DynamicCache())
    before = cache.layers[0].keys.clone()
    for config in (model.config, model.config.to_dict(), model.config.to_json_string(use_diff=False)):
        refused(
            lambda config=config: edit_cache(cache, config, [Edit.insert(5, 6)]),
            "keys of 29 tokens have another magnitude than those of 35",
        )
    assert (cache.layers[0].keys == before).all()
    edit_cache(cache, model, [Edit.insert(5, 3)])
    # Beyond the switch all passes have to be.
    cache = cached(model, tokens, DynamicCache())
    new_tokens = edited(tokens, [Edit.insert(5, 6)])
    spans = edit_cache(cache, model, [Edit.insert(5, 6)])
    with monkeypatch.context() as patch:
        patch.setattr("pie_rope.huggingface.preflight.why_apart", lambda config, rows: "it is asked for")
        refused(
            lambda: encode_spans(model, cache, new_tokens, spans), "a pass that ends at position 10 would take other"
        )
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    same(got, model(new_tokens).logits[:, -1])


@pytest.mark.parametrize("model_type", LATENT_PAIRINGS)
def test_latent_attentions_are_turned_in_the_order_in_which_they_are_cached(model_type):
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("this version of transformers does not have it")
    own = {
        "bailing_hybrid": dict(layer_group_size=1, layer_types=["full_attention"]),
        # Two attentions to a layer, of which the first one's keys are those of the tokens alone.
        "longcat_flash": dict(
            num_hidden_layers=2, head_dim=16, moe_topk=2, expert_ffn_hidden_size=32, ffn_hidden_size=64
        ),
    }
    model = model_of(model_type, **LATENT, **own.get(model_type, {}))
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = cached(model, tokens, DynamicCache())
    got = encode_spans(model, cache, new_tokens, edit_cache(cache, model, EDITS["several"])).logits[:, -1]
    if model_type != "longcat_flash":
        with torch.no_grad():
            same(got, model(new_tokens).logits[:, -1])
    same(cache.layers[0].values, cached(model, new_tokens, DynamicCache()).layers[0].values)


def test_every_latent_attention_whose_keys_were_measured_is_known():
    measured = json.loads((Path(__file__).parents[2] / "tests" / "configs" / "keys.json").read_text())["entries"]
    latent = {entry["config"]["model_type"] for entry in measured if entry["config"].get("kv_lora_rank")}
    # Its latent layers have no rope.
    assert latent - {"kimi_linear"} == set(LATENT_PAIRINGS)


def test_what_was_made_in_inference_mode_is_edited_in_it():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = StaticCache(config=model.config, max_cache_len=80)
    with torch.inference_mode():
        model(tokens, use_cache=True, **{cache_argument(model): cache})
        want = model(new_tokens).logits[:, -1]
    assert cache.layers[0].keys.is_inference()
    spans = edit_cache(cache, model, EDITS["several"])
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    same(got, want)


def test_everything_is_deleted_and_something_comes():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=80)):
        cached(model, tokens, cache)
        assert edit_cache(cache, model, [Edit.delete(0, TOKENS)]) == []
        assert int(cache.get_seq_length()) == 0
        with pytest.raises(ValueError, match="tokens: there are none"):
            encode_spans(model, cache, tokens[:, :0], [])
        spans = edit_cache(cache, model, [Edit.insert(0, 7)])
        got = encode_spans(model, cache, tokens[:, :7], spans).logits[:, -1]
        with torch.no_grad():
            want = model(tokens[:, :7]).logits[:, -1]
        same(got, want)


def test_a_cache_with_a_graph_is_edited_as_well():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = DynamicCache()
    model(tokens, use_cache=True, **{cache_argument(model): cache})
    assert cache.layers[0].keys.requires_grad
    other = cached(model, tokens, DynamicCache())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (cache, other):
            edit_cache(each, model, EDITS["deletion"], tokens=tokens)
    assert (cache.layers[0].keys == other.layers[0].keys).all()


def test_generation_goes_on_from_an_edited_cache():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = cached(model, tokens, DynamicCache())
    logits = encode_spans(model, cache, new_tokens[0], edit_cache(cache, model, EDITS["several"])).logits[:, -1]
    for _ in range(5):
        token = logits.argmax(-1, keepdim=True)
        new_tokens = torch.cat([new_tokens, token], -1)
        want = model(new_tokens).logits[:, -1]
        argument = cache_argument(model)
        with torch.no_grad():
            logits = model(token, use_cache=True, **{argument: cache}).logits[:, -1]
        same(logits, want)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("edit", ["deletion", "several"])
def test_the_output_has_the_cache_that_was_given(edit, kind):
    """Generation goes on from it, and fills the next row, not the last one again."""
    model = model_of("llama", num_hidden_layers=2)
    argument = cache_argument(model)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS[edit])
    caches = []
    for form in ("dictionary", "tuple"):
        cache = cached(model, tokens, CACHES[kind](model.config))
        spans = edit_cache(cache, model, EDITS[edit])
        output = encode_spans(model, cache, new_tokens, spans, return_dict=form == "dictionary")
        logits, given = output[:2] if form == "tuple" else (output.logits, getattr(output, argument))
        assert given is cache
        before = cache.layers[1].keys[:, :, : new_tokens.shape[-1]].clone()
        with torch.no_grad():
            token = logits[:, -1:].argmax(-1)
            model(token, use_cache=True, **{argument: given})
        assert int(cache.get_seq_length()) == new_tokens.shape[-1] + 1
        assert (cache.layers[1].keys[:, :, : new_tokens.shape[-1]] == before).all()
        caches.append(cache)
    anew = cached(model, torch.cat([new_tokens, token], -1), CACHES[kind](model.config))
    rows = new_tokens.shape[-1] + 1
    for cache in caches:
        same(cache.layers[0].keys[:, :, :rows], anew.layers[0].keys[:, :, :rows])


def test_a_pass_that_fails_leaves_the_cache_its_layers():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    layers, spans = cache.layers, edit_cache(cache, model, [])
    with pytest.raises(TypeError):
        encode_spans(model, cache, tokens, spans, logits_to_keep="all")
    assert cache.layers is layers and type(layers[0]) is DynamicLayer


@pytest.mark.parametrize("way", ["crop", "an edit", "a token more"])
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_generate_goes_on_from_an_edited_cache(model_type, kind, way):
    # A window that slides before the end.
    model = model_of(model_type, sliding_window=64)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    # No end: the same number of tokens in any case.
    greedy = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    want = model.generate(new_tokens, attention_mask=torch.ones_like(new_tokens), **greedy)
    cache = cached(model, tokens, CACHES[kind](model.config))
    if way == "crop" and not hasattr(cache.layers[0], "crop"):
        pytest.skip("the static caches of this version of transformers have no crop")
    output = encode_spans(model, cache, new_tokens, edit_cache(cache, model, EDITS["several"]))
    rows, encoded = new_tokens.shape[-1], []
    if way == "crop":
        cache.crop(-1)
    elif way == "an edit":
        assert edit_cache(cache, model, [Edit.delete(rows - 1, rows)]) == []
    else:
        new_tokens = torch.cat([new_tokens, output.logits[:, -1:].argmax(-1)], -1)
        greedy |= dict(max_new_tokens=7, min_new_tokens=7)
    model.model.embed_tokens.register_forward_hook(lambda module, given, made: encoded.append(given[0].shape[-1]))
    mask = torch.ones_like(new_tokens)
    got = model.generate(new_tokens, attention_mask=mask, **{cache_argument(model): cache}, **greedy)
    assert got.tolist() == want.tolist()
    # Nothing is encoded twice.
    assert set(encoded) == {1} and int(cache.get_seq_length()) == rows + 7


PADDING = [0, 7, 3]


@pytest.mark.parametrize("edit", ["insertion", "deletion", "several"])
@pytest.mark.parametrize("kind", ["dynamic", "static", "a window", "a pass for each span"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v2"])
def test_sequences_with_padding(model_type, kind, edit, monkeypatch):
    """Edited alike behind it, each is as if it were alone."""
    if kind == "a pass for each span":
        monkeypatch.setattr("pie_rope.huggingface.preflight.why_apart", lambda config, rows: "it is asked for")
    edits = [Edit(edit.start + 5, edit.stop + 5, edit.inserted) for edit in EDITS[edit]]
    model = model_of(model_type, **({"sliding_window": 40} if kind == "a window" else {}))
    tokens = torch.randint(VOCABULARY, (len(PADDING), TOKENS))
    new_tokens = edited(tokens, edits)

    def masked(tokens):
        mask = (torch.arange(tokens.shape[-1]) >= torch.tensor(PADDING)[:, None]).long()
        return mask, (mask.cumsum(-1) - 1).clamp(min=0)

    cache = DynamicCache() if kind != "static" else StaticCache(config=model.config, max_cache_len=96)
    mask, positions = masked(tokens)
    with torch.no_grad():
        arguments = {cache_argument(model): cache, "attention_mask": mask, "position_ids": positions}
        model(tokens, use_cache=True, **arguments)
    spans = edit_cache(cache, model, edits, attention_mask=mask)
    mask, positions = masked(new_tokens)
    got = encode_spans(model, cache, new_tokens, spans, attention_mask=mask)
    turned = "values" if model_type == "deepseek_v2" else "keys"
    rows = new_tokens.shape[-1]
    with torch.no_grad():
        for index, padding in enumerate(PADDING):
            alone = new_tokens[index : index + 1, padding:]
            same(got.logits[index, -1], model(alone).logits[0, -1])
            one = getattr(cached(model, alone, DynamicCache()).layers[0], turned)[0]
            same(getattr(cache.layers[0], turned)[index, :, padding:rows], one)
        # And on with the next token.
        token = got.logits[:, -1:].argmax(-1)
        longer = torch.cat([mask, torch.ones_like(token)], -1)
        arguments = {cache_argument(model): cache, "attention_mask": longer, "position_ids": positions[:, -1:] + 1}
        got = model(token, use_cache=True, **arguments).logits[:, -1]
        for index, padding in enumerate(PADDING):
            alone = torch.cat([new_tokens[index, padding:], token[index]])
            same(got[index], model(alone.unsqueeze(0)).logits[0, -1])


def test_padding_that_is_none_changes_nothing():
    """LongRoPE's switch counts tokens, not padding."""
    model_type, changes = FREQUENCIES["longrope"]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (2, 34))
    edits = [Edit.insert(8, 2), Edit.delete(20, 22)]
    new_tokens = edited(tokens, edits)
    mask = (torch.arange(34) >= 4).long()[None].expand(2, -1)
    cache = DynamicCache()
    with torch.no_grad():
        positions = (torch.arange(34) - 4).clamp(min=0)[None]
        arguments = {cache_argument(model): cache, "attention_mask": mask, "position_ids": positions}
        model(tokens, use_cache=True, **arguments)
        want = model(new_tokens[:, 4:]).logits[:, -1]
    spans = edit_cache(cache, model, edits, lengths=(30, 30), attention_mask=mask)
    same(encode_spans(model, cache, new_tokens, spans, attention_mask=mask).logits[:, -1], want)


def test_bfloat16_and_several_layers_and_a_plan_of_tokens():
    """Several layers approximate: what is left of the difference to the whole encoded anew is little of what stale keys
    leave."""
    model = model_of("llama", num_hidden_layers=3, initializer_range=0.2).to(torch.bfloat16)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["insertion"])
    plan = Plan.from_tokens(tokens[0], new_tokens[0])
    still = ModelRope.uniform(Rope.from_inv_freq([0.0]), 3)
    with torch.no_grad():
        want = model(new_tokens).logits[:, -1].float()
    off = {}
    for name, rope in (("turned", model), ("stale", still)):
        cache = cached(model, tokens, DynamicCache())
        got = encode_spans(model, cache, new_tokens, edit_cache(cache, rope, plan)).logits[:, -1].float()
        assert cache.layers[2].keys.dtype == torch.bfloat16
        off[name] = float((got - want).norm() / want.norm())
    assert off["turned"] < 0.5 * off["stale"], off


def refused(call, text, error=ValueError):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value), raised.value


def test_spans_that_one_pass_cannot_encode_rightly_are_refused(monkeypatch):
    monkeypatch.setattr("pie_rope.huggingface.preflight.why_apart", lambda config, rows: "it is asked for")
    model_type, changes = FREQUENCIES["longrope"]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["insertion"])
    cache = cached(model, tokens, DynamicCache())
    before = cache.layers[0].keys.clone()
    text = "a pass that ends at position 24 would take other frequencies than the 65 rows of the cache have"
    for given in (model, model.config):
        refused(lambda given=given: edit_cache(cache, given, EDITS["insertion"]), f"edits: {text}")
    assert (cache.layers[0].keys == before).all()
    # As one pass it could be; a configuration does not say how the model's attention is implemented.
    spans = edit_cache(cache, model_rope(model.config, 65), EDITS["insertion"])
    refused(lambda: encode_spans(model, cache, new_tokens, spans), f"spans: {text}")
    refused(lambda: encode_spans(model, cache, tokens, spans), "tokens: there are 60, but the cache has [65] rows")


def test_a_refused_cache_is_as_it_was():
    model = model_of("llama", num_hidden_layers=2)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, StaticCache(config=model.config, max_cache_len=64))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    config = model.config

    refused(
        lambda: edit_cache([], config, []),
        "cache: it must be a DynamicCache or a StaticCache of transformers, not list",
        TypeError,
    )
    refused(lambda: edit_cache(DynamicCache(), config, []), "cache: it holds no rows yet")
    refused(lambda: edit_cache(cache, config, [Edit.insert(3, 5)]), "65 rows are more than the 64")
    refused(lambda: edit_cache(cache, config, [Edit.delete(3, 99)]), "edit 0: range 3..99 is outside the 60 old tokens")
    refused(lambda: edit_cache(cache, config, Plan.from_edits(61, [])), "the plan is for 61 rows, the cache holds 60")
    other = transformers.LlamaConfig(**{**SMALL, "hidden_size": 256})
    refused(lambda: edit_cache(cache, other, [Edit.delete(3, 4)]), "model: it has 1 layer, the cache has 2")
    other = transformers.LlamaConfig(**{**SMALL, "hidden_size": 256, "num_hidden_layers": 2})
    refused(
        lambda: edit_cache(cache, other, [Edit.delete(3, 4)]),
        "model: its heads have 64 dimensions, the cached keys of layer 0 have 16",
    )
    moved = Plan.from_edits(TOKENS, [Edit.delete(3, 4)], first_position=7)
    refused(lambda: edit_cache(cache, config, moved), "tokens are at other positions than those of their rows")
    # What is wrong with a later layer is seen before the first one is edited.
    keys, cache.layers[1].keys = cache.layers[1].keys, cache.layers[1].keys.double()
    refused(lambda: edit_cache(cache, config, [Edit.delete(3, 4)]), "elements must be float32", TypeError)
    cache.layers[1].keys = keys
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert (layer.keys == keys).all() and (layer.values == values).all() and int(layer.get_seq_length()) == TOKENS

    model = model_of("gemma3_text", sliding_window=32)
    cache = cached(model, tokens, DynamicCache(config=model.config))
    refused(
        lambda: edit_cache(cache, model, [Edit.delete(3, 4)]),
        "layer 0 keeps 31 rows and loses those before them",
    )
    cache = cached(model, tokens, StaticCache(config=model.config, max_cache_len=96))
    refused(
        lambda: edit_cache(cache, model, [Edit.delete(3, 4)]),
        "layer 0 keeps 32 rows and loses those before them",
    )
    # A cache that keeps all rows is edited beyond the window, too.
    cache = cached(model, tokens, DynamicCache())
    new_tokens = edited(tokens, EDITS["several"])
    got = encode_spans(model, cache, new_tokens, edit_cache(cache, model, EDITS["several"])).logits[:, -1]
    same(got, model(new_tokens).logits[:, -1])


def test_what_is_no_plain_cache_is_refused():
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    llama = model_of("llama")
    cache = cached(llama, tokens, DynamicCache())
    refused(
        lambda: edit_cache(EncoderDecoderCache(cache, DynamicCache()), llama.config, []),
        "cache: of an EncoderDecoderCache, pass the `.self_attention_cache`",
        TypeError,
    )

    class Another(DynamicCache):
        pass

    another = cached(llama, tokens, Another())
    refused(lambda: edit_cache(another, llama.config, []), "a StaticCache of transformers, not Another", TypeError)
    refused(lambda: encode_spans(llama, another, tokens, []), "a StaticCache of transformers, not Another", TypeError)
    assert edit_cache(Cache(layers=cache.layers), llama.config, []) == []
    cache.offloading = True
    refused(lambda: edit_cache(cache, llama.config, []), "cache: it offloads its layers")

    # What a recurrent layer has of the tokens before is in no row.
    types = ["linear_attention", "full_attention"]
    minimax = model_of(
        "minimax", num_hidden_layers=2, num_key_value_heads=2, head_dim=16, num_local_experts=2, layer_types=types
    )
    with torch.no_grad():
        cache = getattr(minimax(tokens, use_cache=True), cache_argument(minimax))
    before = [cache.layers[1].keys.clone(), cache.layers[1].values.clone(), cache.linear_cache[0].clone()]
    refused(lambda: edit_cache(cache, minimax.config, [Edit.delete(3, 4)]), "not MiniMaxCache", TypeError)
    text = "model: layer 0 (`linear_attention`) keeps a state of all tokens"
    layers = Cache(layers=cache.layers)
    refused(lambda: edit_cache(layers, minimax.config, [Edit.delete(3, 4)]), text)
    older = {**minimax.config.to_dict(), "layer_types": ["mamba", "full_attention"]}
    refused(lambda: edit_cache(layers, older, [Edit.delete(3, 4)]), "model: layer 0 (`mamba`)")
    after = [cache.layers[1].keys, cache.layers[1].values, cache.linear_cache[0]]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))

    qwen = model_of(
        "qwen3_next", num_hidden_layers=2, layer_types=types, head_dim=16, num_experts=4, num_experts_per_tok=2
    )
    cache = cached(qwen, tokens, DynamicCache(config=qwen.config))
    refused(lambda: edit_cache(cache, qwen.config, [Edit.delete(3, 4)]), "cache: layer 0 is a LinearAttentionLayer")
    # An indexer's keys would have to be turned as well.
    indexed = model_of("deepseek_v32", **LATENT, index_n_heads=2, index_head_dim=32, index_topk=8)
    cache = cached(indexed, tokens, DynamicCache(config=indexed.config))
    refused(lambda: edit_cache(cache, indexed.config, [Edit.delete(3, 4)]), "cache: layer 0 is a DynamicIndexedLayer")
    # The same rows, of a model whose order nobody has looked up.
    latent = model_of("deepseek_v3")
    cache = cached(latent, tokens, DynamicCache())
    unknown = {**latent.config.to_dict(), "model_type": "kimi_k2"}
    refused(
        lambda: edit_cache(cache, {"text_config": unknown}, [Edit.delete(3, 4)]),
        "model: in which order `kimi_k2` caches its latent rows is not known; if you know it, give a configuration with"
        " a `model_type` of the same order in the model's place",
    )
    known = cached(latent, tokens, DynamicCache())
    edit_cache(known, latent, [Edit.delete(3, 4)])
    edit_cache(cache, {"text_config": {**unknown, "model_type": "deepseek_v3"}}, [Edit.delete(3, 4)])
    same(cache.layers[0].values, known.layers[0].values)


def test_what_is_wrong_is_named():
    model = model_of("llama")
    config = model.config
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    before = cache.layers[0].keys.clone()
    for edits in (None, Edit.insert(1, 1), 3):
        text = f"edits: they must be a Plan or a list of Edit, not {type(edits).__name__}"
        refused(lambda edits=edits: edit_cache(cache, config, edits), text, TypeError)
    refused(lambda: edit_cache(cache, config, [(1, 2, 3)]), "edits: number 0 must be an Edit, not tuple", TypeError)
    for lengths in (5, (1, 2, 3), (1, None), "ab"):
        text = f"lengths: they must be two numbers of tokens, not {lengths!r}"
        refused(lambda lengths=lengths: edit_cache(cache, config, [], lengths=lengths), text, TypeError)
    refused(lambda: edit_cache(cache, config, [], lengths=(-1, 3)), "two numbers of tokens, not (-1, 3)")
    for wrong in (None, 5, object()):
        text = (
            "model: it must be a model of transformers, a configuration of transformers, a dict of it, the text of a"
            f" config.json, or a ModelRope, not {type(wrong).__name__}"
        )
        refused(lambda wrong=wrong: edit_cache(cache, wrong, []), text, TypeError)
    refused(lambda: edit_cache(cache, "llama", []), "model: it is not the text of a config.json")
    with torch.device("meta"):
        meta = cached(model_of("llama"), tokens.to("meta"), DynamicCache())
    refused(lambda: edit_cache(meta, config, []), "cache: layer 0 is on the meta device")
    assert (cache.layers[0].keys == before).all()

    spans = edit_cache(cache, config, [Edit.delete(5, 6), Edit.insert(9, 1)])
    before = cache.layers[0].keys.clone()
    refused(lambda: encode_spans(model, cache, tokens, None), "spans: they must be the list of NewSpan", TypeError)
    refused(lambda: encode_spans(model, cache, tokens, [3]), "spans: they must be the list of NewSpan", TypeError)
    two = tokens.expand(2, -1)
    refused(lambda: encode_spans(model, cache, two, spans), "tokens: there are 2 sequences, but the cache has [1]")
    refused(lambda: encode_spans(model, cache, tokens[None], spans), "tokens: they must be of [batch, rows]")
    others = Plan.from_edits(TOKENS, [Edit.insert(TOKENS - 1, 3)]).new_spans
    text = "spans: rows 59 to 62 at position 59, after row 0, are of another plan than that of these 60 rows"
    refused(lambda: encode_spans(model, cache, tokens, others), text)
    refused(lambda: encode_spans(model, cache, tokens, spans + spans), "rows 8 to 9 at position 8, after row 9")
    moved = Plan.from_edits(TOKENS, [Edit.replace(3, 4, 1)], first_position=7).new_spans
    refused(lambda: encode_spans(model, cache, tokens, moved), "rows 3 to 4 at position 10")
    for name in ("position_ids", "cache_position", "past_key_values", "use_cache", "input_ids"):
        text = f"{name}: encode_spans says it to the model itself"
        refused(lambda name=name: encode_spans(model, cache, tokens, spans, **{name: None}), text, TypeError)
    masks = {
        "attention_mask: it must be of [1, 60], as the rows, not [1, 59]": torch.ones(1, 59),
        "attention_mask: padding must be on the left": torch.arange(60) != 30,
        "attention_mask: row 8, which is to be encoded, is padding": torch.arange(60) > 8,
    }
    for text, mask in masks.items():
        refused(lambda mask=mask: encode_spans(model, cache, tokens, spans, attention_mask=mask), text)
    refused(lambda: encode_spans(model, cache, tokens, spans, attention_mask=torch.zeros(60)), "must be on the left")
    # Nothing has been encoded.
    assert (cache.layers[0].keys == before).all()


def test_tensors_without_memory_are_refused():
    plan = Plan.from_edits(3, [Edit.insert(1, 1)])
    rotations = Rotations(plan, Rope.from_theta(1e4, 8))
    resized = torch.zeros(1, 1, 4, 8)
    resized.untyped_storage().resize_(0)
    for tensor in (resized, torch._efficientzerotensor((1, 1, 4, 8))):
        refused(lambda tensor=tensor: pie_rope.rotate(rotations, tensor), "keys: it has no memory")
    refused(lambda: pie_rope.rotate(rotations, torch.zeros(1, 1, 4, 8, device="meta")), "keys: ")
