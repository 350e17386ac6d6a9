"""Edits of the caches of Hugging Face transformers.

    spans = edit_cache(cache, model.config, [Edit.insert(120, 3)])
    output = encode_spans(model, cache, new_tokens, spans)

After the first line every cached row is where the edited sequence has it, its keys turned; after the second the rows of
the new tokens are filled in as well, and ``output.logits[:, -1]`` predicts what follows.

The cache then holds all rows, and ``output`` the same cache: pass it, or ``output.past_key_values``, on with the next
token. ``generate`` has to have a token left to encode, and takes the whole text for new if it has none; so drop the
last row first:

    cache.crop(-1)
    model.generate(new_tokens, past_key_values=cache)    # ``cache=cache`` in later versions of transformers

A static cache has no ``crop`` in earlier ones: ``edit_cache(cache, model.config, [Edit.delete(rows - 1, rows)])`` does
the same (with ``lengths=(rows, rows)`` under LongRoPE and dynamic NTK). Its ``max_cache_len`` must hold what is
generated as well; it does not grow.
"""

import inspect
import json
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import transformers
from transformers import cache_utils

from ._native import Edit, ModelRope, NewSpan, Plan, Rotations, check, copy, splice

__all__ = ["cache_argument", "edit_cache", "encode_spans", "model_rope"]

# Earlier ones keep the keys of latent attentions otherwise, and the first of them do not count a static cache's rows.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15):
    raise ImportError(f"pie_rope.huggingface needs transformers 5.15 or later; this is {transformers.__version__}")

# The pairs of what turns in a latent row, as transformers caches it. Most models reorder it before they turn it, so
# these are not the pairs of the checkpoint.
_LATENT: dict[str, Literal["half-split", "interleaved"]] = {
    "axk1": "half-split",
    "bailing_hybrid": "half-split",
    "deepseek_v2": "interleaved",
    "deepseek_v3": "half-split",
    "glm4_moe_lite": "half-split",
    "minicpm3": "half-split",
    "mistral4": "half-split",
    "youtu": "half-split",
}
# Layers that keep a state of all tokens, with or without keys beside it, by the names of configurations.
_STATES = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba"}
_LAYERS = (
    cache_utils.DynamicLayer,
    cache_utils.DynamicSlidingWindowLayer,
    cache_utils.StaticLayer,
    cache_utils.StaticSlidingWindowLayer,
)
# What `encode_spans` says to the model itself.
_OWN = ("input_ids", "inputs_embeds", "position_ids", "cache_position", "past_key_values", "use_cache")


def edit_cache(
    cache: Any, config: Any, edits: Plan | Sequence[Edit], *, lengths: tuple[int, int] | None = None
) -> list[NewSpan]:
    """Moves and turns the rows of a ``DynamicCache`` or ``StaticCache`` as an edit of its tokens asks for.

    ``config`` is the model's configuration. ``edits`` is a list of :class:`Edit`, or a :class:`Plan`, such as
    ``Plan.from_tokens(old_tokens, new_tokens)``. The cache must hold row ``i`` of token ``i`` at position ``i``: one
    sequence, or a batch whose sequences are edited alike. Of sequences with padding on their left, positions count from
    its end; edits must be behind the longest padding. (With M-RoPE: text alone, whose positions count rows.)

    Under LongRoPE and dynamic NTK frequencies depend on how long the sequence was in the forward pass that made a key.
    ``lengths`` says it: of the keys that are cached, and of those that the model will make from now on. By default that
    is the length before and after the edit, as after one pass over all of the tokens. Keys that passes on both sides of
    a switch have made cannot be told apart: encode such a cache anew. Under dynamic NTK transformers remembers the
    longest sequence that it has seen: after a deletion, give that length twice.

    Returns the spans to encode, with their positions; their rows are there, but hold nothing yet: let
    :func:`encode_spans` fill them before the cache is used.

    A static cache is edited in its own memory. So is a dynamic one if it does not grow; if it does, one layer after the
    other gets new tensors, as they do with each token that is generated. Graphs of autograd that lead to the cache must
    not be used any more.

    A cache that is refused is as it was: ``TypeError`` if it is of another class, a subclass included, for who knows
    what else that holds; ``ValueError`` if the edits do not fit it, if it has lost rows (a window that slid) or
    offloads them, if a layer is of a kind that holds more than rows of keys (recurrent, with an indexer, quantised), if
    in which order the model caches its latent rows is not known, or if its keys would have another magnitude at the new
    length (Phi-3.5-MoE's, on the other side of its switch). Only where memory runs out half-way it is lost.
    """
    layers = _attention_layers(cache)
    if not layers:
        raise ValueError("cache: it holds no rows yet: encode the tokens as ever")
    rows = _lengths(layers)
    if len(rows) > 1:
        raise ValueError(f"cache: its layers hold different numbers of rows: {sorted(rows)}")
    plan = _plan(edits, next(iter(rows)))
    if plan.old_rows not in rows:
        raise ValueError(f"edits: the plan is for {plan.old_rows} rows, the cache holds {rows.pop()}")
    moved = [span for span in plan.kept if (span.old_position, span.new_position) != (span.src, span.dst)]
    if moved or any(span.position != span.row for span in plan.new_spans):
        raise ValueError("edits: in the plan, tokens are at other positions than those of their rows")
    old, new = _ropes(config, _two(lengths) if lengths is not None else (plan.old_rows, plan.new_rows))
    if max(index for index, _ in layers) >= old.layers:
        raise ValueError(f"config: it has {old.layers} layers, the cache {len(cache.layers)}")
    for index, layer in layers:
        _check(index, layer, plan)
    with _mode(layers):
        # Everything is checked before the first row moves.
        calls = [_Call(config, plan, (old, new), group) for group in _alike(layers)]
        for call in calls:
            call.run(plan)
        for _, layer in layers:
            _set_rows(layer, plan.new_rows)
    return plan.new_spans


def encode_spans(
    model: Any, cache: Any, tokens: Any, spans: Sequence[NewSpan], *, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """Fills the rows that :func:`edit_cache` opened, and returns the model's output, whose last logits are those of the
    last token, new or not, and whose cache is ``cache``.

    ``tokens`` are those of the whole edited sequence, ``[batch, rows]``; token ``i`` is at position ``i``. With padding
    on the left of some sequences, ``attention_mask``, of the same shape, is 0 there and 1 elsewhere, and positions
    count from its end. All spans go through ``model`` in one forward pass, each token attending to the rows before it.
    Where that takes a mask that the model's attention does not know (flash attention, a window shorter than the
    sequence), each span is a pass by itself. ``kwargs`` go to the model; positions and the cache are not among them.
    """
    for name in _OWN:
        if name in kwargs:
            raise TypeError(f"{name}: encode_spans says it to the model itself")
    layers = _attention_layers(cache)
    tokens = _tokens(tokens, layers, model.device)
    last = tokens.shape[-1] - 1
    ranges = _ranges(spans, last + 1)
    if not ranges or last not in ranges[-1]:
        # Encoded again, for its logits.
        ranges.append(range(last, last + 1))
    positions = torch.arange(last + 1, device=tokens.device).unsqueeze(0)
    real, least = None, 0
    if attention_mask is not None:
        real = _real(attention_mask, tokens, ranges[0][0])
        padding = (~real).sum(-1, keepdim=True)
        positions, least = positions - padding, int(padding.min())
    passes: list[list[int]] = [list(some) for some in ranges]
    if _takes_any_mask(model.config, last + 1):
        passes = [[row for some in passes for row in some]]
    # In a pass with the last token, frequencies are those of the whole.
    for some in passes[:-1]:
        if _encoding(model.config, some[-1] + 1 - least) != _encoding(model.config, last + 1 - least):
            raise ValueError(
                f"spans: a pass that ends at position {some[-1] - least} would take other frequencies than the"
                f" {last + 1} rows of the cache have (LongRoPE, dynamic NTK); with"
                ' `attn_implementation="sdpa"` all are one pass'
            )
    output, held = None, cache.layers
    with _mode(layers):
        for some in passes:
            chosen = torch.tensor(some, device=tokens.device)
            arguments = {
                "input_ids": tokens[:, chosen],
                "position_ids": positions[:, chosen],
                "use_cache": True,
                cache_argument(model): cache,
            }
            if len(some) != some[-1] + 1 - some[0]:
                arguments["attention_mask"] = _mask(chosen, some[-1] + 1, real, model.dtype)
            elif real is not None:
                arguments["attention_mask"] = real[:, : some[-1] + 1].long()
            # The caller's own cache, so that it is what the output has, however deep.
            cache.layers = list(held)
            for index, layer in layers:
                cache.layers[index] = _Rows(layer, some, chosen)
            try:
                output = model(**arguments, **kwargs)
            finally:
                cache.layers = held
    return output


def cache_argument(model: Any) -> str:
    """How the model's ``forward`` calls its cache: ``past_key_values``, or ``cache`` in later versions."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def model_rope(config: Any, tokens: int = 0) -> ModelRope:
    """The ropes of a transformers configuration, of its text part, for sequences of ``tokens`` tokens."""
    if isinstance(config, ModelRope):
        return config
    # PhiMoE's code in transformers takes the short factors of LongRoPE for sequences of any length.
    short = _entry(config, "model_type") == "phimoe"
    return ModelRope.from_config(config if isinstance(config, (str, dict)) else _text(config), 0 if short else tokens)


def _text(config: Any) -> Any:
    """The part of a configuration that is about text."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise ValueError(f"config: it is not the text of a config.json: {error}") from None
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    if not isinstance(config, (dict, ModelRope)) and not hasattr(config, "to_json_string"):
        raise TypeError(
            "config: it must be the text of a config.json, a dict of it, or a configuration of transformers,"
            f" not {type(config).__name__}"
        )
    parts = ("thinker_config", "text_config", "llm_config", "language_config")
    while isinstance(config, dict) and (inner := next((config[part] for part in parts if config.get(part)), None)):
        config = inner
    return config


def _entry(config: Any, name: str) -> Any:
    config = _text(config)
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _plan(edits: Any, rows: int) -> Plan:
    if isinstance(edits, Plan):
        return edits
    if isinstance(edits, Edit) or not hasattr(edits, "__iter__"):
        raise TypeError(f"edits: they must be a Plan or a list of Edit, not {type(edits).__name__}")
    edits = list(edits)
    for number, edit in enumerate(edits):
        if not isinstance(edit, Edit):
            raise TypeError(f"edits: number {number} must be an Edit, not {type(edit).__name__}")
    return Plan.from_edits(rows, edits)


def _two(lengths: Any) -> tuple[int, int]:
    wrong = f"lengths: they must be two numbers of tokens, not {lengths!r}"
    try:
        old, new = map(operator.index, lengths)
    except (TypeError, ValueError):
        raise TypeError(wrong) from None
    if min(old, new) < 0:
        raise ValueError(wrong)
    return old, new


def _ropes(config: Any, lengths: tuple[int, int]) -> tuple[ModelRope, ModelRope]:
    """The ropes of the keys before an edit, and after it, of a model whose keys are all that an edit has to turn."""
    old, new = (model_rope(config, tokens) for tokens in lengths)
    for index, kind in enumerate(_entry(config, "layer_types") or _entry(config, "layers_block_type") or ()):
        if kind in _STATES:
            raise ValueError(f"config: layer {index} (`{kind}`) keeps a state of all tokens, which cannot be edited")
    if _magnitude(config, lengths[0]) != _magnitude(config, lengths[1]):
        raise ValueError(
            f"config: keys of {lengths[0]} tokens have another magnitude than those of {lengths[1]} (`short_mscale`,"
            " `long_mscale`), which no turn changes: encode the tokens anew"
        )
    return old, new


def _magnitude(config: Any, tokens: int) -> Any:
    """What keys are scaled by, where that depends on the length of their sequence."""
    if _entry(config, "model_type") != "phimoe":
        return None
    rope = _entry(config, "rope_parameters") or _entry(config, "rope_scaling") or {}
    switch = rope.get("original_max_position_embeddings") or _entry(config, "original_max_position_embeddings")
    return rope.get("long_mscale" if switch is not None and tokens > switch else "short_mscale")


def _encoding(config: Any, tokens: int) -> tuple[ModelRope, Any]:
    """All that a pass makes of positions."""
    return model_rope(config, tokens), _magnitude(config, tokens)


def _tokens(given: Any, layers: Any, device: torch.device) -> torch.Tensor:
    """Those of all rows, [batch, rows]."""
    tokens = torch.as_tensor(given, device=device)
    tokens = tokens.unsqueeze(0) if tokens.ndim == 1 else tokens
    if tokens.ndim != 2:
        raise ValueError(f"tokens: they must be of [batch, rows], not {list(tokens.shape)}")
    batch, number = tokens.shape
    if number == 0:
        raise ValueError("tokens: there are none")
    rows = _lengths(layers)
    if rows != {number}:
        raise ValueError(f"tokens: there are {number}, but the cache has {sorted(rows)} rows")
    batches = {layer.keys.shape[0] for _, layer in layers}
    if batches != {batch}:
        raise ValueError(f"tokens: there are {batch} sequences, but the cache has {sorted(batches)}")
    return tokens


def _ranges(spans: Any, rows: int) -> list[range]:
    """The rows of the spans."""
    if not isinstance(spans, Sequence) or not all(isinstance(span, NewSpan) for span in spans):
        raise TypeError("spans: they must be the list of NewSpan that edit_cache returned")
    ranges, end = [], 0
    for span in spans:
        start, end, before = span.row, span.row + span.len, end
        if start < before or end > rows or span.position != start:
            raise ValueError(
                f"spans: rows {start} to {end} at position {span.position}, after row {before}, are of another plan"
                f" than that of these {rows} rows"
            )
        ranges.append(range(start, end))
    return ranges


def _real(attention_mask: Any, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Which rows are tokens, and not padding; those from the first that is encoded must be."""
    mask = torch.as_tensor(attention_mask, device=tokens.device)
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != tokens.shape:
        raise ValueError(f"attention_mask: it must be of {list(tokens.shape)}, as tokens, not {list(mask.shape)}")
    real: torch.Tensor = mask != 0
    if (real[:, :-1] & ~real[:, 1:]).any() or not real[:, -1].all():
        raise ValueError("attention_mask: padding must be on the left")
    if not real[:, first].all():
        raise ValueError(f"attention_mask: row {first}, which is to be encoded, is padding")
    return real


def _mask(chosen: torch.Tensor, end: int, real: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Added to the scores, [1 or batch, 1, rows, all rows up to the last]: no row sees those behind it, nor padding."""
    hidden = (torch.arange(end, device=chosen.device) > chosen[:, None])[None]
    if real is not None:
        hidden = hidden | ~real[:, None, :end]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=chosen.device)
    mask.masked_fill_(hidden, torch.finfo(dtype).min)
    return mask.unsqueeze(1)


def _mode(layers: Any) -> AbstractContextManager[Any]:
    """No graph is made; what was made in inference mode is worked on in it."""
    inference = any(layer.keys.is_inference() for _, layer in layers)
    return torch.inference_mode() if inference else torch.no_grad()


def _attention_layers(cache: Any) -> list[tuple[int, Any]]:
    """The layers that hold rows, with their indices. Some hold none: they use the rows of another, or no token has
    reached them yet."""
    if isinstance(cache, cache_utils.EncoderDecoderCache):
        raise TypeError("cache: of an EncoderDecoderCache, pass the `.self_attention_cache`")
    # Not subclasses: some keep states beside their layers, or count otherwise.
    if type(cache) not in (cache_utils.DynamicCache, cache_utils.StaticCache, cache_utils.Cache):
        raise TypeError(
            f"cache: it must be a DynamicCache or a StaticCache of transformers, not {type(cache).__name__}"
        )
    if getattr(cache, "offloading", False):
        raise ValueError("cache: it offloads its layers, which then are not where the model puts new rows")
    layers = []
    for index, layer in enumerate(cache.layers):
        if type(layer).__name__ == "DummyLayer":
            continue
        if type(layer) not in _LAYERS:
            raise ValueError(
                f"cache: layer {index} is a {type(layer).__name__}, which holds no rows that can be edited"
            )
        if not layer.is_initialized:
            continue
        if layer.keys.is_meta:
            raise ValueError(f"cache: layer {index} is on the meta device, where there are no rows")
        layers.append((index, layer))
    return layers


def _lengths(layers: Any) -> set[int]:
    """How many rows layers hold. Static ones count on their device, which is waited for once."""
    lengths = [layer.get_seq_length() for _, layer in layers]
    tensors = [length.reshape(()) for length in lengths if isinstance(length, torch.Tensor)]
    counted = torch.stack([tensor.to(tensors[0].device) for tensor in tensors]).tolist() if tensors else []
    return {*counted, *(length for length in lengths if not isinstance(length, torch.Tensor))}


def _check(index: int, layer: Any, plan: Plan) -> None:
    """Whether the rows of a layer are all there, and will be."""
    room = getattr(layer, "max_cache_len", None)
    # A dynamic window keeps one row less than it sees; a static one has as many as there is room for.
    window: Any = room if room is not None else layer.sliding_window - 1 if layer.is_sliding else None
    if layer.is_sliding and max(plan.old_rows, plan.new_rows) > window:
        raise ValueError(
            f"cache: layer {index} keeps {window} rows and loses those before them, so {plan.old_rows} rows cannot"
            f" become {plan.new_rows}; a `DynamicCache()` that is made without a configuration keeps them all"
        )
    if room is not None and plan.new_rows > room:
        raise ValueError(f"edits: {plan.new_rows} rows are more than the {room} that layer {index} of the cache has")


def _set_rows(layer: Any, rows: int) -> None:
    if hasattr(layer, "max_cache_len"):
        # In place: compiled graphs have its address.
        layer.cumulative_length.fill_(rows)
        if layer.is_sliding:
            layer.cumulative_length_int = rows
        return
    layer.keys, layer.values = layer.keys[:, :, :rows], layer.values[:, :, :rows]
    if layer.is_sliding:
        layer.cumulative_length = rows


def _alike(layers: Any) -> list[list[tuple[int, Any]]]:
    """The layers, grouped by how they lie: one call is for layers that lie alike."""
    groups: dict[Any, list[tuple[int, Any]]] = {}
    for index, layer in layers:
        key = tuple((part.shape, part.stride(), part.dtype, part.device) for part in (layer.keys, layer.values))
        groups.setdefault(key, []).append((index, layer))
    return list(groups.values())


class _Call:
    """The edit of some layers that lie alike."""

    def __init__(self, config: Any, plan: Plan, ropes: tuple[ModelRope, ModelRope], group: list[tuple[int, Any]]):
        self.layers = [layer for _, layer in group]
        # Which of a layer's tensors holds what turns.
        self.turned, self.moved = "keys", "values"
        widths = [getattr(self.layers[0], name).shape[-1] for name in ("keys", "values")]
        rank, rotary = _entry(config, "kv_lora_rank"), _entry(config, "qk_rope_head_dim")
        old, new = ropes
        if rank is not None:
            # A latent attention: latent rows are where keys are elsewhere, what turns is where values are.
            if widths != [rank, rotary]:
                raise ValueError(f"cache: a latent attention keeps rows of {rank} and {rotary}, these are of {widths}")
            pairing = _LATENT.get(model_type := _entry(config, "model_type"))
            if pairing is None:
                raise ValueError(f"config: in which order `{model_type}` caches its latent rows is not known")
            self.turned, self.moved = "values", "keys"
            widths.reverse()
            old, new = (rope.stored(offset=0, pairing=pairing) for rope in ropes)
        for index, _ in group:
            rope = new.layer(index)
            if rope is not None and rope.offset + rope.rotary_dim > widths[0]:
                raise ValueError(
                    f"config: its rope turns dimensions {rope.offset} to {rope.offset + rope.rotary_dim} of layer"
                    f" {index}, whose keys have {widths[0]}"
                )
        self.rotations = Rotations.between(plan, old, new).select([index for index, _ in group])
        check(*self.tensors())

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        # A cache that was filled outside of `torch.no_grad` is edited as well; its graph ends here.
        turned, moved = ([getattr(layer, part).detach() for layer in self.layers] for part in (self.turned, self.moved))
        return turned, moved

    def run(self, plan: Plan) -> None:
        keys, values = self.tensors()
        if plan.new_rows <= keys[0].shape[-2]:
            splice(self.rotations, keys, values)
            return
        del keys, values
        # A layer after the other, so that it takes the memory of one more, not of all of them.
        for number, layer in enumerate(self.layers):
            key, value = getattr(layer, self.turned).detach(), getattr(layer, self.moved).detach()
            new_key, new_value = _longer(key, plan), _longer(value, plan)
            copy(self.rotations.select([number]), key, new_key, value, new_value)
            setattr(layer, self.turned, new_key)
            setattr(layer, self.moved, new_value)


def _longer(tensor: torch.Tensor, plan: Plan) -> torch.Tensor:
    """A tensor for the rows after the edit: those that are to be encoded are zero."""
    longer = tensor.new_empty((*tensor.shape[:2], plan.new_rows, tensor.shape[-1]))
    for span in plan.new_spans:
        longer[:, :, span.rows] = 0
    return longer


def _takes_any_mask(config: Any, rows: int) -> bool:
    """Whether a mask of any shape is all that attention needs to know."""
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    windows = [_entry(config, name) for name in ("sliding_window", "attention_chunk_size")]
    return all(window is None or rows <= window for window in windows)


class _Rows(cache_utils.DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that writes what is encoded to ``rows`` of another, and shows all rows up to the last of them."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, rows: list[int], index: torch.Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.rows, self.index = layer.keys, layer.values, rows, index
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end, index = self.rows[-1] + 1, self.index.to(self.device)
        self.keys.index_copy_(2, index, key_states)
        self.values.index_copy_(2, index, value_states)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.rows[0]
