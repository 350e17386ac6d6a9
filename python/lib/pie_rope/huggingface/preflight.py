"""One decision for both functions, before the first byte: whether an edit comes out as the whole text encoded anew.

:func:`decide` is `edit_cache`'s; :func:`decide_again` is `encode_spans`', which sees the tokens, and may be given spans
of another origin.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from .. import _config
from .._native import ModelRope, NewSpan, Plan
from . import compare
from .ropes import Rotary, magnitude, said

# Layers that keep a state of all tokens, with or without keys beside it, by the names of configurations.
_STATES = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba"}
# How far cached keys may be from those that the model makes of their tokens, in parts of the largest. In 16 bits, keys
# that have been turned hundreds of times may be further off; they then are not worth keeping.
_CACHED = {torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}
# How many rows are compared.
_SAMPLE = 16
_WAY_OUT = "encode the tokens anew"


class _Known:
    """What is asked, a model or a configuration, and what is known of it: found once in each call."""

    def __init__(self, given: Any):
        self.model = given if isinstance(given, torch.nn.Module) else None
        self.config = given if self.model is None else self.model.config
        if self.model is not None:
            self.rotary = Rotary(self.model)
            self.seen = compare.compared(self.model, self.rotary)
            self.rotary.as_said = self.seen.as_said


class Spans(list[NewSpan]):
    """The spans that `edit_cache` opened, and what it knew of the cache: `encode_spans` asks for it."""

    # The first row that the edit changed: those before it are where they were.
    changed: int | None = None
    # What keys turn by now, where it was the model that was asked.
    ropes: ModelRope | None = None
    # How many rows of padding each sequence has, where it was said or seen.
    padding: list[int] | None = None
    # Whether tokens, or the model, were asked for images and sound.
    looked_for_media = False


def decide(
    model: Any,
    layers: Sequence[tuple[int, Any]],
    plan: Plan,
    attention_mask: Any,
    tokens: Any,
    lengths: tuple[int, int] | None,
) -> tuple[Spans, ModelRope, ModelRope]:
    """The spans to encode, and the ropes of the keys before the edit and after it."""
    batch, device = layers[0][1].keys.shape[0], layers[0][1].keys.device
    spans = Spans(plan.new_spans)
    spans.changed = _changed(plan)
    real, least = None, 0
    if attention_mask is not None:
        real = real_rows(attention_mask, batch, plan.old_rows, device)
        least = _check_padding("edits", real, spans.changed)
        spans.padding = _padding(real)
    is_model = isinstance(model, torch.nn.Module)
    config = model.config if is_model else model
    _check_config(config)
    if tokens is not None:
        tokens = _check_tokens(tokens, batch, plan.old_rows, model.device if is_model else device)
    _check_media(model, tokens)
    spans.looked_for_media = tokens is not None or is_model
    known = _Known(model)
    asked = lengths if lengths is not None else (plan.old_rows - least, plan.new_rows - least)
    if is_model:
        old, new = _ropes(known, asked, lengths is not None)
        spans.ropes = new
    else:
        old, new = (said(config, length) for length in asked)
    if (most := 1 + max(index for index, _ in layers)) > old.layers:
        raise ValueError(f"model: it has {old.layers} layer{'s' * (old.layers != 1)}, the cache has {most}")
    _check_widths(known, layers)
    if magnitude(config, asked[0]) != magnitude(config, asked[1]):
        raise ValueError(
            f"model: its keys of {asked[0]} tokens have another magnitude than those of {asked[1]} (`short_mscale`,"
            f" `long_mscale`), which no turn changes: {_WAY_OUT}"
        )
    if plan.new_rows > 0 and not isinstance(config, ModelRope):
        ranges = [range(span.row, span.row + span.len) for span in spans]
        passes = passes_of(config, ranges, plan.new_rows)
        _check_passes("edits", known, passes, plan.new_rows, least, new if lengths is None and is_model else None)
    if tokens is not None and is_model and lengths is None:
        positions = _positions(plan.old_rows, real, model.device) + known.seen.first
        compared = _check_keys(model, layers, tokens, positions, torch.ones(plan.old_rows, dtype=torch.bool), real)
        # Padding shows in keys that turn alone.
        if spans.padding is None and compared and old.layer(0) is not None:
            spans.padding = [0] * batch
    _check_turns(layers, plan, spans, tokens is not None, old, new)
    return spans, old, new


def _check_turns(
    layers: Sequence[tuple[int, Any]], plan: Plan, spans: Spans, tokens: bool, old: ModelRope, new: ModelRope
) -> None:
    """Refuses what comes out right only where no sequence has padding, if it is not known that none has."""
    if all(old.layer(index) is None for index, _ in layers):
        return
    # Keys turn from one frequency to another by their position, which with padding is not that of the row.
    if old != new and spans.padding is not None and any(spans.padding):
        raise ValueError(
            "edits: the frequencies of keys change with the length (LongRoPE, dynamic NTK), and with padding keys would"
            f" turn by other positions than theirs: {_WAY_OUT}, or edit each sequence by itself, without padding"
        )
    behind = sum(span.len for span in plan.kept) == spans.changed
    if layers[0][1].keys.shape[0] == 1 or spans.padding is not None or behind and old == new:
        return
    why = "; `tokens` show it only where the model itself is given, its first layer turns and no `lengths` are"
    raise ValueError(
        "attention_mask: of a batch it must be known which sequences have padding on the left, for an edit that moves"
        " rows: give `attention_mask`, [batch, rows] with 0 for padding (where there is none, all ones) or the cached"
        f" `tokens`{why if tokens else ''}"
    )


def decide_again(
    model: Any,
    layers: Sequence[tuple[int, Any]],
    tokens: torch.Tensor,
    spans: Sequence[NewSpan],
    passes: Sequence[Sequence[int]],
    real: torch.Tensor | None,
    positions: torch.Tensor,
    least: int,
) -> torch.Tensor:
    """The positions that the model is to be given."""
    batch, rows = tokens.shape
    knows = spans if isinstance(spans, Spans) else None
    if real is not None and knows is not None:
        if knows.changed is not None:
            _check_padding("spans", real, knows.changed)
        if knows.padding not in (None, now := _padding(real)):
            raise ValueError(
                f"attention_mask: sequences have {now} rows of padding in it, but had {knows.padding} in edit_cache,"
                " and an edit leaves padding as it is"
            )
    _check_config(model.config)
    media = compare.special_tokens(model.config)
    encoded = [row for some in passes for row in some]
    if media and (found := _some_are(tokens[:, encoded], media)).any():
        row = encoded[int(found.nonzero()[0])]
        raise ValueError(f"tokens: row {row} stands for a part of an image or sound, and text alone can be encoded")
    _check_media(model, tokens)
    if knows is None or not knows.looked_for_media:
        _check_media(model, None)
    known = _Known(model)
    _check_passes("spans", known, passes, rows, least, None if knows is None else knows.ropes)
    positions = positions + known.seen.first
    # Where it is not known which frequencies keys have, and from where positions were counted.
    padded = knows is not None and knows.ropes is not None and real is not None and not bool(real.all())
    if known.rotary.changes or batch > 1 or padded:
        kept = torch.ones(rows, dtype=torch.bool)
        for span in spans:
            kept[span.rows] = False
        _check_keys(model, layers, tokens, positions, kept, real)
    return positions


def padding_of(spans: Sequence[NewSpan], tokens: torch.Tensor) -> torch.Tensor | None:
    """The mask of the padding that `edit_cache` was told of, which an edit leaves as it is."""
    padding = spans.padding if isinstance(spans, Spans) else None
    if padding is None or not any(padding) or len(padding) != tokens.shape[0]:
        return None
    ends = torch.tensor(padding, device=tokens.device)[:, None]
    return torch.arange(tokens.shape[-1], device=tokens.device) >= ends


def passes_of(config: Any, ranges: Sequence[range], rows: int) -> list[list[int]]:
    """The rows of each forward pass that encodes these, and the last row in any case, for its logits."""
    ranges, last = list(ranges), rows - 1
    if ranges and ranges[-1].stop == last:
        ranges[-1] = range(ranges[-1].start, rows)
    elif not ranges or last not in ranges[-1]:
        ranges.append(range(last, rows))
    if why_apart(config, rows) is None:
        return [[row for some in ranges for row in some]]
    return [list(some) for some in ranges]


def why_apart(config: Any, rows: int) -> str | None:
    """Why rows with gaps between them cannot be one pass: their attention would need more than a mask."""
    part = _config.text(config)
    implementation = next(
        (name for one in (part, config) if (name := getattr(one, "_attn_implementation", None)) is not None), "sdpa"
    )
    if implementation not in ("sdpa", "eager"):
        return f'`{implementation}` takes no mask of that shape; with `attn_implementation="sdpa"` all are one pass'
    for name in ("sliding_window", "attention_chunk_size"):
        if (window := _config.entry(config, name)) is not None and rows > window:
            return f"its `{name}` of {window} is shorter than the {rows} rows: {_WAY_OUT}"
    if _config.entry(config, "alibi"):
        return f"alibi takes rows for consecutive: {_WAY_OUT}"
    # The temperature is 1 below this many rows.
    floor = _config.entry(config, "floor_scale") or 8192
    if _config.entry(config, "attn_temperature_tuning") and rows >= floor:
        return f"the temperature of its queries takes rows for consecutive, from {floor} on: {_WAY_OUT}"
    return None


def real_rows(attention_mask: Any, batch: int, rows: int, device: torch.device) -> torch.Tensor:
    """Which rows are tokens, [batch, rows], and not padding."""
    mask = torch.as_tensor(attention_mask, device=device)
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if list(mask.shape) != [batch, rows]:
        raise ValueError(f"attention_mask: it must be of {[batch, rows]}, as the rows, not {list(mask.shape)}")
    real: torch.Tensor = mask != 0
    if rows and ((real[:, :-1] & ~real[:, 1:]).any() or not real[:, -1].all()):
        raise ValueError("attention_mask: padding must be on the left")
    return real


def _changed(plan: Plan) -> int:
    """The first row that is not where it was."""
    row = 0
    for span in plan.kept:
        if (span.src, span.dst) != (row, row):
            break
        row += span.len
    return row


def _check_padding(name: str, real: torch.Tensor, changed: int) -> int:
    """Refuses to edit padding; returns how much of it all sequences have."""
    padding = _padding(real)
    longest = max(padding)
    if changed < longest:
        raise ValueError(
            f"{name}: the edit begins at row {changed}, but sequence {padding.index(longest)} has {longest} rows of"
            " padding, so that its positions would not follow: edit behind the longest padding, or each sequence by"
            " itself"
        )
    return min(padding)


def _padding(real: torch.Tensor) -> list[int]:
    counts: list[int] = (~real).sum(-1).tolist()
    return counts


def _positions(rows: int, real: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    positions = torch.arange(rows, device=device).unsqueeze(0)
    return positions if real is None else positions - (~real).sum(-1, keepdim=True).to(device)


def _check_tokens(given: Any, batch: int, rows: int, device: torch.device) -> torch.Tensor:
    tokens = torch.as_tensor(given, device=device)
    tokens = tokens.unsqueeze(0) if tokens.ndim == 1 else tokens
    if list(tokens.shape) != [batch, rows]:
        raise ValueError(f"tokens: they must be of {[batch, rows]}, as the cache's rows, not {list(tokens.shape)}")
    return tokens


def _check_config(config: Any) -> None:
    """Refuses models of which an edit cannot keep all that depends on tokens."""
    if isinstance(config, ModelRope):
        return
    _config.check(config)
    for index, kind in enumerate(_config.entry(config, "layer_types", "layers_block_type") or ()):
        if kind in _STATES:
            raise ValueError(f"model: layer {index} (`{kind}`) keeps a state of all tokens, which cannot be edited")


def _check_media(model: Any, tokens: torch.Tensor | None) -> None:
    """Under M-RoPE, rows of images have other positions than their numbers, and so has all that is behind them. Tokens
    say whether there are any; without them, the model may know of the last sequence that had some."""
    is_model = isinstance(model, torch.nn.Module)
    config = model.config if is_model else model
    if isinstance(config, ModelRope):
        return
    deltas = [module.rope_deltas for module in model.modules() if hasattr(module, "rope_deltas")] if is_model else []
    said_of = _config.parameters(config).values()
    if not deltas and not any("mrope_section" in rope for rope in said_of):
        return
    media = compare.special_tokens(config)
    if tokens is not None and (media or is_model):
        if media.intersection(tokens.flatten().tolist()):
            raise ValueError(
                "tokens: some stand for an image, a video or sound, and with M-RoPE the positions of such a sequence"
                f" are not those of its rows: {_WAY_OUT}"
            )
    elif not is_model:
        raise ValueError(
            "model: with M-RoPE the positions of a sequence with images, videos or sound are not those of its rows, and"
            " a configuration does not know whether the cache has some: give the model itself, or the cached `tokens`"
            " with a configuration that says which of them stand for an image (`image_token_id`)"
        )
    elif any(isinstance(delta, torch.Tensor) and bool((delta != 0).any()) for delta in deltas):
        raise ValueError(
            "model: it has seen images or videos (`rope_deltas`), and with M-RoPE the positions of such a sequence"
            f" are not those of its rows: {_WAY_OUT}; if there are none in this cache, say so by edit_cache's `tokens`"
        )


def _ropes(known: _Known, lengths: tuple[int, int], given: bool) -> tuple[ModelRope, ModelRope]:
    """The ropes of a model's keys before an edit, and after it; `given`: the lengths are the caller's, of passes of a
    model that has seen nothing longer. Refused where keys do not turn by them."""
    if known.seen.problem is not None:
        raise ValueError(known.seen.problem)
    rotary = known.rotary
    if given:
        made = []
        for length in lengths:
            with rotary.untouched():
                rotary.forget()
                made.append(rotary.at(length))
        return made[0], made[1]
    for original, seen in rotary.longest():
        if lengths[0] > seen and lengths[0] >= original:
            raise ValueError(
                f"model: under dynamic NTK it remembers a longest sequence of {seen} tokens, the cache has"
                f" {lengths[0]}: it has encoded other text since, and which frequencies these keys have is not known."
                f" Say it by `lengths`, or {_WAY_OUT}"
            )
    return rotary.passes(lengths[:1])[0], rotary.passes(lengths[1:])[0]


def _check_passes(
    name: str, known: _Known, passes: Sequence[Sequence[int]], rows: int, least: int, wanted: ModelRope | None
) -> None:
    """All that is made of positions has to be the same in each pass, and as the cache's keys have it."""
    ends = [some[-1] + 1 - least for some in passes]
    config, made = known.config, None
    if known.model is None:
        made = [said(config, end) for end in ends] if len(ends) > 1 else None
    elif known.rotary.changes:
        made = known.rotary.passes(ends)
    scales = [magnitude(config, end) for end in ends]
    for number, end in enumerate(ends[:-1]):
        if scales[number] != scales[-1] or made is not None and made[number] != made[-1]:
            raise ValueError(
                f"{name}: a pass that ends at position {end - 1} would take other frequencies than the {rows} rows of"
                " the cache have (LongRoPE, dynamic NTK), and each span is a pass by itself:"
                f" {why_apart(config, rows) or _WAY_OUT}"
            )
    if wanted is not None and made is not None and made[-1] != wanted:
        raise ValueError(
            f"{name}: the model's next pass would take other frequencies than the cache's keys have (LongRoPE, dynamic"
            f" NTK): it has encoded other text since edit_cache, or `lengths` say otherwise: {_WAY_OUT}"
        )


def _some_are(tokens: torch.Tensor, some: set[int]) -> torch.Tensor:
    """In which rows of any sequence one of these tokens is, on the processor."""
    return torch.isin(tokens, torch.tensor(sorted(some), device=tokens.device)).any(0).cpu()


def _check_keys(
    model: Any,
    layers: Sequence[tuple[int, Any]],
    tokens: torch.Tensor,
    positions: torch.Tensor,
    kept: torch.Tensor,
    real: torch.Tensor | None,
) -> bool:
    """Compares some of the rows that are kept, in the first layer, with what the model makes of their tokens; returns
    whether there was something to compare."""
    index, layer = layers[0]
    if real is not None:
        kept = kept & real.all(0).cpu()
    if media := compare.special_tokens(model.config):
        kept = kept & ~_some_are(tokens, media)
    rows = kept.nonzero().flatten().tolist()
    if index != 0 or not rows:
        return False
    some = sorted({rows[place * (len(rows) - 1) // (_SAMPLE - 1)] for place in range(_SAMPLE)})
    cached = getattr(layer, compare.turned_part(model.config))[:, :, some]
    off = compare.from_cached(model, tokens, positions, some, cached)
    # Written so that a NaN is refused.
    if off is not None and not off <= _CACHED.get(cached.dtype, 2.5e-1):
        raise ValueError(
            f"cache: some of its keys are off by {off:.2g} of their size from those that the model makes of these"
            " tokens: the tokens are others, sequences have padding on the left that `attention_mask` does not say, or"
            f" passes on both sides of a switch have made the keys (LongRoPE, dynamic NTK): {_WAY_OUT}"
        )
    return off is not None


def _check_widths(known: _Known, layers: Sequence[tuple[int, Any]]) -> None:
    """Keys of another model have other widths."""
    if known.model is not None:
        widths = known.seen.widths
        for index, layer in layers:
            got = (layer.keys.shape[-1], layer.values.shape[-1])
            if index in widths and widths[index] != got:
                raise ValueError(
                    f"model: it makes keys and values of {widths[index][0]} and {widths[index][1]} dimensions in layer"
                    f" {index}, the cache's have {got[0]} and {got[1]}"
                )
    dims = _head_dims(known.config)
    for index, layer in layers:
        if dims and layer.keys.shape[-1] not in dims:
            raise ValueError(
                f"model: its heads have {' or '.join(map(str, sorted(dims)))} dimensions, the cached keys of layer"
                f" {index} have {layer.keys.shape[-1]}: they are another model's"
            )


def _head_dims(config: Any) -> set[int]:
    """The head dimensions that a configuration speaks of; empty where there is no telling."""
    if isinstance(config, ModelRope):
        return set()
    part = _config.text(config)
    entries = part if isinstance(part, dict) else part.to_dict()
    if any(entries.get(name) for name in ("kv_lora_rank", "qk_rope_head_dim", "per_layer_config")):
        return set()
    named = {
        number
        for name, number in entries.items()
        if ("head_dim" in name or name == "kv_channels") and isinstance(number, int)
    }
    if named:
        return named
    # Where a file says nothing, its kind may have a width of its own.
    kind = transformers.CONFIG_MAPPING.get(entries.get("model_type", ""), None)
    if isinstance(own := getattr(kind, "head_dim", None), int):
        return {own}
    width, heads = (
        _config.entry(config, "hidden_size", "n_embd"),
        _config.entry(config, "num_attention_heads", "n_head"),
    )
    return {width // heads} if isinstance(width, int) and isinstance(heads, int) and heads > 0 else set()
