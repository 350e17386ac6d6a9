"""Caches of transformers: with one layer, an edited cache gives the logits of the whole text encoded anew."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import DynamicCache, StaticCache  # noqa: E402

from pie_rope import Edit, ModelRope, Plan, Rope  # noqa: E402
from pie_rope.huggingface import cache_argument, edit_cache, encode_spans  # noqa: E402

VOCABULARY, TOKENS = 97, 60
SMALL = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4)
MODELS = {
    "llama": dict(num_key_value_heads=2, max_position_embeddings=512),
    "gemma3_text": dict(num_key_value_heads=2, head_dim=16, sliding_window=512, layer_types=["sliding_attention"]),
    "gptj": dict(n_embd=64, n_layer=1, n_head=4, rotary_dim=8),
    "gpt_neox": dict(max_position_embeddings=512),
    "phi3": dict(num_key_value_heads=2, max_position_embeddings=512, partial_rotary_factor=0.5, pad_token_id=0),
    "qwen3": dict(num_key_value_heads=2, head_dim=32, max_position_embeddings=512),
    "deepseek_v3": dict(
        moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=24,
        kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, num_key_value_heads=4,
        first_k_dense_replace=1, max_position_embeddings=512,
    ),
}  # fmt: skip
EDITS = {
    "insertion": [Edit.insert(20, 5)],
    "deletion": [Edit.delete(20, 25)],
    "insertion at the end": [Edit.insert(TOKENS, 3)],
    "several": [Edit.replace(3, 6, 9), Edit.insert(12, 1), Edit.delete(20, 31), Edit.replace(50, 51, 4)],
}


def model_of(model_type, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **MODELS[model_type], **changes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


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
    """Equal to the rounding of float32: angles of positions below 100, taken in float32, are off by 100 * 2**-24, which
    is 6e-6, and a hundred products are summed in another order. What has not turned is a thousand times as far."""
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


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

    spans = edit_cache(cache, model.config, EDITS[edit])
    plan = Plan.from_edits(TOKENS, EDITS[edit])
    assert spans == plan.new_spans
    assert int(cache.get_seq_length()) == plan.new_rows == new_tokens.shape[-1]
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    assert int(cache.get_seq_length()) == plan.new_rows
    same(got, want)

    # Every row is that of the text encoded anew, new ones included.
    anew = cached(model, new_tokens, CACHES[kind](model.config))
    for ours, theirs in zip(cache.layers, anew.layers):
        for name in ("keys", "values"):
            mine, other = (getattr(layer, name)[:, :, : plan.new_rows] for layer in (ours, theirs))
            same(mine, other)
    if edit != "insertion at the end":
        # Rows that move without being turned are not.
        last, other = (layers.layers[0] for layers in (stale, anew))
        turns = "values" if model_type == "deepseek_v3" and last.values.shape[-1] == 16 else "keys"
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
    got = encode_spans(model, cache, new_tokens, edit_cache(cache, model.config, edits)).logits[:, -1]
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
        monkeypatch.setattr("pie_rope.huggingface._takes_any_mask", lambda config, rows: False)
        model = model_of("llama", num_hidden_layers=2)
    else:
        model = model_of("llama", num_hidden_layers=2, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
    tokens = torch.randint(VOCABULARY, (2, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = cached(model, tokens, StaticCache(config=model.config, max_cache_len=80))
    spans = edit_cache(cache, model.config, EDITS["several"])
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    # By hand, token by token, on the same edited cache.
    other = cached(model, tokens, DynamicCache())
    edit_cache(other, model.config, EDITS["several"])
    rows = [row for span in spans for row in range(span.row, span.row + span.len)] + [new_tokens.shape[-1] - 1]
    for row in rows:
        view = DynamicCache()
        for index, layer in enumerate(other.layers):
            view.update(layer.keys[:, :, :row], layer.values[:, :, :row], index)
        with torch.no_grad():
            positions = torch.tensor([[row]])
            arguments = {cache_argument(model): view, "position_ids": positions, "use_cache": True}
            want = model(new_tokens[:, row : row + 1], **arguments).logits[:, -1]
        for layer, one in zip(other.layers, view.layers):
            layer.keys[:, :, row], layer.values[:, :, row] = one.keys[:, :, row], one.values[:, :, row]
    same(got, want)
    for ours, theirs in zip(cache.layers, other.layers):
        same(ours.keys[:, :, : rows[-1] + 1], theirs.keys)
        same(ours.values[:, :, : rows[-1] + 1], theirs.values)


def test_lengths_say_which_frequencies_keys_have():
    """Dynamic NTK: transformers remembers the longest sequence, and goes on with its frequencies after a deletion."""
    model_type, changes = FREQUENCIES["dynamic"]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["deletion"])
    cache = cached(model, tokens, DynamicCache())
    edit_cache(cache, model.config, EDITS["deletion"], lengths=(TOKENS, TOKENS))
    anew = cached(model, new_tokens, DynamicCache())
    same(cache.layers[0].keys, anew.layers[0].keys)


def test_what_was_made_in_inference_mode_is_edited_in_it():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = StaticCache(config=model.config, max_cache_len=80)
    with torch.inference_mode():
        model(tokens, use_cache=True, **{cache_argument(model): cache})
        want = model(new_tokens).logits[:, -1]
    assert cache.layers[0].keys.is_inference()
    spans = edit_cache(cache, model.config, EDITS["several"])
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    same(got, want)


def test_everything_is_deleted_and_something_comes():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=80)):
        cached(model, tokens, cache)
        assert edit_cache(cache, model.config, [Edit.delete(0, TOKENS)]) == []
        assert int(cache.get_seq_length()) == 0
        with pytest.raises(ValueError, match="tokens: there are none"):
            encode_spans(model, cache, tokens[:, :0], [])
        spans = edit_cache(cache, model.config, [Edit.insert(0, 7)])
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
    for each in (cache, other):
        edit_cache(each, model.config, EDITS["deletion"])
    assert (cache.layers[0].keys == other.layers[0].keys).all()


def test_generation_goes_on_from_an_edited_cache():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["several"])
    cache = cached(model, tokens, DynamicCache())
    logits = encode_spans(model, cache, new_tokens[0], edit_cache(cache, model.config, EDITS["several"])).logits[:, -1]
    for _ in range(5):
        token = logits.argmax(-1, keepdim=True)
        new_tokens = torch.cat([new_tokens, token], -1)
        want = model(new_tokens).logits[:, -1]
        argument = cache_argument(model)
        with torch.no_grad():
            logits = model(token, use_cache=True, **{argument: cache}).logits[:, -1]
        same(logits, want)


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
    for name, rope in (("turned", model.config), ("stale", still)):
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
    monkeypatch.setattr("pie_rope.huggingface._takes_any_mask", lambda config, rows: False)
    model_type, changes = FREQUENCIES["longrope"]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    new_tokens = edited(tokens, EDITS["insertion"])
    cache = cached(model, tokens, DynamicCache())
    spans = edit_cache(cache, model.config, EDITS["insertion"])
    refused(lambda: encode_spans(model, cache, new_tokens, spans), "a pass that ends at position 24 would take other")
    refused(lambda: encode_spans(model, cache, tokens, spans), "tokens: there are 60, but the cache has [65] rows")


def test_a_refused_cache_is_as_it_was():
    model = model_of("llama", num_hidden_layers=2)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, StaticCache(config=model.config, max_cache_len=64))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    config = model.config

    refused(
        lambda: edit_cache([], config, []),
        "cache: it must be a Cache of transformers, with layers, not list",
        TypeError,
    )
    refused(lambda: edit_cache(DynamicCache(), config, []), "cache: it holds no rows yet")
    refused(lambda: edit_cache(cache, config, [Edit.insert(3, 5)]), "65 rows are more than the 64")
    refused(lambda: edit_cache(cache, config, [Edit.delete(3, 99)]), "edit 0: range 3..99 is outside the 60 old tokens")
    refused(lambda: edit_cache(cache, config, Plan.from_edits(61, [])), "the plan is for 61 rows, the cache holds 60")
    other = transformers.LlamaConfig(**{**SMALL, "hidden_size": 256})
    refused(lambda: edit_cache(cache, other, [Edit.delete(3, 4)]), "it has 1 layers, the cache 2")
    other = transformers.LlamaConfig(**{**SMALL, "hidden_size": 256, "num_hidden_layers": 2})
    refused(
        lambda: edit_cache(cache, other, [Edit.delete(3, 4)]), "turns dimensions 0 to 64 of layer 0, whose keys have 16"
    )
    moved = Plan.from_edits(TOKENS, [Edit.delete(3, 4)], first_position=7)
    refused(lambda: edit_cache(cache, config, moved), "tokens are at other positions than those of their rows")
    # What is wrong with a later layer is seen before the first one is edited.
    keys, cache.layers[1].keys = cache.layers[1].keys, cache.layers[1].keys.double()
    refused(lambda: edit_cache(cache, config, [Edit.delete(3, 4)]), "elements must be float32", TypeError)
    cache.layers[1].keys = keys
    for layer, (keys, values) in zip(cache.layers, before):
        assert (layer.keys == keys).all() and (layer.values == values).all() and int(layer.get_seq_length()) == TOKENS

    model = model_of("gemma3_text", sliding_window=32)
    cache = cached(model, tokens, DynamicCache(config=model.config))
    refused(
        lambda: edit_cache(cache, model.config, [Edit.delete(3, 4)]),
        "layer 0 keeps 31 rows and loses those before them",
    )
    cache = cached(model, tokens, StaticCache(config=model.config, max_cache_len=96))
    refused(
        lambda: edit_cache(cache, model.config, [Edit.delete(3, 4)]),
        "layer 0 keeps 32 rows and loses those before them",
    )
    # A cache that keeps all rows is edited beyond the window, too.
    cache = cached(model, tokens, DynamicCache())
    new_tokens = edited(tokens, EDITS["several"])
    got = encode_spans(model, cache, new_tokens, edit_cache(cache, model.config, EDITS["several"])).logits[:, -1]
    same(got, model(new_tokens).logits[:, -1])
