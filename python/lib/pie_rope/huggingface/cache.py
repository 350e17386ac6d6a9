"""Caches of transformers, and the edit of their rows."""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import cache_utils

from .. import _config
from .._native import Edit, ModelRope, Plan, Rotations, check, copy, splice
from .model import LATENT
from .preflight import Spans, decide
from .ropes import latent

_LAYERS = (
    cache_utils.DynamicLayer,
    cache_utils.DynamicSlidingWindowLayer,
    cache_utils.StaticLayer,
    cache_utils.StaticSlidingWindowLayer,
)


def edit_cache(
    cache: Any,
    model: Any,
    edits: Plan | Sequence[Edit],
    *,
    attention_mask: Any = None,
    tokens: Any = None,
    lengths: tuple[int, int] | None = None,
) -> Spans:
    """Moves and turns the rows of a ``DynamicCache`` or ``StaticCache`` as an edit of its tokens asks for.

    ``model`` is the model that filled the cache. Keys turn by the frequencies that its rotary modules hold, and at its
    first use one token is encoded to see that they do (:mod:`pie_rope.huggingface` says what that costs). ``edits`` is
    a list of :class:`Edit`, or a :class:`Plan`, such as ``Plan.from_tokens(old_tokens, new_tokens)``. The cache must
    hold row ``i`` of token ``i``: one sequence, or a batch whose sequences are edited alike.

    Of sequences with padding on their left, positions count from its end; edits must be behind the longest padding.
    ``attention_mask``, ``[batch, rows]`` of the cache as it is, with 0 for padding and 1 elsewhere, has that checked.
    An edit of a batch that moves rows or turns those before it takes one of two: this mask (all ones where there is no
    padding), or ``tokens``, which show that there is none. A single sequence is taken to have none if nothing is said.

    ``tokens``, ``[batch, rows]`` of the cache as it is, have some of its keys compared with those that the model makes
    of them: a cache that other passes have made than the model would make now is refused.

    Under LongRoPE and dynamic NTK frequencies depend on how long the sequence was in the forward pass that made a key,
    and under dynamic NTK on the longest that the model has seen before. Keys are taken to be of one pass over all of
    the cache's tokens, and to become those of one over the edited ones, with what the model remembers now. ``lengths``
    says otherwise: the lengths of two passes, of the keys that are cached, and of those that the model will make from
    now on, as if it had seen nothing longer. Keys that passes on both sides of a switch have made, or generation beyond
    the original length under dynamic NTK, cannot be told apart here: with ``tokens`` they are refused, and by
    :func:`encode_spans` in any case. Encode such a cache anew.

    A configuration in the model's place (an object, a dict or the text of a config.json) says what the model turned by
    as it was loaded: **not after a cast** such as ``model.to(torch.bfloat16)``, which rounds frequencies, and not what
    dynamic NTK remembers (give ``lengths``); nor can it be seen whether keys do turn so. What the model would have
    shown is then seen by :func:`encode_spans`, **after** the edit, and the cache refused there: keys of passes on both
    sides of a switch, or that the model now makes by other frequencies (LongRoPE, dynamic NTK). Under M-RoPE a
    configuration takes ``tokens`` beside it, to see that there are no images. A :class:`ModelRope` is taken as it is.

    Returns the spans to encode, with their positions; their rows are there, but hold nothing yet: let
    :func:`encode_spans` fill them before the cache is used.

    A static cache is edited in its own memory. So is a dynamic one if it does not grow; if it does, one layer after the
    other gets new tensors, as they do with each token that is generated. Graphs of autograd that lead to the cache must
    not be used any more.

    A cache that is refused is as it was: ``TypeError`` if it is of another class, a subclass included, for who knows
    what else that holds; ``ValueError`` if the edits do not fit it, if it has lost rows (a window that slid) or
    offloads them, if a layer is of a kind that holds more than rows of keys (recurrent, with an indexer, quantised), if
    in which order the model caches its latent rows is not known, if it is another model's, if images or sound are in it
    under M-RoPE, if its keys would have another magnitude at the new length (Phi-3.5-MoE's, on the other side of its
    switch), or if :func:`encode_spans` could not encode the new rows as one pass would. Only where memory runs out
    half-way it is lost.
    """
    layers = attention_layers(cache)
    if not layers:
        raise ValueError("cache: it holds no rows yet: encode the tokens as ever")
    rows = row_counts(layers)
    if len(rows) > 1:
        raise ValueError(f"cache: its layers hold different numbers of rows: {sorted(rows)}")
    plan = _plan(edits, next(iter(rows)))
    if plan.old_rows not in rows:
        raise ValueError(f"edits: the plan is for {plan.old_rows} rows, the cache holds {rows.pop()}")
    moved = [span for span in plan.kept if (span.old_position, span.new_position) != (span.src, span.dst)]
    if moved or any(span.position != span.row for span in plan.new_spans):
        raise ValueError("edits: in the plan, tokens are at other positions than those of their rows")
    for index, layer in layers:
        _check(index, layer, plan)
    spans, old, new = decide(
        model, layers, plan, attention_mask, tokens, _two(lengths) if lengths is not None else None
    )
    with mode(layers):
        # Everything is checked before the first row moves.
        config = model.config if isinstance(model, torch.nn.Module) else model
        calls = [_Call(config, plan, (old, new), group) for group in _alike(layers)]
        done = 0
        try:
            for call in calls:
                call.run(plan)
                done += len(call.layers)
            for _, layer in layers:
                _set_rows(layer, plan.new_rows)
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"{done} of {len(layers)} layers are edited: the cache is lost, encode its tokens anew")
            raise
    return spans


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


def mode(layers: Any) -> AbstractContextManager[Any]:
    """No graph is made; what was made in inference mode is worked on in it."""
    inference = any(layer.keys.is_inference() for _, layer in layers)
    return torch.inference_mode() if inference else torch.no_grad()


def attention_layers(cache: Any) -> list[tuple[int, Any]]:
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


def row_counts(layers: Any) -> set[int]:
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
        old, new = ropes
        if (rows := latent(config)) is not None:
            # A latent attention: latent rows are where keys are elsewhere, what turns is where values are.
            if widths != [rows["rank"], rows["rotary"]]:
                raise ValueError(
                    f"cache: a latent attention keeps rows of {rows['rank']} and {rows['rotary']}, these are of"
                    f" {widths}"
                )
            pairing = LATENT.get(model_type := _config.entry(config, "model_type"))
            if pairing is None:
                raise ValueError(
                    f"model: in which order `{model_type}` caches its latent rows is not known; if you know it, give a"
                    " configuration with a `model_type` of the same order in the model's place (`deepseek_v2`:"
                    " interleaved, `deepseek_v3`: half-split), or turn the layers' `values` with `pie_rope.splice` and"
                    " a `ModelRope`"
                )
            self.turned, self.moved = "values", "keys"
            widths.reverse()
            old, new = (rope.stored(offset=0, pairing=pairing) for rope in ropes)
        for index, _ in group:
            rope = new.layer(index)
            if rope is not None and rope.offset + rope.rotary_dim > widths[0]:
                raise ValueError(
                    f"model: its rope turns dimensions {rope.offset} to {rope.offset + rope.rotary_dim} of layer"
                    f" {index}, whose keys have {widths[0]}"
                )
        self.rotations = Rotations.between(plan, old, new).select([index for index, _ in group])
        grows = plan.new_rows > self.layers[0].keys.shape[-2]
        if not grows:
            for index, layer in group:
                check_memory(index, layer)
        turned, moved = self.tensors()
        # Rows that share memory are copied from there, and never written to.
        check(*([apart(tensor[:, :, :1]) if grows else tensor for tensor in part] for part in (turned, moved)))

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
            key, value = apart(getattr(layer, self.turned).detach()), apart(getattr(layer, self.moved).detach())
            new_key, new_value = _longer(key, plan), _longer(value, plan)
            copy(
                self.rotations.select([number]), src_keys=key, dst_keys=new_key, src_values=value, dst_values=new_value
            )
            setattr(layer, self.turned, new_key)
            setattr(layer, self.moved, new_value)


def _shares(tensor: torch.Tensor) -> bool:
    """Whether rows are in one memory, as `expand` makes them."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous() if _shares(tensor) else tensor


def check_memory(index: int, layer: Any) -> None:
    """Refuses to write where one write would change several rows."""
    for name in ("keys", "values"):
        if _shares(getattr(layer, name)):
            raise ValueError(
                f"cache: sequences of layer {index} share the memory of their {name} (`expand`), which cannot be edited"
                f" in place: set them to `layer.{name}.contiguous()` before"
            )


def _longer(tensor: torch.Tensor, plan: Plan) -> torch.Tensor:
    """A tensor for the rows after the edit: those that are to be encoded are zero."""
    longer = tensor.new_empty((*tensor.shape[:2], plan.new_rows, tensor.shape[-1]))
    for span in plan.new_spans:
        longer[:, :, span.rows] = 0
    return longer
