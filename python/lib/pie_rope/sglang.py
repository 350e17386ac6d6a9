"""Edits of SGLang's token pools.

A layer's ``k_buffer`` and ``v_buffer`` are ``[slots, heads, dim]``, one token a slot; latent attention (MLA) has one
``kv_buffer``, ``[slots, 1, 512 + 64]``, and no values. Row ``r`` of a request is in slot ``slots[r]``: its row of
``req_to_token``, as far as it is in use.

Slots that other requests share (the radix cache) must not be edited in place: :func:`copy` brings the rows to slots of
the request's own instead. Layers with a sliding window, whose older slots the pool has taken back, cannot be edited.

:func:`model_rope` is the rope of a model as SGLang has it, which is not always that of transformers.

A worker that has some of the layers (pipeline parallel) takes ``rotations.select(layers)``; one that has some of the
heads (tensor parallel) takes the rotations as they are.
"""

import operator
from typing import Any

from . import _engines, _native, _tables
from ._native import ModelRope, Plan, Rotations

__all__ = ["copy", "edited_slots", "model_rope", "rotate", "splice"]


def model_rope(hf_config: Any, context_length: int) -> ModelRope:
    """The ropes of a model as SGLang turns its keys: ``model_config.hf_config`` (an object, a dict or the text of a
    config.json) and ``model_config.context_len``.

    As ``sglang/srt/layers/rotary_embedding`` has it (``factory.py`` at eb047c1, ``rope_variant.py`` at 6170d97); where
    it goes another way than transformers:

    - LongRoPE takes the long factors for all that is in a forward pass with a position past the original length, other
      requests included, and the short ones else: which keys have which is not known. So a model that is served with a
      ``context_length`` past the original one is **refused**; with one up to it all keys have the short factors.
    - Dynamic NTK has one theta for every length, that of ``factor`` times the longest sequence.
    - Llama 4's keys are in halves: the loader reorders them (``mllama4.py``).
    - Llama's heads turn as far as a ``partial_rotary_factor`` says, and in pairs of neighbours where
      ``rope_is_neox_style`` is false (``llama.py``). Of other models, these are refused where transformers does not
      look at them.

    Everything else is as in transformers. Refused are dual chunk attention, Fourier position embedding, an
    ``extrapolation_factor``, ``rope_scaling`` and ``rope_parameters`` that contradict each other, and what
    :meth:`ModelRope.from_config` does not know.
    """
    limit = operator.index(context_length)
    if limit < 1:
        raise ValueError(f"context_length: it is {limit}")

    def factors(original: int) -> int:
        if limit > original:
            raise ValueError(
                "hf_config: under LongRoPE SGLang takes the long factors for all requests of a forward pass in which"
                f" one is past {original} tokens, so that with a `context_length` of {limit} it is not known which"
                f" keys have which; with one of {original} at most they have the short ones"
            )
        return original

    return _engines.model_rope("SGLang", hf_config, factors, llama_style=True)


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
