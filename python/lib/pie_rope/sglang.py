"""Edits of SGLang's token pools.

A layer's ``k_buffer`` and ``v_buffer`` are ``[slots, heads, dim]``, one token a slot; latent attention (MLA) has one
``kv_buffer``, ``[slots, 1, 512 + 64]``, and no values. Row ``r`` of a request is in slot ``slots[r]``: its row of
``req_to_token``, as far as it is in use.

Slots that other requests share (the radix cache) must not be edited in place: :func:`copy` brings the rows to slots of
the request's own instead. Layers with a sliding window, whose older slots the pool has taken back, cannot be edited.

A worker that has some of the layers (pipeline parallel) takes ``rotations.select(layers)``; one that has some of the
heads (tensor parallel) takes the rotations as they are.
"""

from typing import Any

from . import _native, _tables
from ._native import Plan, Rotations

__all__ = ["copy", "edited_slots", "rotate", "splice"]


def rotate(k_buffers: Any, slots: Any, rotations: Rotations, *, stream: Any = None, workspace: Any = None) -> None:
    """Turns the keys of one request where they are, in every layer: nothing moves, as a token may be in any slot.

    ``slots`` are those before the edit; :func:`edited_slots` gives those after it. This is the cheapest edit there is,
    for pools whose pages are one token (SGLang's default).
    """
    slots = _tables.as_list("slots", slots)
    _native.rotate(rotations, k_buffers, layout="slots", block_table=slots, stream=stream, workspace=workspace)


def edited_slots(slots: Any, plan: Plan, free: Any) -> list[int]:
    """The slots of the edited request, after :func:`rotate`: those of the rows that survive, and for each row to be
    encoded the next of ``free``. Slots of ``slots`` that are not among them are the engine's to free.
    """
    slots, free = _tables.as_list("slots", slots), _tables.as_list("free", free)
    needed = sum(span.len for span in plan.new_spans)
    if len(free) < needed:
        raise ValueError(f"free: the edit opens {needed} rows, there are {len(free)} slots")
    if len(slots) < plan.old_rows:
        raise ValueError(f"slots: the plan is for {plan.old_rows} rows, there are {len(slots)} slots")
    own = slots[: plan.old_rows]
    free = free[:needed]
    for name, given in (("slots", own), ("free", free)):
        if min(given, default=0) < 0:
            raise ValueError(f"{name}: entry {given.index(min(given))} is {min(given)}")
    if len(set(own)) < len(own):
        raise ValueError("slots: a slot is there twice")
    if len({*own, *free}) < len(own) + needed:
        raise ValueError("free: a slot is there twice, or is one of the request's own")
    edited = [0] * plan.new_rows
    for span in plan.kept:
        edited[span.dst : span.dst + span.len] = slots[span.src : span.src + span.len]
    next_free = iter(free)
    for opened in plan.new_spans:
        edited[opened.rows] = [next(next_free) for _ in range(opened.len)]
    return edited


def splice(
    k_buffers: Any, v_buffers: Any, slots: Any, rotations: Rotations, *, stream: Any = None, workspace: Any = None
) -> None:
    """Moves the rows of one request among its slots, in every layer, and turns keys on the way: for pools whose pages
    hold several tokens, where a request's slots must stay in order.

    ``slots`` must be as many as the longer of the old and the new sequence. ``v_buffers`` is ``None`` for latent rows.
    """
    slots = _tables.as_list("slots", slots)
    _native.splice(
        rotations, k_buffers, v_buffers, layout="slots", block_table=slots, stream=stream, workspace=workspace
    )


def copy(
    k_buffers: Any,
    v_buffers: Any,
    slots: Any,
    new_slots: Any,
    rotations: Rotations,
    *,
    stream: Any = None,
    workspace: Any = None,
) -> None:
    """Copies the rows of one request to ``new_slots``, in every layer, and turns keys on the way.

    Leading slots that both have stay shared: their rows are not copied. All others are, whether they turn or not. A
    shared slot of a row that the edit changes, or that is to be encoded, is refused, and so is one behind a slot that
    differs.
    """
    tables = ("slots", slots), ("new_slots", new_slots)
    _tables.copy(rotations, k_buffers, v_buffers, tables, 1, layout="slots", stream=stream, workspace=workspace)
