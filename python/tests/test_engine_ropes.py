"""The ropes of vLLM and SGLang, beside their rules as published, stated anew in float32 as they compute them.

vLLM: vllm/model_executor/layers/rotary_embedding, SGLang: sglang/srt/layers/rotary_embedding, at the commits that
``help(pie_rope.vllm.model_rope)`` and ``help(pie_rope.sglang.model_rope)`` name.
"""

import json
import math

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

import pie_rope  # noqa: E402
from pie_rope import ModelRope, Plan, Rotations, sglang, vllm  # noqa: E402

HEAD, LAYERS, TRAINED = 64, 3, 4096
LLAMA = dict(
    model_type="llama", hidden_size=4 * HEAD, num_attention_heads=4, num_hidden_layers=LAYERS,
    max_position_embeddings=TRAINED, rope_theta=10_000.0,
)  # fmt: skip
f32 = np.float32


def config(rope=None, **changes):
    made = {**LLAMA, **changes}
    return made if rope is None else {**made, "rope_scaling": rope}


# What the engines' classes compute.


def plain(base, dim=HEAD):
    return f32(1) / np.power(f32(base), np.arange(0, dim, 2, dtype=f32) / f32(dim), dtype=f32)


def dynamic(base, factor, longest, dim=HEAD):
    """DynamicNTKScalingRotaryEmbedding: once, for the longest sequence after scaling."""
    longest_scaled = longest * factor
    return plain(base * ((factor * longest_scaled / longest) - (factor - 1)) ** (dim / (dim - 2)), dim)


def long_rope(base, factors, dim=HEAD):
    """Phi3LongRoPEScaledRotaryEmbedding."""
    return f32(1) / (np.asarray(factors, f32) * np.power(f32(base), np.arange(0, dim, 2, dtype=f32) / f32(dim)))


def yarn(base, factor, original, fast=32, slow=1, truncate=True, dim=HEAD):
    """YaRNScalingRotaryEmbedding."""

    def index(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2, dtype=f32) - f32(low)) / f32(max(high - low, 0.001)), 0, 1)
    positions = np.power(f32(base), np.arange(0, dim, 2, dtype=f32) / f32(dim))
    return f32(1) / (f32(factor) * positions) * ramp + f32(1) / positions * (1 - ramp)


def llama3(base, factor, low, high, original, dim=HEAD):
    """Llama3RotaryEmbedding."""
    f = plain(base, dim)
    wave = f32(2 * math.pi) / f
    smooth = (f32(original) / wave - f32(low)) / f32(high - low)
    between = (1 - smooth) * f / f32(factor) + smooth * f
    return np.where(wave < original / high, f, np.where(wave > original / low, f / f32(factor), between))


def alike(rope, want):
    """Six roundings of float32 each, as scripts/reference_vectors.py has them, and a few for the sums of YaRN."""
    assert len(rope.inv_freq) == len(want)
    np.testing.assert_allclose(rope.inv_freq, np.asarray(want, float), rtol=2e-6)


ENGINES = {"vllm": vllm, "sglang": sglang}
LONG = dict(
    type="longrope", short_factor=[1.0 + i / 64 for i in range(32)], long_factor=[1.0 + i for i in range(32)],
    original_max_position_embeddings=TRAINED,
)  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_where_engines_go_as_transformers(engine):
    model_rope = ENGINES[engine].model_rope
    alike(model_rope(config(), 8192).layer(1), plain(1e4))
    alike(model_rope(config(dict(type="linear", factor=4.0)), 8192).layer(1), plain(1e4) / f32(4))
    three = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=2048,
    )  # fmt: skip
    alike(model_rope(config(three), 8192).layer(2), llama3(1e4, 8.0, 1.0, 4.0, 2048))
    for more in ({}, dict(beta_fast=16, beta_slow=2), dict(truncate=False)):
        said = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=TRAINED, **more)
        want = yarn(1e4, 4.0, TRAINED, more.get("beta_fast", 32), more.get("beta_slow", 1), more.get("truncate", True))
        alike(model_rope(config(said, max_position_embeddings=4 * TRAINED), 8192).layer(0), want)
    # By layer, and pairs of neighbours.
    gemma = dict(
        model_type="gemma3_text", hidden_size=256, num_attention_heads=4, head_dim=HEAD, num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=TRAINED,
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=1e4),
            "full_attention": dict(rope_type="linear", rope_theta=1e6, factor=8.0),
        },
    )  # fmt: skip
    rope = model_rope(gemma, 8192)
    alike(rope.layer(0), plain(1e4))
    alike(rope.layer(1), plain(1e6) / f32(8))
    cohere = dict(model_type="cohere", hidden_size=256, num_attention_heads=4, num_hidden_layers=2, rope_theta=8e6)
    assert model_rope(cohere, 8192).layer(0).pairing == "interleaved"
    deepseek = dict(
        model_type="deepseek_v3", num_hidden_layers=2, kv_lora_rank=512, qk_rope_head_dim=64, rope_theta=1e4,
        rope_scaling=dict(type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1),
    )  # fmt: skip
    rope = model_rope(deepseek, 8192).layer(0)
    assert (rope.offset, rope.pairing) == (512, "interleaved")
    alike(rope, yarn(1e4, 40, 4096))
    assert model_rope(json.dumps(config()), 8192) == model_rope(config(), 8192)
    model = ModelRope.from_config(config())
    assert model_rope(model, 8192) == model


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("factor", [2.0, 4.0, 2.5])
def test_dynamic_ntk_has_one_theta_for_all_lengths(engine, factor):
    for name in ("type", "rope_type"):
        said = config({name: "dynamic", "factor": factor})
        rope = ENGINES[engine].model_rope(said, 16_384)
        for layer in range(LAYERS):
            alike(rope.layer(layer), dynamic(1e4, factor, TRAINED))
        # Not as transformers has it, up to the longest sequence.
        assert max(abs(np.array(rope.layer(0).inv_freq) / ModelRope.from_config(said, 100).layer(0).inv_freq - 1)) > 0.5
    # Of one type of layers alone.
    gemma = dict(
        model_type="gemma3_text", hidden_size=256, num_attention_heads=4, head_dim=HEAD, num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=TRAINED,
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=1e4),
            "full_attention": dict(rope_type="dynamic", rope_theta=1e6, factor=factor),
        },
    )  # fmt: skip
    rope = ENGINES[engine].model_rope(gemma, 16_384)
    alike(rope.layer(0), plain(1e4))
    alike(rope.layer(1), dynamic(1e6, factor, TRAINED))


def test_vllm_takes_long_factors_at_every_length():
    for limit, factors in ((TRAINED - 1, "short"), (TRAINED, "short"), (TRAINED + 1, "long"), (131_072, "long")):
        for beside in (False, True):
            said = dict(LONG)
            made = config(said, max_position_embeddings=131_072, model_type="phi3")
            if beside:
                made["original_max_position_embeddings"] = said.pop("original_max_position_embeddings")
            alike(vllm.model_rope(made, limit).layer(0), long_rope(1e4, LONG[f"{factors}_factor"]))
    old = dict(LONG, type="su")
    alike(vllm.model_rope(config(old, model_type="phi3"), 131_072).layer(0), long_rope(1e4, LONG["long_factor"]))


def test_keys_that_vllm_made_turn_by_its_factors():
    """As its kernel makes a key at one position and at another. By the short factors it is off by as much as a key."""
    made = config(LONG, max_position_embeddings=131_072, model_type="phi3")
    key = np.random.default_rng(1).standard_normal(HEAD).astype(f32)

    def at(position):
        angles = f32(position) * long_rope(1e4, LONG["long_factor"])
        cos, sin = np.cos(angles), np.sin(angles)
        one, other = key[:32], key[32:]
        return np.concatenate([one * cos - other * sin, other * cos + one * sin])

    off = {}
    for name, rope in (("vllm", vllm.model_rope(made, 131_072)), ("transformers", ModelRope.from_config(made, 3000))):
        turned = at(1000).reshape(1, 1, 1, HEAD).copy()
        pie_rope.rotate(Rotations(Plan.from_positions([1000], [1300]), rope.layer(0)), turned)
        off[name] = float(np.abs(turned[0, 0, 0] - at(1300)).max())
    assert off["vllm"] < 1e-3 and off["transformers"] > 1, off


def test_vllm_has_a_longer_ramp_of_yarn_under_m_rope():
    said = dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=TRAINED, mrope_section=[8, 12, 12],
    )  # fmt: skip
    made = config(said, model_type="qwen2_vl_text", max_position_embeddings=4 * TRAINED)
    alike(vllm.model_rope(made, 8192).layer(0), yarn(1e4, 4.0, 4 * TRAINED))
    alike(sglang.model_rope(made, 8192).layer(0), yarn(1e4, 4.0, TRAINED))
    assert said["original_max_position_embeddings"] == TRAINED, "the caller's own configuration stays"
    del said["rope_type"], said["factor"], said["original_max_position_embeddings"]
    alike(vllm.model_rope(config(dict(said, type="mrope"), model_type="qwen2_vl_text"), 8192).layer(0), plain(1e4))


def test_sglang_does_not_tell_which_factors_a_key_has():
    made = config(LONG, max_position_embeddings=131_072, model_type="phi3")
    alike(sglang.model_rope(made, TRAINED).layer(0), long_rope(1e4, LONG["short_factor"]))
    with pytest.raises(ValueError, match="long factors for all requests of a forward pass .* `context_length` of 4097"):
        sglang.model_rope(made, TRAINED + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_llama_4_is_in_halves(engine):
    made = dict(
        model_type="llama4_text", hidden_size=256, num_attention_heads=4, head_dim=HEAD, num_hidden_layers=4,
        rope_theta=5e5, no_rope_layers=[1, 1, 1, 0], max_position_embeddings=TRAINED,
    )  # fmt: skip
    assert ModelRope.from_config(made).layer(0).pairing == "interleaved"
    for one in (made, dict(model_type="llama4", text_config=made)):
        rope = ENGINES[engine].model_rope(one, 8192)
        assert rope.layer(0).pairing == "half-split" and rope.layer(3) is None
        alike(rope.layer(0), plain(5e5))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_followed_is_refused_by_name(engine):
    model_rope, name = ENGINES[engine].model_rope, {"vllm": "vLLM", "sglang": "SGLang"}[engine]
    chunks = dict(chunk_size=262144, local_size=8192, original_max_position_embeddings=262144)
    for made, text in (
        (config(dual_chunk_attention_config=chunks), f"under dual chunk attention .* {name} turns a key"),
        (config(dict(type="yarn", factor=2.0)), f"{name} needs `factor` and `original_max_position_embeddings`"),
        (config(dict(type="yarn", original_max_position_embeddings=9)), f"{name} needs `factor`"),
        (config(dict(type="dynamic")), f"{name} needs a `factor` or an `alpha`"),
        (
            config(dict(type="yarn", factor=2.0, original_max_position_embeddings=9, extrapolation_factor=0.5)),
            f"{name} weighs YaRN's ramp by an `extrapolation_factor`, here 0.5",
        ),
        (config(dict(rope_type="default", use_fope=True)), "Fourier position embedding"),
        (config(dict(type="ntk", factor=2.0)), "is `ntk`"),
        (config(dict(type="xdrope", alpha=2.0)), "is `xdrope`"),
        (config(dict(type="longrope", short_factor=[1.0] * 32, long_factor=[1.0] * 32)), f"{name} needs `original_"),
        (config(model_type="minicpm3"), "`minicpm3` has a latent attention"),
        (config(model_type="mistral", partial_rotary_factor=0.5), f"`mistral` has a .* of 0.5, .* {name} does is not"),
        (config(partial_rotary_factor=1.5), "`partial_rotary_factor` is 1.5"),
        (config(partial_rotary_factor=0.3), "makes 19 dimensions turn: they are no pairs"),
        (config(dict(type="dynamic", factor=2.0), rope_parameters=dict(rope_type="default")), "it is dynamic, but"),
        (
            config(dict(type="linear", factor=2.0), rope_parameters=dict(rope_type="linear", factor=4.0)),
            "contradicts rope_parameters",
        ),
        (config(model_type="what"), "`what` is not a model type"),
    ):
        with pytest.raises(ValueError, match=text):
            model_rope(made, 8192)
    argument = {"vllm": "max_model_len", "sglang": "context_length"}[engine]
    with pytest.raises(ValueError, match=f"{argument}: it is 0"):
        model_rope(config(), 0)
    with pytest.raises(TypeError):
        model_rope(config(), None)
    with pytest.raises(TypeError, match="hf_config: it must be a configuration of transformers, a dict of it"):
        model_rope(None, 8192)
    with pytest.raises(ValueError, match="hf_config: it is not the text of a config.json"):
        model_rope("llama", 8192)


@pytest.mark.parametrize("engine", ENGINES)
def test_configurations_of_transformers(engine):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=TRAINED,
        rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4),
    )  # fmt: skip
    alike(ENGINES[engine].model_rope(made, 8192).layer(0), dynamic(1e4, 2.0, TRAINED))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("factor", [0.5, 0.35])
def test_llama_turns_a_part_of_its_heads(engine, factor):
    """LlamaAttention of both: ``rotary_dim = int(partial_rotary_factor * head_dim)``, under every scaling."""
    model_rope, dim = ENGINES[engine].model_rope, int(factor * HEAD)
    alike(model_rope(config(partial_rotary_factor=factor), 8192).layer(0), plain(1e4, dim))
    alike(model_rope(config(partial_rotary_factor=factor, head_dim=80), 8192).layer(0), plain(1e4, int(factor * 80)))
    inside = dict(rope_type="linear", factor=4.0, rope_theta=1e4, partial_rotary_factor=factor)
    said = config(rope_parameters=inside)
    alike(model_rope(said, 8192).layer(2), plain(1e4, dim) / f32(4))
    assert inside["partial_rotary_factor"] == factor, "the caller's own configuration stays"
    stretched = config(dict(type="dynamic", factor=2.0), partial_rotary_factor=factor)
    alike(model_rope(stretched, 8192).layer(0), dynamic(1e4, 2.0, TRAINED, dim))
    # Where transformers looks at it as well.
    phi = config(model_type="phi", partial_rotary_factor=factor)
    assert model_rope(phi, 8192) == ModelRope.from_config(phi)
    assert model_rope(phi, 8192).layer(0).rotary_dim == dim
    assert model_rope(config(model_type="mistral", partial_rotary_factor=1.0), 8192).layer(0).rotary_dim == HEAD


def test_sglangs_llama_may_have_neighbours_for_pairs():
    for style, pairing in ((True, "half-split"), (False, "interleaved"), (None, "half-split")):
        rope = sglang.model_rope(config(rope_is_neox_style=style), 8192).layer(0)
        assert rope.pairing == pairing
        alike(rope, plain(1e4))
        assert vllm.model_rope(config(rope_is_neox_style=style), 8192).layer(0).pairing == "half-split"
    assert sglang.model_rope(config(model_type="cohere", rope_is_neox_style=False), 8192).layer(0) is not None
    for kind, style in (("mistral", False), ("cohere", True)):
        with pytest.raises(ValueError, match=f"`{kind}` has a `rope_is_neox_style` of {style}"):
            sglang.model_rope(config(model_type=kind, rope_is_neox_style=style), 8192)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_with_both_forms(engine):
    """transformers believes the older one, and so is it done here; what differs in type is refused (see above)."""
    model_rope = ENGINES[engine].model_rope
    both = config(
        dict(type="dynamic", factor=2.0), rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)
    )
    alike(model_rope(both, 8192).layer(0), dynamic(1e4, 2.0, TRAINED))
    # The newer one says nothing of a type but that of transformers' default.
    alike(model_rope(config(dict(type="default"), rope_parameters=dict(rope_theta=1e4)), 8192).layer(0), plain(1e4))
    gemma = dict(
        model_type="gemma3_text", hidden_size=256, num_attention_heads=4, head_dim=HEAD, num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=TRAINED,
        rope_scaling=dict(rope_type="linear", factor=8.0),
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=1e4),
            "full_attention": dict(rope_type="linear", rope_theta=1e6, factor=8.0),
        },
    )  # fmt: skip
    rope = model_rope(gemma, 8192)
    alike(rope.layer(0), plain(1e4))
    alike(rope.layer(1), plain(1e6) / f32(8))
    gemma["rope_scaling"] = dict(rope_type="dynamic", factor=8.0)
    with pytest.raises(ValueError, match="rope_scaling: it is dynamic, but `rope_parameters` are default and linear"):
        model_rope(gemma, 8192)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_text_part_that_does_not_say_its_type(engine):
    """It is the outer one's, as the crate's reader has it."""
    model_rope = ENGINES[engine].model_rope
    text = dict(hidden_size=256, num_attention_heads=4, head_dim=HEAD, num_hidden_layers=7)
    whole = dict(model_type="gemma3", text_config=text)
    assert model_rope(whole, 8192) == ModelRope.from_config(whole) == model_rope(json.dumps(whole), 8192)
    assert "model_type" not in text
    deeper = dict(model_type="qwen2_5_omni", thinker_config=dict(text_config=dict(text, model_type="llama")))
    assert model_rope(deeper, 8192) == ModelRope.from_config(deeper)
    decoder = dict(text, model_type="t5_gemma_module")
    whole = dict(model_type="t5gemma", encoder=dict(decoder), decoder=decoder)
    assert model_rope(whole, 8192) == ModelRope.from_config(whole)
