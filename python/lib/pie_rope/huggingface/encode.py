"""The rows that an edit opened, encoded as the model does."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import cache_utils

from .._native import NewSpan
from .cache import attention_layers, check_memory, mode, row_counts
from .model import cache_argument
from .preflight import decide_again, padding_of, passes_of, real_rows

# What `encode_spans` says to the model itself.
_OWN = ("input_ids", "inputs_embeds", "position_ids", "cache_position", "past_key_values", "use_cache")


def encode_spans(
    model: Any, cache: Any, tokens: Any, spans: Sequence[NewSpan], *, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """Fills the rows that :func:`edit_cache` opened, and returns the model's output, whose last logits are those of the
    last token, new or not, and whose cache is ``cache``.

    ``tokens`` are those of the whole edited sequence, ``[batch, rows]``; token ``i`` is at position ``i``, or at ``i +
    1`` where the model counts from 1 (PaliGemma). With padding on the left of some sequences, ``attention_mask``, of
    the same shape, is 0 there and 1 elsewhere, and positions count from its end; left out, it is as :func:`edit_cache`
    was told, and another one is refused. ``spans`` is the list that :func:`edit_cache` returned, which also knows what
    it found.

    All spans go through ``model`` in one forward pass, each token attending to the rows before it. Where that takes
    what the model's attention does not know (flash attention, a window shorter than the sequence, alibi, Llama 4's
    query temperature from ``floor_scale`` rows on), each span is a pass by itself. ``kwargs`` go to the model;
    positions and the cache are not among them.

    Under LongRoPE and dynamic NTK, of a batch, and where there is padding, some of the cache's keys are compared with
    those that the model makes of ``tokens`` now, before anything is written: ``ValueError`` if they are others.

    A pass that fails leaves the cache as :func:`edit_cache` did: its new rows hold nothing, and ``encode_spans`` can be
    called again.
    """
    for name in (*_OWN, cache_argument(model)):
        if name in kwargs:
            raise TypeError(f"{name}: encode_spans says it to the model itself")
    layers = attention_layers(cache)
    tokens = _tokens(tokens, layers, model.device)
    last = tokens.shape[-1] - 1
    ranges = _ranges(spans, last + 1)
    for index, layer in layers:
        check_memory(index, layer)
    real, positions, least = None, torch.arange(last + 1, device=tokens.device).unsqueeze(0), 0
    if attention_mask is None:
        attention_mask = padding_of(spans, tokens)
    if attention_mask is not None:
        real = _real(attention_mask, tokens, ranges[0].start if ranges else last)
        padding = (~real).sum(-1, keepdim=True)
        positions, least = positions - padding, int(padding.min())
    passes = passes_of(model.config, ranges, last + 1)
    positions = decide_again(model, layers, tokens, spans, passes, real, positions, least)
    output, held, written = None, cache.layers, []
    with mode(layers):
        try:
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
                    written.append(cache.layers[index])
                output = model(**arguments, **kwargs)
        except BaseException as error:
            for rows in written:
                rows.undo()
            if hasattr(error, "add_note"):
                error.add_note("The cache is as edit_cache left it: its new rows are still to be encoded.")
            raise
        finally:
            cache.layers = held
    return output


def _tokens(given: Any, layers: Any, device: torch.device) -> torch.Tensor:
    """Those of all rows, [batch, rows]."""
    tokens = torch.as_tensor(given, device=device)
    tokens = tokens.unsqueeze(0) if tokens.ndim == 1 else tokens
    if tokens.ndim != 2:
        raise ValueError(f"tokens: they must be of [batch, rows], not {list(tokens.shape)}")
    batch, number = tokens.shape
    if number == 0:
        raise ValueError("tokens: there are none")
    rows = row_counts(layers)
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
    real = real_rows(attention_mask, tokens.shape[0], tokens.shape[1], tokens.device)
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


class _Rows(cache_utils.DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that writes what is encoded to ``rows`` of another, and shows all rows up to the last of them."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, rows: list[int], index: torch.Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.rows, self.index = layer.keys, layer.values, rows, index
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.is_initialized = True
        self.before: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end, index = self.rows[-1] + 1, self.index.to(self.device)
        if self.before is None:
            self.before = self.keys.index_select(2, index), self.values.index_select(2, index)
        self.keys.index_copy_(2, index, key_states)
        self.values.index_copy_(2, index, value_states)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def undo(self) -> None:
        """Writes back what was there."""
        if self.before is not None:
            index = self.index.to(self.device)
            self.keys.index_copy_(2, index, self.before[0])
            self.values.index_copy_(2, index, self.before[1])

    def get_seq_length(self) -> int:
        return self.rows[0]
