"""The ropes of a model as engines have them: what vLLM and SGLang do alike, and not as transformers does."""

import json
from collections.abc import Callable
from typing import Any, Literal

from . import _config
from ._native import ModelRope, Rope


def model_rope(
    engine: str, hf_config: Any, longrope: Callable[[int], int], *, mrope_yarn: int = 1, llama_style: bool = False
) -> ModelRope:
    """``longrope``: of LongRoPE's original length, a length of which transformers takes the factors that the engine
    takes. ``mrope_yarn``: by how much the original length of YaRN is multiplied under M-RoPE. ``llama_style``: whether
    its Llama looks at ``rope_is_neox_style``."""
    if isinstance(hf_config, ModelRope):
        return hf_config
    config = _as_dict(hf_config)
    kind = config.get("model_type")
    if config.get("dual_chunk_attention_config") is not None:
        raise ValueError(
            f"hf_config: under dual chunk attention (`dual_chunk_attention_config`) {engine} turns a key by its place"
            " in its chunk, so that no turn by a number of rows follows"
        )
    if kind == "minicpm3":
        raise ValueError(f"hf_config: `minicpm3` has a latent attention of which {engine} caches whole keys")
    by_type = _one_form(config)
    _narrow(engine, config, by_type)
    tokens = 0
    stretched: set[str | None] = set()
    for layer_type, said in by_type.items():
        name = _config.rope_type(said)
        # Phi-3's first files said yarn and meant LongRoPE.
        if name == "longrope" or name == "yarn" and "short_factor" in said:
            original = config.get("original_max_position_embeddings") or said.get("original_max_position_embeddings")
            if original is None:
                raise ValueError(f"hf_config: {engine} needs `original_max_position_embeddings` for LongRoPE")
            tokens = longrope(original)
        elif name == "yarn":
            _check_yarn(engine, config, said)
            if "mrope_section" in said:
                said["original_max_position_embeddings"] *= mrope_yarn
        elif name == "dynamic" and not said.get("alpha"):
            if not said.get("factor"):
                raise ValueError(f"hf_config: {engine} needs a `factor` or an `alpha` for dynamic NTK")
            stretched.add(layer_type)
        if said.get("use_fope"):
            raise ValueError("hf_config: Fourier position embedding (`use_fope`) is more than a turn")
    rope = ModelRope.from_config(config, tokens)
    if stretched:
        rope = _stretched(rope, config, by_type, stretched)
    # Their loaders reorder the weights of queries and keys, so that halves are pairs.
    if kind in ("llama4", "llama4_text"):
        rope = rope.stored(pairing="half-split")
    return _styled(engine, config, rope) if llama_style else rope


def _as_dict(hf_config: Any) -> dict[str, Any]:
    """A copy of the part that is about text."""
    part = _config.text(hf_config, "hf_config")
    config: dict[str, Any] = json.loads(
        json.dumps(part) if isinstance(part, dict) else part.to_json_string(use_diff=False)
    )
    return config


def _one_form(config: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    """What is said of ropes, by the type of layers, and in one entry from here on."""
    name, by_type = _config.believed(config)
    other = {"rope_scaling": "rope_parameters", "rope_parameters": "rope_scaling"}[name]
    if config.get(name) and config.get(other):
        # Refused where they contradict each other in anything else.
        ModelRope.from_config(config)
    config.pop(other, None)
    return by_type


def _narrow(engine: str, config: dict[str, Any], by_type: dict[str | None, dict[str, Any]]) -> None:
    """The engines' Llama turns the part of a head that ``partial_rotary_factor`` says, that of transformers the whole.
    Whether others of which transformers does not look at it do is not known."""
    name, kind = "partial_rotary_factor", config.get("model_type")
    places = [place for place in (*by_type.values(), config) if isinstance(place.get(name), (int, float))]
    factor = places[0][name] if places else 1
    if factor == 1 or config.get("kv_lora_rank"):
        return
    if kind == "llama":
        if not 0 < factor < 1:
            raise ValueError(f"hf_config: `{name}` is {factor}, which is no part of a head")
        heads = config.get("num_attention_heads") or 1
        dim = int(factor * (config.get("head_dim") or config.get("hidden_size", 0) // heads))
        if dim % 2:
            raise ValueError(f"hf_config: `{name}` is {factor}, which makes {dim} dimensions turn: they are no pairs")
        config["head_dim"] = dim
        for place in places:
            del place[name]
        return
    try:
        held = ModelRope.from_config(config)
        before = [place[name] for place in places]
        for place in places:
            place[name] = 1.0
        whole = ModelRope.from_config(config)
        for place, said in zip(places, before, strict=True):
            place[name] = said
    except ValueError:
        # What is wrong with it is said where it is read.
        return
    if held == whole:
        raise ValueError(
            f"hf_config: `{kind}` has a `{name}` of {factor}, at which transformers does not look for it, and whether"
            f" {engine} does is not known: `Rope.from_theta` and `Rope.from_scaling` take the dimensions that turn"
        )


def _styled(engine: str, config: dict[str, Any], rope: ModelRope) -> ModelRope:
    """``rope_is_neox_style``, where it is said: whether halves are pairs."""
    if (style := config.get("rope_is_neox_style")) is None:
        return rope
    pairing: Literal["half-split", "interleaved"] = "half-split" if style else "interleaved"
    if config.get("model_type") == "llama":
        return rope.stored(pairing=pairing)
    if any(one is not None and one.pairing != pairing for one in map(rope.layer, range(rope.layers))):
        raise ValueError(
            f"hf_config: `{config.get('model_type')}` has a `rope_is_neox_style` of {style}, its keys in transformers"
            f" are {'interleaved' if style else 'half-split'}, and whether {engine} looks at it is not known:"
            " `Rope.from_theta` takes a `pairing`"
        )
    return rope


def _check_yarn(engine: str, config: dict[str, Any], said: dict[str, Any]) -> None:
    original = said.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if original is None or not said.get("factor"):
        raise ValueError(f"hf_config: {engine} needs `factor` and `original_max_position_embeddings` for YaRN")
    said["original_max_position_embeddings"] = original
    config.pop("original_max_position_embeddings", None)
    if said.get("extrapolation_factor", 1) != 1:
        raise ValueError(
            f"hf_config: {engine} weighs YaRN's ramp by an `extrapolation_factor`, here"
            f" {said['extrapolation_factor']}, which is not known here: `Rope.from_inv_freq` takes any frequencies"
        )


def _stretched(
    rope: ModelRope, config: dict[str, Any], said: dict[str | None, dict[str, Any]], types: set[str | None]
) -> ModelRope:
    """Dynamic NTK, once and for all lengths: theta is multiplied as for ``factor`` times the longest sequence."""
    layer_types = config.get("layer_types") or ()
    layers: list[Rope | None] = []
    for index in range(rope.layers):
        one = rope.layer(index)
        layer_type = layer_types[index] if None not in said and index < len(layer_types) else None
        if one is not None and layer_type in types:
            factor, dim = said[layer_type]["factor"], one.rotary_dim
            growth = factor * factor - (factor - 1)
            frequencies = [f * growth ** (-2 * pair / (dim - 2)) for pair, f in enumerate(one.inv_freq)]
            one = Rope.from_inv_freq(frequencies, pairing=one.pairing, offset=one.offset)
        layers.append(one)
    return ModelRope.from_layers(layers)
