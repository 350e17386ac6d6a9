"""Keys turn by what the model holds, and not by what its configuration says."""

import math
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import DynamicCache  # noqa: E402

from pie_rope import Edit, ModelRope, Rope  # noqa: E402
from pie_rope.huggingface import cache_argument, edit_cache, encode_spans, model_rope  # noqa: E402
from pie_rope.huggingface.compare import _off  # noqa: E402
from pie_rope.huggingface.ropes import apart  # noqa: E402
from test_huggingface import (  # noqa: E402
    FREQUENCIES,
    LATENT,
    PHIMOE,
    TOKENS,
    VOCABULARY,
    cached,
    edited,
    model_of,
    refused,
    same,
)

DYNAMIC = FREQUENCIES["dynamic"]


def turned_of(model, layer):
    """What turns in a layer."""
    latent = getattr(model.config.get_text_config(), "kv_lora_rank", None) is not None
    return layer.values if latent else layer.keys


def off(got, want):
    """The largest difference of two sets of keys, in parts of the largest of them."""
    assert got.shape == want.shape and want.numel() > 0 and want.isfinite().all()
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(
    "edits",
    [[Edit.insert(20, 4)], [Edit.delete(20, 25)], [Edit.delete(3, 33)], [Edit.insert(20, 70)], [Edit.delete(2, 30)]],
    ids=["insertion", "deletion", "deletion below the original length", "insertion past all", "deletion to it"],
)
@pytest.mark.parametrize("rows", [20 + 40, 32, 31, 33])
def test_dynamic_ntk_after_longer_texts(edits, rows):
    """It remembers the longest sequence that it has seen, until one is shorter than the original length."""
    if any(edit.stop > rows for edit in edits):
        pytest.skip("the edit is behind the end")
    model = model_of(DYNAMIC[0], **DYNAMIC[1])
    cached(model, torch.randint(VOCABULARY, (1, 100)), DynamicCache())
    tokens = torch.randint(VOCABULARY, (1, rows))
    new_tokens = edited(tokens, edits)
    cache = cached(model, tokens, DynamicCache())
    spans = edit_cache(cache, model, edits, tokens=tokens)
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    # The same model, from where it is now: it remembers what it did.
    anew = cached(model, new_tokens, DynamicCache())
    same(cache.layers[0].keys, anew.layers[0].keys)
    with torch.no_grad():
        same(got, model(new_tokens).logits[:, -1])


def test_dynamic_ntk_that_was_forgotten_is_asked_for():
    model = model_of(DYNAMIC[0], **DYNAMIC[1])
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    before = cache.layers[0].keys.clone()
    cached(model, tokens[:, :20], DynamicCache())
    refused(
        lambda: edit_cache(cache, model, [Edit.insert(3, 4)]),
        "remembers a longest sequence of 32 tokens, the cache has 60",
    )
    assert (cache.layers[0].keys == before).all()
    new_tokens = edited(tokens, [Edit.insert(3, 4)])
    spans = edit_cache(cache, model, [Edit.insert(3, 4)], lengths=(60, 64))
    encode_spans(model, cache, new_tokens, spans)
    fresh = model_of(DYNAMIC[0], **DYNAMIC[1])
    same(cache.layers[0].keys, cached(fresh, new_tokens, DynamicCache()).layers[0].keys)


def test_lengths_are_those_of_a_model_that_has_seen_nothing_longer():
    """The cache is older than the longer text, of which the next pass has the frequencies."""
    model = model_of(DYNAMIC[0], **DYNAMIC[1])
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    edits = [Edit.insert(20, 4)]
    new_tokens = edited(tokens, edits)
    cache = cached(model, tokens, DynamicCache())
    cached(model, torch.randint(VOCABULARY, (1, 100)), DynamicCache())
    refused(lambda: edit_cache(cache, model, edits, tokens=tokens), "from those that the model makes of these tokens")
    encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits, lengths=(60, 100)))
    same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)
    fresh = model_of(DYNAMIC[0], **DYNAMIC[1])
    assert model_rope(model, 60) == model_rope(fresh, 60) != model_rope(fresh, 100)


def generated(model, tokens, first):
    """A cache that several passes have filled: the first tokens at once, the others one by one."""
    cache = cached(model, tokens[:, :first], DynamicCache())
    for row in range(first, tokens.shape[-1]):
        cached(model, tokens[:, row : row + 1], cache)
    return cache


@pytest.mark.parametrize("rope_type", FREQUENCIES)
def test_keys_of_passes_on_both_sides_of_a_switch_are_refused(rope_type):
    model = model_of(FREQUENCIES[rope_type][0], **FREQUENCIES[rope_type][1])
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = generated(model, tokens, 30)
    before = cache.layers[0].keys.clone()
    text = "from those that the model makes of these tokens"
    refused(lambda: edit_cache(cache, model, [Edit.delete(50, 52)], tokens=tokens), text)
    assert (cache.layers[0].keys == before).all()
    # Without them it is seen before the new rows are encoded.
    edits = [Edit.replace(50, 52, 2)]
    spans = edit_cache(cache, model, edits)
    before = cache.layers[0].keys.clone()
    refused(lambda: encode_spans(model, cache, edited(tokens, edits), spans), text)
    assert (cache.layers[0].keys == before).all()
    # Of the right ones nothing is refused, token by token or not.
    short = tokens[:, :30]
    cache = generated(model, short, 10)
    new_tokens = edited(short, [Edit.replace(5, 7, 2)])
    spans = edit_cache(cache, model, [Edit.replace(5, 7, 2)], tokens=short)
    encode_spans(model, cache, new_tokens, spans)
    same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)


def test_a_model_that_went_on_between_both_functions_is_refused():
    model = model_of(DYNAMIC[0], **DYNAMIC[1])
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    new_tokens = edited(tokens, [Edit.insert(20, 4)])
    spans = edit_cache(cache, model, [Edit.insert(20, 4)])
    cached(model, torch.randint(VOCABULARY, (1, 100)), DynamicCache())
    before = cache.layers[0].keys.clone()
    refused(
        lambda: encode_spans(model, cache, new_tokens, spans),
        "the model's next pass would take other frequencies than the cache's keys have",
    )
    assert (cache.layers[0].keys == before).all()


def test_other_tokens_than_the_caches_are_refused():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (2, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    before = cache.layers[0].keys.clone()
    refused(
        lambda: edit_cache(cache, model, [Edit.delete(3, 4)], tokens=(tokens + 1) % VOCABULARY),
        "from those that the model makes of these tokens: the tokens are others",
    )
    refused(
        lambda: edit_cache(cache, model, [Edit.delete(3, 4)], tokens=tokens[:, 1:]),
        "tokens: they must be of [2, 60], as the cache's rows, not [2, 59]",
    )
    cache.layers[0].keys[0, 0, -1, 0] = torch.nan
    refused(lambda: edit_cache(cache, model, [Edit.delete(3, 4)], tokens=tokens), "off by nan of their size")
    cache.layers[0].keys[0, 0, -1, 0] = before[0, 0, -1, 0]
    assert (cache.layers[0].keys == before).all()
    edit_cache(cache, model, [Edit.delete(3, 4)], tokens=tokens)


def test_what_is_no_number_is_far_from_everything():
    assert apart([1.0, 0.0, 0.5], [1.0, 0.0, 0.25]) == 0.5
    for bad in (math.nan, math.inf):
        for place in range(2):
            other = [1.0, 0.5]
            other[place] = bad
            assert apart([1.0, 0.5], other) == apart(other, [1.0, 0.5]) == math.inf
    rope = Rope.from_theta(1e4, 4)
    keys = torch.zeros(3, 1, 4)
    assert _off(keys, 5, rope) == 0
    keys[:] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert _off(keys, 5, None) == 0
    for at in (0, 2):
        bad = keys.clone()
        bad[at, 0, 1] = math.nan
        assert math.isnan(_off(bad, 5, rope)) and math.isnan(_off(bad, 5, None))


CAST = {
    "llama": ("llama", dict(max_position_embeddings=2048)),
    "partial": ("phi3", dict(partial_rotary_factor=0.5, max_position_embeddings=2048)),
    "latent": ("deepseek_v3", {**LATENT, "max_position_embeddings": 2048}),
    "latent in pairs": ("deepseek_v2", {**LATENT, "max_position_embeddings": 2048}),
    "by layer type": ("gemma3_text", dict(
        num_hidden_layers=3, sliding_window=2048, max_position_embeddings=2048, head_dim=32,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=1e4),
            "full_attention": dict(rope_type="linear", rope_theta=1e6, factor=8.0),
        },
    )),
    "by layer type, ModernBERT": ("modernbert-decoder", dict(
        num_hidden_layers=4, max_position_embeddings=2048, local_attention=4096, initializer_range=0.2, pad_token_id=0,
        cls_token_id=1, sep_token_id=2,
    )),
    "some layers without": ("smollm3", dict(
        num_key_value_heads=2, num_hidden_layers=4, max_position_embeddings=2048, no_rope_layer_interval=4,
        pad_token_id=0,
    )),
    "computed anew": ("phimoe", {**PHIMOE, "max_position_embeddings": 2048}),
    "longrope": (FREQUENCIES["longrope"][0], {**FREQUENCIES["longrope"][1], "max_position_embeddings": 2048}),
    "dynamic": (DYNAMIC[0], {**DYNAMIC[1], "max_position_embeddings": 32}),
    "a table of sines": ("gptj", dict(n_positions=2048)),
    "multimodal": ("qwen2", dict(num_key_value_heads=2, max_position_embeddings=2048)),
}  # fmt: skip


@pytest.mark.parametrize("delta", [100, 1000])
@pytest.mark.parametrize("which", CAST)
def test_a_cast_rounds_frequencies(which, delta):
    """The keys of the first layer, far on, as the model makes them; bfloat16's own rounding is 2 ** -8."""
    model_type, changes = CAST[which]
    model = model_of(model_type, **changes).to(torch.bfloat16)
    tokens = torch.randint(VOCABULARY, (1, 40))
    edits = [Edit.insert(3, delta)]
    new_tokens = edited(tokens, edits)
    cache = cached(model, tokens, DynamicCache())
    other = cached(model, tokens, DynamicCache())
    spans = edit_cache(cache, model, edits)
    encode_spans(model, cache, new_tokens, spans)
    anew = cached(model, new_tokens, DynamicCache())
    got, want = (turned_of(model, one.layers[0]).float() for one in (cache, anew))
    assert off(got, want) < 2e-2
    # By the configuration they are far off, but for models whose frequencies stay in float32.
    if which not in ("computed anew", "a table of sines", "dynamic"):
        edit_cache(other, model.config, edits)
        kept = slice(3 + delta, None)
        by_config = off(turned_of(model, other.layers[0]).float()[:, :, kept], want[:, :, kept])
        # (5.15 makes LongRoPE's long ones anew, in float32.)
        rounded = which != "longrope" or model.model.rotary_emb.inv_freq.dtype == torch.bfloat16
        assert delta < 1000 or not rounded or by_config > 2.5 * off(got, want), by_config
    # Deeper layers have hidden states that differ, and ropes of their own.
    live = model_rope(model, 40 + delta)
    said = ModelRope.from_config(model.config, 0 if which == "computed anew" else 40 + delta)
    for layer in range(said.layers):
        one, other = live.layer(layer), said.layer(layer)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(torch.tensor(one.inv_freq), torch.tensor(other.inv_freq), rtol=2**-8, atol=0)
            assert (one.pairing, one.offset) == (other.pairing, other.offset)


@pytest.mark.parametrize("which", ["by layer type", "by layer type, ModernBERT"])
def test_live_frequencies_are_those_of_the_modules(which):
    model = model_of(CAST[which][0], **CAST[which][1]).to(torch.bfloat16)
    assert len(set(model.config.layer_types)) == 2
    rotary, live = model.model.rotary_emb, model_rope(model)
    for layer, kind in enumerate(model.config.layer_types):
        assert live.layer(layer).inv_freq == getattr(rotary, f"{kind}_inv_freq").double().tolist()


def test_replaced_frequencies_are_used_and_said():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    edits = [Edit.insert(3, 4)]
    new_tokens = edited(tokens, edits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit_cache(cached(model, tokens, DynamicCache()), model, edits)
    model.model.rotary_emb.inv_freq.mul_(0.5)
    cache = cached(model, tokens, DynamicCache())
    with pytest.warns(
        UserWarning, match=r"pair \d of layer 0 turns by .* in its rotary module, but by .* by its config"
    ):
        spans = edit_cache(cache, model, edits)
    encode_spans(model, cache, new_tokens, spans)
    same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)


def test_keys_that_turn_otherwise_are_refused(monkeypatch):
    """A model whose code pairs other components than its kind is known for: seen on one token."""
    from transformers.models.llama import modeling_llama

    def rotate_pairs(x):
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    def apply(q, k, cos, sin, *args, **kwargs):
        cos, sin = (part[..., : part.shape[-1] // 2].repeat_interleave(2, -1).unsqueeze(1) for part in (cos, sin))
        return q * cos + rotate_pairs(q) * sin, k * cos + rotate_pairs(k) * sin

    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", apply)
    for module in model.modules():
        if hasattr(module, "rotary_fn"):
            monkeypatch.setattr(module, "rotary_fn", apply)
    cache = cached(model, tokens, DynamicCache())
    before = cache.layers[0].keys.clone()
    edits = [Edit.insert(3, 4)]
    refused(lambda: edit_cache(cache, model, edits), "keys of layer 0 of this `llama` do not turn as")
    assert (cache.layers[0].keys == before).all()
    # The way out that it names.
    rope = Rope.from_theta(1e4, 16, pairing="interleaved")
    spans = edit_cache(cache, ModelRope.uniform(rope, 1), edits)
    new_tokens = edited(tokens, edits)
    encode_spans(model, cache, new_tokens, spans)
    same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)


@pytest.mark.parametrize("rope_type", [None, *FREQUENCIES])
def test_looking_leaves_nothing_behind(rope_type):
    model_type, changes = FREQUENCIES.get(rope_type, ("llama", {}))
    model = model_of(model_type, **changes).train()
    model.model.embed_tokens.eval()
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    rotary = model.model.rotary_emb

    def state():
        buffers = {name: (id(buffer), buffer.clone()) for name, buffer in rotary.named_buffers()}
        others = {name: value for name, value in vars(rotary).items() if isinstance(value, (int, float, str))}
        seen = int(rotary.max_seq_len_cached) if hasattr(rotary, "max_seq_len_cached") else None
        modes = [module.training for module in model.modules()]
        return buffers, others, seen, modes, torch.get_rng_state()

    before = state()
    model_rope(model, 20)
    edit_cache(cache, model, [Edit.delete(3, 5)], tokens=tokens)
    after = state()
    assert before[1:4] == after[1:4] and torch.equal(before[4], after[4])
    assert before[0].keys() == after[0].keys()
    for name, (address, buffer) in before[0].items():
        assert after[0][name][0] == address and torch.equal(after[0][name][1], buffer)


@pytest.mark.parametrize("rope_type", [None, *FREQUENCIES])
def test_both_functions_in_inference_mode(rope_type):
    model_type, changes = FREQUENCIES.get(rope_type, ("llama", {}))
    model, fresh = (model_of(model_type, **changes) for _ in range(2))
    tokens = torch.randint(VOCABULARY, (1, 29))
    edits = [Edit.insert(3, 6)]
    new_tokens = edited(tokens, edits)
    with torch.inference_mode():
        for _ in range(2):
            cache = cached(model, tokens, DynamicCache())
            encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits, tokens=tokens))
        same(cache.layers[0].keys, cached(fresh, new_tokens, DynamicCache()).layers[0].keys)
    # And outside of it, with what was made in it.
    cache = cached(model, tokens, DynamicCache())
    encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits, tokens=tokens))


@pytest.mark.parametrize("theta", [1e4, 5e6])
def test_a_model_whose_frequencies_are_not_those_that_it_holds(theta, monkeypatch):
    """As PhiMoE, but nobody has said so: what it holds is rounded, what it turns by is not. The keys show it, also
    where the rounding makes less of a difference than the type may."""
    from transformers.models.llama import modeling_llama

    def forward(self, x, position_ids):
        inv_freq, _ = self.compute_default_rope_parameters(self.config)
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", forward)
    rope = dict(rope_type="default", rope_theta=theta)
    model = model_of("llama", max_position_embeddings=2048, rope_parameters=rope).to(torch.bfloat16)
    tokens = torch.randint(VOCABULARY, (1, 40))
    edits = [Edit.insert(3, 1000)]
    new_tokens = edited(tokens, edits)
    cache = cached(model, tokens, DynamicCache())
    spans = edit_cache(cache, model, edits)
    assert spans.ropes == ModelRope.from_config(model.config)
    encode_spans(model, cache, new_tokens, spans)
    want = cached(model, new_tokens, DynamicCache()).layers[0].keys.float()
    assert off(cache.layers[0].keys.float(), want) < 2e-2


def test_a_model_is_looked_at_once(monkeypatch):
    """And again after a cast, which rounds its frequencies."""
    model = model_of("llama", num_hidden_layers=3)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    passes, layers = [], []
    model.model.embed_tokens.register_forward_hook(lambda module, given, made: passes.append(tuple(given[0].shape)))
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, given: layers.append(module))
    for _ in range(3):
        edit_cache(cache, model, [Edit.delete(3, 5)])
    # Two short passes, which end in the first layer.
    assert passes == [(3, 1), (1, 1)] and layers == [model.model.layers[0]] * 2
    model.to(torch.bfloat16)
    cache = cached(model, tokens, DynamicCache())
    passes.clear()
    for _ in range(2):
        edit_cache(cache, model, [Edit.delete(3, 5)])
    assert passes == [(3, 1), (1, 1)]


def test_a_configuration_is_as_good_where_nothing_was_cast():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    caches = [cached(model, tokens, DynamicCache()) for _ in range(4)]
    given = (model, model.config, model.config.to_dict(), model.config.to_json_string(use_diff=False))
    for cache, one in zip(caches, given, strict=True):
        edit_cache(cache, one, [Edit.delete(3, 5)])
        torch.testing.assert_close(cache.layers[0].keys, caches[0].layers[0].keys, rtol=0, atol=1e-5)
    assert model_rope(model.config, 7) == ModelRope.from_config(model.config, 7)
    assert cache_argument(model) in ("cache", "past_key_values")
