"""Edits of vLLM's paged caches.

A layer's ``kv_cache`` is, by attention backend:

- ``[2, blocks, block_size, heads, head_size]`` (FlashAttention);
- ``[blocks, 2, block_size, heads, head_size]`` (FlashInfer, Triton), in memory also with heads before rows: vLLM
  then hands out a permuted view of the same shape, and strides are all that matters here;
- ``[blocks, block_size, head_size]`` for latent attention (MLA): 512 + 64 in DeepSeek-V3, no values;
- a pair ``(keys, values)``, each ``[blocks, block_size, heads, head_size]``, for any other that keeps both apart.

A cache whose shape does not have ``block_size`` where these have it is refused.

Row ``r`` of a request is in block ``block_table[r // block_size]``: the request's row of vLLM's block table, a list or
a tensor (of one on a GPU, the copy to the host is waited for; vLLM has its own there, too). Padding behind the blocks
in use may stay.

Blocks that other requests share (prefix caching) must not be edited in place: :func:`copy` brings the rows to blocks of
the request's own instead.
"""

from collections.abc import Iterable
from typing import Any

from . import _native, _tables
from ._native import NewSpan, Rotations

__all__ = ["copy", "slot_mapping", "splice"]


def splice(
    kv_caches: Any,
    block_table: Any,
    rotations: Rotations,
    *,
    block_size: int,
    kv_dim: int | None = None,
    stream: Any = None,
    workspace: Any = None,
) -> None:
    """Moves the rows of one request inside its blocks, in every layer, and turns keys on the way.

    ``kv_caches`` is a list with each layer's cache, or one layer's. ``block_table`` must have blocks for the longer of
    the old and the new sequence: allocate before an insertion, free after a deletion. ``kv_dim`` is the axis of keys
    and values, 0 or 1, for a cache of two blocks whose shape does not tell.
    """
    keys, values = _keys_and_values(kv_caches, block_size, kv_dim)
    _native.splice(rotations, keys, values, layout="nhd", block_table=block_table, stream=stream, workspace=workspace)


def copy(
    kv_caches: Any,
    block_table: Any,
    new_block_table: Any,
    rotations: Rotations,
    *,
    block_size: int,
    kv_dim: int | None = None,
    stream: Any = None,
    workspace: Any = None,
) -> None:
    """Copies the rows of one request to the blocks of ``new_block_table``, in every layer, and turns keys on the way.

    Leading blocks that both tables have stay shared: their rows are not copied. All others are, whether they turn or
    not. A shared block with rows that the edit moves or turns is refused, and so is one behind a block that differs.
    """
    keys, values = _keys_and_values(kv_caches, block_size, kv_dim)
    tables = ("block_table", block_table), ("new_block_table", new_block_table)
    _tables.copy(rotations, keys, values, tables, block_size, layout="nhd", stream=stream, workspace=workspace)


def slot_mapping(block_table: Any, block_size: int, spans: Iterable[NewSpan]) -> list[int]:
    """The slots of the rows that a plan opens (``plan.new_spans``), as vLLM's ``slot_mapping`` counts them: where the
    engine's own kernels write the keys and values that it encodes."""
    table = _tables.as_list(block_table)
    rows = (row for span in spans for row in range(span.row, span.row + span.len))
    return [table[row // block_size] * block_size + row % block_size for row in rows]


def _keys_and_values(kv_caches, block_size, kv_dim):
    single = hasattr(kv_caches, "shape")
    keys, values = [], []
    for index, layer in enumerate([kv_caches] if single else kv_caches):
        key, value = _split(f"kv_caches[{index}]", layer, block_size, kv_dim)
        keys.append(key)
        values.append(value)
    if all(value is None for value in values):
        return keys, None
    if any(value is None for value in values):
        raise ValueError("kv_caches: some layers have values, some have none")
    return keys, values


def _split(name, layer, block_size, kv_dim):
    key, value = _parts(name, layer, kv_dim)
    for part in (key, value):
        if part is not None and (len(part.shape) != 4 or part.shape[1] != block_size):
            shape = tuple(part.shape)
            raise ValueError(f"{name}: keys or values of {shape} are not [blocks, {block_size}, heads, head_size]")
    return key, value


def _parts(name, layer, kv_dim):
    if isinstance(layer, (list, tuple)) and len(layer) == 2:
        return tuple(layer)
    shape = tuple(layer.shape)
    if len(shape) == 3:
        return layer[:, :, None], None
    if len(shape) != 5:
        raise ValueError(f"{name}: its shape {shape} is none of vLLM's")
    if kv_dim is None:
        axes = [axis for axis in (0, 1) if shape[axis] == 2]
        if len(axes) != 1:
            raise ValueError(f"{name}: its shape {shape} does not tell the axis of keys and values: pass `kv_dim`")
        kv_dim = axes[0]
    if kv_dim not in (0, 1) or shape[kv_dim] != 2:
        raise ValueError(f"kv_dim: axis {kv_dim} of {shape} is not that of keys and values")
    return (layer[0], layer[1]) if kv_dim == 0 else (layer[:, 0], layer[:, 1])
