"""Edits of the caches of Hugging Face transformers.

    spans = edit_cache(cache, model.config, [Edit.insert(120, 3)])
    output = encode_spans(model, cache, new_tokens, spans)

After the first line every cached row is where the edited sequence has it, its keys turned; after the second the rows of
the new tokens are filled in as well, and ``output.logits[:, -1]`` predicts what follows.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import cache_utils

from ._native import Edit, ModelRope, NewSpan, Plan, Rotations, check, copy, splice

__all__ = ["cache_argument", "edit_cache", "encode_spans", "model_rope"]

# Earlier ones keep the keys of latent attentions otherwise, and the first of them do not count a static cache's rows.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15):
    raise ImportError(f"pie_rope.huggingface needs transformers 5.15 or later; this is {transformers.__version__}")


def edit_cache(
    cache: Any, config: Any, edits: Plan | Sequence[Edit], *, lengths: tuple[int, int] | None = None
) -> list[NewSpan]:
    """Moves and turns the rows of a ``DynamicCache`` or ``StaticCache`` as an edit of its tokens asks for.

    ``config`` is the model's configuration. ``edits`` is a list of :class:`Edit`, or a :class:`Plan`, such as
    ``Plan.from_tokens(old_tokens, new_tokens)``. The cache must hold row ``i`` of token ``i`` at position ``i``: one
    sequence, or a batch without padding whose sequences are edited alike. (With M-RoPE: text alone, whose positions
    count rows.)

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

    A cache that is refused is as it was: ``ValueError`` if the edits do not fit it, if it has lost rows (a window that
    slid), or if a layer is of a kind that holds no rows of keys (recurrent, quantised). Only where memory runs out
    half-way it is lost.
    """
    layers = _attention_layers(cache)
    if not layers:
        raise ValueError("cache: it holds no rows yet: encode the tokens as ever")
    rows = _lengths(layers)
    if len(rows) > 1:
        raise ValueError(f"cache: its layers hold different numbers of rows: {sorted(rows)}")
    plan = edits if isinstance(edits, Plan) else Plan.from_edits(next(iter(rows)), list(edits))
    if plan.old_rows not in rows:
        raise ValueError(f"edits: the plan is for {plan.old_rows} rows, the cache holds {rows.pop()}")
    moved = [span for span in plan.kept if (span.old_position, span.new_position) != (span.src, span.dst)]
    if moved or any(span.position != span.row for span in plan.new_spans):
        raise ValueError("edits: in the plan, tokens are at other positions than those of their rows")
    old, new = (model_rope(config, tokens) for tokens in lengths or (plan.old_rows, plan.new_rows))
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


def encode_spans(model: Any, cache: Any, tokens: Any, spans: Sequence[NewSpan], **kwargs: Any) -> Any:
    """Fills the rows that :func:`edit_cache` opened, and returns the model's output, whose last logits are those of the
    last token, new or not.

    ``tokens`` are those of the whole edited sequence, ``[batch, rows]``; token ``i`` is at position ``i``. All spans go
    through ``model`` in one forward pass, each token attending to the rows before it. Where that takes a mask that the
    model's attention does not know (flash attention, a window shorter than the sequence), each span is a pass by
    itself. ``kwargs`` go to the model.
    """
    tokens = torch.as_tensor(tokens, device=model.device)
    tokens = tokens.unsqueeze(0) if tokens.ndim == 1 else tokens
    last = tokens.shape[-1] - 1
    if last < 0:
        raise ValueError("tokens: there are none")
    layers = _attention_layers(cache)
    rows = _lengths(layers)
    if rows != {last + 1}:
        raise ValueError(f"tokens: there are {last + 1}, but the cache has {sorted(rows)} rows")
    ranges = [range(span.row, span.row + span.len) for span in spans]
    if not ranges or last not in ranges[-1]:
        # Encoded again, for its logits.
        ranges.append(range(last, last + 1))
    passes: list[list[int]] = [list(some) for some in ranges]
    if _takes_any_mask(model.config, last + 1):
        passes = [[row for some in passes for row in some]]
    # In a pass with the last token, frequencies are those of the whole.
    for some in passes[:-1]:
        if model_rope(model.config, some[-1] + 1) != model_rope(model.config, last + 1):
            raise ValueError(
                f"spans: a pass that ends at position {some[-1]} would take other frequencies than the {last + 1} rows"
                ' of the cache have (LongRoPE, dynamic NTK); with `attn_implementation="sdpa"` all are one pass'
            )
    output = None
    with _mode(layers):
        for some in passes:
            chosen = torch.tensor(some, device=tokens.device)
            at = [_Rows(layer, some, chosen) if _holds_rows(layer) else layer for layer in cache.layers]
            arguments = {
                "input_ids": tokens[:, chosen],
                "position_ids": chosen.unsqueeze(0),
                "use_cache": True,
                cache_argument(model): cache_utils.Cache(layers=at),
            }
            if len(some) != some[-1] + 1 - some[0]:
                # Added to the scores, [1, 1, rows, all rows up to the last]: no row sees those behind it.
                hidden = torch.arange(some[-1] + 1, device=chosen.device) > chosen[:, None]
                mask = torch.zeros(hidden.shape, dtype=model.dtype, device=chosen.device)
                arguments["attention_mask"] = mask.masked_fill_(hidden, torch.finfo(model.dtype).min)[None, None]
            output = model(**arguments, **kwargs)
    return output


def cache_argument(model: Any) -> str:
    """How the model's ``forward`` calls its cache: ``past_key_values``, or ``cache`` in later versions."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def model_rope(config: Any, tokens: int = 0) -> ModelRope:
    """The ropes of a transformers configuration, of its text part, for sequences of ``tokens`` tokens."""
    if isinstance(config, ModelRope):
        return config
    return ModelRope.from_config(_text(config), tokens)


def _text(config):
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _entry(config, name):
    config = _text(config)
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _mode(layers):
    """No graph is made; what was made in inference mode is worked on in it."""
    inference = any(layer.keys.is_inference() for _, layer in layers)
    return torch.inference_mode() if inference else torch.no_grad()


def _attention_layers(cache):
    """The layers that hold rows, with their indices. Some hold none: they use the rows of another."""
    if not isinstance(cache, cache_utils.Cache) or not hasattr(cache, "layers"):
        raise TypeError(f"cache: it must be a Cache of transformers, with layers, not {type(cache).__name__}")
    dynamic, static = cache_utils.DynamicLayer, cache_utils.StaticLayer
    sliding = cache_utils.DynamicSlidingWindowLayer, cache_utils.StaticSlidingWindowLayer
    layers = []
    for index, layer in enumerate(cache.layers):
        if not _holds_rows(layer):
            continue
        if type(layer) not in (dynamic, static, *sliding):
            raise ValueError(
                f"cache: layer {index} is a {type(layer).__name__}, which holds no rows that can be edited"
            )
        layers.append((index, layer))
    return layers


def _holds_rows(layer) -> bool:
    """Not those that use the rows of another, nor those that no token has reached yet."""
    return type(layer).__name__ != "DummyLayer" and getattr(layer, "is_initialized", True)


def _lengths(layers) -> set[int]:
    """How many rows layers hold. Static ones count on their device, which is waited for once."""
    lengths = [layer.get_seq_length() for _, layer in layers]
    tensors = [length.reshape(()) for length in lengths if isinstance(length, torch.Tensor)]
    counted = torch.stack([tensor.to(tensors[0].device) for tensor in tensors]).tolist() if tensors else []
    return {*counted, *(length for length in lengths if not isinstance(length, torch.Tensor))}


def _check(index, layer, plan):
    """Whether the rows of a layer are all there, and will be."""
    room = getattr(layer, "max_cache_len", None)
    # A dynamic window keeps one row less than it sees; a static one has as many as there is room for.
    window = room if room is not None else layer.sliding_window - 1 if layer.is_sliding else None
    if layer.is_sliding and max(plan.old_rows, plan.new_rows) > window:
        raise ValueError(
            f"cache: layer {index} keeps {window} rows and loses those before them, so {plan.old_rows} rows cannot"
            f" become {plan.new_rows}; a `DynamicCache()` that is made without a configuration keeps them all"
        )
    if room is not None and plan.new_rows > room:
        raise ValueError(f"edits: {plan.new_rows} rows are more than the {room} that layer {index} of the cache has")


def _set_rows(layer, rows: int):
    if hasattr(layer, "max_cache_len"):
        # In place: compiled graphs have its address.
        layer.cumulative_length.fill_(rows)
        if layer.is_sliding:
            layer.cumulative_length_int = rows
        return
    layer.keys, layer.values = layer.keys[:, :, :rows], layer.values[:, :, :rows]
    if layer.is_sliding:
        layer.cumulative_length = rows


def _alike(layers):
    """The layers, grouped by how they lie: one call is for layers that lie alike."""
    groups = {}
    for index, layer in layers:
        key = tuple((part.shape, part.stride(), part.dtype, part.device) for part in (layer.keys, layer.values))
        groups.setdefault(key, []).append((index, layer))
    return groups.values()


class _Call:
    """The edit of some layers that lie alike."""

    def __init__(self, config, plan, ropes, group):
        self.layers = [layer for _, layer in group]
        # Which of a layer's tensors holds what turns.
        self.turned, self.moved = "keys", "values"
        widths = [getattr(self.layers[0], name).shape[-1] for name in ("keys", "values")]
        rank, rotary = _entry(config, "kv_lora_rank"), _entry(config, "qk_rope_head_dim")
        if rank is not None:
            # A latent attention: latent rows are where keys are elsewhere, what turns, in halves, where values are.
            if widths != [rank, rotary]:
                raise ValueError(f"cache: a latent attention keeps rows of {rank} and {rotary}, these are of {widths}")
            self.turned, self.moved = "values", "keys"
            widths.reverse()
            ropes = [rope.stored(offset=0, pairing="half-split") for rope in ropes]
        for index, _ in group:
            rope = ropes[1].layer(index)
            if rope is not None and rope.offset + rope.rotary_dim > widths[0]:
                raise ValueError(
                    f"config: its rope turns dimensions {rope.offset} to {rope.offset + rope.rotary_dim} of layer"
                    f" {index}, whose keys have {widths[0]}"
                )
        self.rotations = Rotations.between(plan, *ropes).select([index for index, _ in group])
        check(*self.tensors())

    def tensors(self):
        # A cache that was filled outside of `torch.no_grad` is edited as well; its graph ends here.
        return [[getattr(layer, part).detach() for layer in self.layers] for part in (self.turned, self.moved)]

    def run(self, plan):
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


def _longer(tensor, plan):
    """A tensor for the rows after the edit: those that are to be encoded are zero."""
    longer = tensor.new_empty((*tensor.shape[:2], plan.new_rows, tensor.shape[-1]))
    for span in plan.new_spans:
        longer[:, :, span.rows] = 0
    return longer


def _takes_any_mask(config, rows: int) -> bool:
    """Whether a mask of any shape is all that attention needs to know."""
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    windows = [_entry(config, name) for name in ("sliding_window", "attention_chunk_size")]
    return all(window is None or rows <= window for window in windows)


class _Rows(cache_utils.DynamicLayer):
    """A layer that writes what is encoded to ``rows`` of another, and shows all rows up to the last of them."""

    def __init__(self, layer, rows: list[int], index):
        super().__init__()
        self.keys, self.values, self.rows, self.index = layer.keys, layer.values, rows, index
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        end, index = self.rows[-1] + 1, self.index.to(self.device)
        self.keys.index_copy_(2, index, key_states)
        self.values.index_copy_(2, index, value_states)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self):
        return self.rows[0]
