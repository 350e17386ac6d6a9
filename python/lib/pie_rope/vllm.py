"""Edits of vLLM's paged caches.

A layer's ``kv_cache`` is, by version and attention backend:

- ``[blocks, heads, block_size, 2 * head_size]``, each key with its value behind it (FlashAttention, FlashInfer and
  Triton since about 0.26, vllm#44455);
- ``[2, blocks, block_size, heads, head_size]`` (FlashAttention before 0.23);
- ``[blocks, 2, block_size, heads, head_size]`` (FlashInfer and Triton before 0.26, FlashAttention from 0.23 on);
- any of the last two with heads before rows in the shape, too;
- ``[blocks, block_size, head_size]`` for latent attention (MLA): 512 + 64 in DeepSeek-V3, no values; of the
  ``[blocks, 1, block_size, 512 + 64]`` that the runner keeps since about 0.28 (vllm#51718), pass ``cache[:, 0]``;
- a pair ``(keys, values)``, each ``[blocks, block_size, heads, head_size]``, for any other that keeps both apart.

A cache whose shape does not have ``block_size`` where these have it is refused. ``layout`` has to be said only where as
many heads as rows make two shapes alike: it is the order in the shape. vLLM's own setting of that name is the order in
memory: it permutes strides, which are followed here, and leaves the shape. ``block_size`` is the caches' own, and the
one that the worker's block table counts in: a backend may cut the blocks of the configuration in several.

Two backends have these shapes, but keep keys in another order, which no shape tells: their caches **must not be given
to this module**. ``CPU_ATTN`` transposes the keys of a block, or tiles them; ``ROCM_ATTN`` packs them, as the layout
``"x_packed"`` of :func:`pie_rope.splice` does.

Row ``r`` of a request is in block ``block_table[r // block_size]``: the request's row of vLLM's block table, a list or
a tensor (of one on a GPU, the copy to the host is waited for; vLLM has its own there, too). Padding behind the blocks
in use may stay. Groups of layers with a sliding window, whose first blocks vLLM has taken back (the null block, 0, is
there again and again), cannot be edited where such rows turn or move, and are refused.

Blocks that other requests share (prefix caching) must not be edited in place: :func:`copy` brings the rows to blocks of
the request's own instead.

:func:`model_rope` is the rope of a model as vLLM has it, which is not always that of transformers.

A worker that has some of the layers (pipeline parallel) takes ``rotations.select(layers)``; one that has some of the
heads (tensor parallel) takes the rotations as they are. Context parallelism deals out rows, and is not supported.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from . import _engines, _native, _tables
from ._native import ModelRope, NewSpan, Rotations

__all__ = ["copy", "model_rope", "slot_mapping", "splice"]

_Layout: TypeAlias = Literal["NHD", "HND"]


def model_rope(hf_config: Any, max_model_len: int) -> ModelRope:
    """The ropes of a model as vLLM turns its keys: of its ``vllm_config.model_config.hf_config`` (an object, a dict or
    the text of a config.json) and ``vllm_config.model_config.max_model_len``.

    As ``vllm/model_executor/layers/rotary_embedding`` has it after 0.11.0; where it goes another way than transformers:

    - LongRoPE takes the long factors at every length once ``max_model_len`` is past the original one, else the short
      ones (vllm#27431, ``phi3_long_rope_scaled_rope.py`` at 63c2b7a). Before, a forward pass took what its longest
      sequence asked for, which no configuration tells.
    - Dynamic NTK has one theta for every length, that of ``factor`` times the longest sequence
      (``dynamic_ntk_scaling_rope.py`` at 50feac9).
    - YaRN with M-RoPE takes four times the original length for its ramp (vllm#25384, ``mrope.py`` at dba39a5).
    - Llama 4's keys are in halves: the loader reorders them (``llama4.py`` at 0121c95).
    - Llama's heads turn as far as a ``partial_rotary_factor`` says (``llama.py``). Of other models it is refused where
      transformers does not look at it.

    Everything else is as in transformers. Refused are dual chunk attention, an ``extrapolation_factor``,
    ``rope_scaling`` and ``rope_parameters`` that contradict each other, and what :meth:`ModelRope.from_config` does not
    know. The frequencies are those of float32, which vLLM computes them in, to
    its rounding; its tables of cosines are in the model's type, and their rounding stays in the keys.
    """
    limit = operator.index(max_model_len)
    if limit < 1:
        raise ValueError(f"max_model_len: it is {limit}")
    return _engines.model_rope(
        "vLLM", hf_config, lambda original: original + 1 if limit > original else original, mrope_yarn=4
    )


def splice(
    kv_caches: Any,
    block_table: Any,
    rotations: Rotations,
    *,
    block_size: int,
    kv_dim: int | None = None,
    layout: _Layout | None = None,
    head_size: int | None = None,
    stream: Any = None,
    workspace: Any = None,
) -> None:
    """Moves the rows of one request inside its blocks, in every layer, and turns keys on the way.

    ``kv_caches`` is a list with each layer's cache, in the model's order, or one layer's. ``block_table`` must have
    blocks for the longer of the old and the new sequence: allocate before an insertion, free after a deletion.

    Where a shape does not tell: ``kv_dim`` is the axis of keys and values, 0 or 1; ``layout`` says what comes first
    in a block, rows (``"NHD"``) or heads (``"HND"``); ``head_size`` is that of a key whose value has another.
    """
    keys, values = _keys_and_values(kv_caches, _Shape(block_size, kv_dim, layout, head_size))
    block_table = _tables.as_list("block_table", block_table)
    _native.splice(rotations, keys, values, layout="nhd", block_table=block_table, stream=stream, workspace=workspace)


def copy(
    kv_caches: Any,
    block_table: Any,
    new_block_table: Any,
    rotations: Rotations,
    *,
    block_size: int,
    kv_dim: int | None = None,
    layout: _Layout | None = None,
    head_size: int | None = None,
    stream: Any = None,
    workspace: Any = None,
) -> None:
    """Copies the rows of one request to the blocks of ``new_block_table``, in every layer, and turns keys on the way.

    Leading blocks that both tables have stay shared: their rows are not copied. All others are, whether they turn or
    not. A shared block with rows that the edit changes, or that are to be encoded, is refused, and so is one behind a
    block that differs. For ``kv_dim``, ``layout`` and ``head_size`` see :func:`splice`.
    """
    keys, values = _keys_and_values(kv_caches, _Shape(block_size, kv_dim, layout, head_size))
    tables = ("block_table", block_table), ("new_block_table", new_block_table)
    _tables.copy(rotations, keys, values, tables, block_size, layout="nhd", stream=stream, workspace=workspace)


def slot_mapping(block_table: Any, block_size: int, spans: Iterable[NewSpan]) -> list[int]:
    """The slots of the rows that a plan opens (``plan.new_spans``), as vLLM's ``slot_mapping`` counts them: where the
    engine's own kernels write the keys and values that it encodes."""
    table, slots = _tables.as_list("block_table", block_table), []
    if not hasattr(block_size, "__index__"):
        raise TypeError(f"block_size: {block_size!r} is no integer")
    if block_size < 1:
        raise ValueError(f"block_size: it is {block_size}")
    for span in spans:
        for row in range(span.row, span.row + span.len):
            entry, place = divmod(row, block_size)
            if entry >= len(table) or table[entry] < 0:
                has = f"entry {entry} is {table[entry]}" if entry < len(table) else f"it has {len(table)} entries"
                raise ValueError(f"block_table: row {row} has no block: {has}")
            slots.append(table[entry] * block_size + place)
    return slots


@dataclass(frozen=True)
class _Shape:
    """What a caller says of the caches' shape."""

    block_size: int
    kv_dim: int | None
    layout: _Layout | None
    head_size: int | None

    def __post_init__(self) -> None:
        if self.layout not in (None, "NHD", "HND"):
            raise ValueError(f"layout: there is no {self.layout!r}, only 'NHD' and 'HND'")


def _keys_and_values(kv_caches: Any, said: _Shape) -> tuple[list[Any], list[Any] | None]:
    if kv_caches is None or isinstance(kv_caches, Mapping):
        given = type(kv_caches).__name__
        raise TypeError(f"kv_caches: it must be a list of the layers' caches, in the model's order, not a {given}")
    caches = [kv_caches] if hasattr(kv_caches, "shape") else kv_caches
    pairs = [_split(f"kv_caches[{index}]", layer, said) for index, layer in enumerate(caches)]
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    if all(value is None for value in values):
        return keys, None
    if any(value is None for value in values):
        raise ValueError("kv_caches: some layers have values, some have none")
    return keys, values


def _split(name: str, layer: Any, said: _Shape) -> tuple[Any, Any]:
    """Keys and values as ``[blocks, block_size, heads, head_size]``, which they are views of; no values: ``None``."""
    if isinstance(layer, (list, tuple)) and len(layer) == 2:
        return _rows_first(name, layer[0], said), _rows_first(name, layer[1], said)
    if not hasattr(layer, "shape"):
        raise TypeError(f"{name}: {type(layer).__name__} is no tensor")
    shape = tuple(layer.shape)
    if len(shape) == 3:
        return _rows_first(name, layer[:, :, None], replace(said, layout="NHD")), None
    if len(shape) == 4:
        return _packed(name, layer, said)
    if len(shape) != 5:
        raise ValueError(f"{name}: its shape {shape} is none of vLLM's")
    kv_dim = said.kv_dim
    if kv_dim is None:
        axes = [axis for axis in (0, 1) if shape[axis] == 2]
        if len(axes) != 1:
            raise ValueError(f"{name}: its shape {shape} does not tell the axis of keys and values: pass `kv_dim`")
        kv_dim = axes[0]
    if kv_dim not in (0, 1) or shape[kv_dim] != 2:
        raise ValueError(f"kv_dim: axis {kv_dim} of {shape} is not that of keys and values")
    key, value = (layer[0], layer[1]) if kv_dim == 0 else (layer[:, 0], layer[:, 1])
    return _rows_first(name, key, said), _rows_first(name, value, said)


def _packed(name: str, layer: Any, said: _Shape) -> tuple[Any, Any]:
    """Of ``[blocks, heads, block_size, 2 * head_size]``."""
    shape = tuple(layer.shape)
    width = shape[3] // 2 if said.head_size is None else said.head_size
    if said.layout == "NHD" or shape[2] != said.block_size:
        raise ValueError(f"{name}: its shape {shape} is not [blocks, heads, {said.block_size}, 2 * head_size]")
    if said.head_size is None and shape[3] % 2 or not 0 < width < shape[3]:
        raise ValueError(f"{name}: {shape[3]} numbers are not a key and a value: pass `head_size`, that of a key")
    rows_first = layer.transpose(1, 2)
    return rows_first[..., :width], rows_first[..., width:]


def _rows_first(name: str, part: Any, said: _Shape) -> Any:
    shape = tuple(part.shape)
    if len(shape) == 4:
        found = [layout for layout, axis in (("NHD", 1), ("HND", 2)) if shape[axis] == said.block_size]
        if said.layout is None and len(found) == 2:
            raise ValueError(f"{name}: {shape} has as many heads as rows in a block: pass `layout`")
        layout = said.layout or "".join(found)
        if layout in found:
            return part if layout == "NHD" else part.transpose(1, 2)
    order = {"NHD": f"{said.block_size}, heads", "HND": f"heads, {said.block_size}", None: f"{said.block_size}, heads"}
    raise ValueError(f"{name}: keys or values of {shape} are not [blocks, {order[said.layout]}, head_size]")
