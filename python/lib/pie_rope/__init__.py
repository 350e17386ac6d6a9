"""Positional Integrity Encoding: cached rotary keys turn to their new positions when the text before them is edited.

    K_new = R(p_new) · R(p_old)ᵀ · K_old        per head; values never turn

An engine then encodes the edited tokens alone, instead of everything again (He et al., ICLR 2025, arXiv 2407.03157).

    rope + edits -> Plan -> Rotations -> rotate | splice | copy -> keys, in place

Three verbs do everything, in all layers at once:

- :func:`rotate`: rows stay where they are, keys turn.
- :func:`splice`: rows move inside their tensors, keys turn on the way, values move along.
- :func:`copy`: rows go to other tensors, or to other pages of the same ones.

Tensors
    torch tensors, numpy arrays, and anything else with ``__dlpack__``, on the CPU or on an NVIDIA GPU, of float32,
    float16 or bfloat16 (numpy's by ``ml_dtypes``), of any strides: views are worked on where they lie. ``keys`` and
    ``values`` are a list with a tensor for each layer, all laid out alike, or one tensor for one layer.
Layouts
    The order of a tensor's axes, by name: ``"bhsd"`` (batch, heads, sequence, dimension; transformers), ``"bshd"``
    (FlashAttention), ``"slots"`` (slots, heads, dimension; SGLang), ``"nhd"`` (blocks, block, heads, dimension; vLLM,
    FlashInfer), ``"hnd"`` (blocks, heads, block, dimension) and ``"x_packed"`` (blocks, heads, dim / x, block, x, and
    its values: blocks, heads, dim, block).
Block tables
    With ``block_table``, row ``r`` is in block ``block_table[r // block]``; with ``"slots"``, entry ``r`` is its slot.
    Without one, blocks are in order: rows 0 and on are in block 0, whosever that is.
Streams
    On a GPU a call is one kernel, in ``stream`` (an integer, or a stream of torch or cupy); without it, in torch's
    current stream for tensors of torch, else in the default one. It is not waited for.
Workspaces
    A call on a GPU with thousands of spans or pages needs device memory for its parameters. It is taken from torch
    where the stream is torch's current one; else ``workspace`` has to be a tensor that is long enough.
Errors
    ``ValueError`` (and ``TypeError`` for what is no tensor at all) names the argument that is wrong; ``RuntimeError``
    and ``MemoryError`` are what the device says. A call that was refused has written nothing.

:mod:`pie_rope.huggingface` edits caches of transformers, :mod:`pie_rope.vllm` and :mod:`pie_rope.sglang` those of the
engines.
"""

from ._native import (
    Edit,
    ModelRope,
    NewSpan,
    Plan,
    Rope,
    Rotations,
    Span,
    __version__,
    check,
    copy,
    rotate,
    splice,
)

__all__ = [
    "Edit",
    "ModelRope",
    "NewSpan",
    "Plan",
    "Rope",
    "Rotations",
    "Span",
    "__version__",
    "check",
    "copy",
    "rotate",
    "splice",
]
