"""The ropes of a model: what its configuration says, and what its rotary modules hold.

The modules are what keys turn by. They differ from the configuration where a model was cast
(``model.to(torch.bfloat16)`` rounds the frequencies), and under dynamic NTK, where they remember the longest sequence
that they have seen.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .. import _config
from .._native import ModelRope, Rope

# A buffer of frequencies is called so, or begins with the type of its layers: `full_attention_inv_freq`.
_FREQUENCIES = "inv_freq"
# Copies that stand beside them, from which they are made again.
_COPIES = ("original_", "long_", "short_")
# Rounded to bfloat16, a frequency is off by 2 ** -9 of itself; a cast to float16 and back may round twice.
_ROUNDING = 2**-7


def model_rope(model: Any, tokens: int = 0) -> ModelRope:
    """The ropes of a model of transformers, as its rotary modules have them in a pass over ``tokens`` tokens, the first
    that it sees; ``tokens`` matters under LongRoPE and dynamic NTK alone.

    Of a configuration (an object, a dict of it or the text of a config.json), of its text part: what it says. That is
    what a model turns by as it was loaded, but not after a cast such as ``model.to(torch.bfloat16)``, which rounds the
    frequencies: keys 1000 rows on are then off by a tenth of themselves and more. A :class:`ModelRope` stays as it is.
    """
    if isinstance(model, ModelRope):
        return model
    if isinstance(model, torch.nn.Module):
        rotary = Rotary(model)
        with rotary.untouched():
            rotary.forget()
            return rotary.at(tokens)
    _config.check(model)
    return said(model, tokens)


def said(config: Any, tokens: int) -> ModelRope:
    """What a configuration says."""
    if isinstance(config, ModelRope):
        return config
    # PhiMoE's code in transformers takes the short factors of LongRoPE for sequences of any length.
    short = _config.entry(config, "model_type") == "phimoe"
    given = config if isinstance(config, (str, dict)) else _config.text(config)
    return ModelRope.from_config(given, 0 if short else tokens)


def magnitude(config: Any, tokens: int) -> Any:
    """What keys are scaled by, where that depends on the length of their sequence."""
    if isinstance(config, ModelRope) or _config.entry(config, "model_type") != "phimoe":
        return None
    rope = _config.entry(config, "rope_parameters", "rope_scaling") or {}
    switch = rope.get("original_max_position_embeddings") or _config.entry(config, "original_max_position_embeddings")
    return rope.get("long_mscale" if switch is not None and tokens > switch else "short_mscale")


@dataclass(frozen=True)
class _Buffer:
    """Where frequencies are: a module's attribute, of layers of a type, or of all."""

    module: Any
    name: str
    # `layers.3.self_attn.rotary_emb` is layer 3's own.
    layer: int | None

    @property
    def prefix(self) -> str:
        return self.name[: -len(_FREQUENCIES)]

    @property
    def layer_type(self) -> str | None:
        return self.prefix[:-1] or None

    @property
    def rope_type(self) -> str:
        kind = getattr(self.module, "rope_type", None)
        kind = kind.get(self.layer_type) if isinstance(kind, dict) else kind
        return kind if isinstance(kind, str) else "default"

    @property
    def changes(self) -> bool:
        """Whether a pass may change them."""
        return "dynamic" in self.rope_type or self.rope_type == "longrope"

    def frequencies(self) -> list[float]:
        values: list[float] = getattr(self.module, self.name).detach().double().flatten().tolist()
        return values


class Rotary:
    """The rotary modules of a model's decoder. Those of towers beside it, for images and sound, are not among them."""

    def __init__(self, model: Any):
        self.config = _config.text(model.config)
        # Where keys turn by the configuration's frequencies all the same: layers, as `compared` has them.
        self.as_said: frozenset[int] = frozenset()
        self.buffers: list[_Buffer] = []
        # It holds frequencies, and computes them anew from its configuration in each pass.
        if _config.entry(self.config, "model_type") == "phimoe":
            return
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        # What ModernBERT calls its decoder is its last layer.
        self.buffers = _buffers(decoder) or _buffers(model)

    @property
    def changes(self) -> bool:
        return any(buffer.changes for buffer in self.buffers)

    @property
    def state(self) -> Any:
        """What is another where frequencies were cast or replaced; passes that change them do not."""
        tensors = [(buffer, getattr(buffer.module, buffer.name)) for buffer in self.buffers]
        return [
            (tensor.dtype, tensor.device)
            if buffer.changes or tensor.is_inference()
            else (tensor.dtype, tensor.device, tensor.data_ptr(), tensor._version)
            for buffer, tensor in tensors
        ]

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Whatever passes do to the modules in between, they are as they were before."""
        modules = {id(buffer.module): buffer.module for buffer in self.buffers}.values()
        saved = [
            (
                module,
                dict(vars(module)),
                {
                    name: (buffer, None if buffer is None else buffer.clone())
                    for name, buffer in module._buffers.items()
                },
            )
            for module in modules
        ]
        try:
            yield
        finally:
            for module, attributes, buffers in saved:
                for name in set(vars(module)) - set(attributes):
                    del vars(module)[name]
                vars(module).update(attributes)
                module._buffers.clear()
                module._buffers.update({name: buffer for name, (buffer, _) in buffers.items()})
                for buffer, content in buffers.values():
                    if buffer is not None and content is not None and not torch.equal(buffer, content):
                        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                            buffer.copy_(content)

    def forget(self) -> None:
        """As after loading: no sequence has been seen."""
        for buffer in self.buffers:
            module, prefix = buffer.module, buffer.prefix
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if not buffer.changes or original is None:
                continue
            module._buffers[buffer.name] = original.clone()
            if hasattr(module, "original_max_seq_len"):
                module.max_seq_len_cached = module.original_max_seq_len
                if hasattr(module, f"{prefix}max_seq_len_cached"):
                    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    def longest(self) -> list[tuple[int, int]]:
        """Under dynamic NTK, the length up to which nothing changes, and the longest that a module remembers."""
        found = []
        for buffer in self.buffers:
            module = buffer.module
            if "dynamic" in buffer.rope_type and hasattr(module, "original_max_seq_len"):
                seen = getattr(module, f"{buffer.prefix}max_seq_len_cached", module.max_seq_len_cached)
                found.append((int(module.original_max_seq_len), int(seen)))
        return found

    def at(self, tokens: int) -> ModelRope:
        """The ropes of a pass that ends at so many tokens. It changes the modules as such a pass does."""
        with torch.no_grad():
            for buffer in self.buffers:
                if buffer.changes and tokens > 0:
                    tensor = getattr(buffer.module, buffer.name)
                    last = torch.tensor([[tokens - 1]], device=tensor.device)
                    x = torch.zeros(1, device=tensor.device)
                    arguments = () if buffer.layer_type is None else (buffer.layer_type,)
                    buffer.module(x, last, *arguments)
        return self._held(said(self.config, tokens))

    def passes(self, lengths: Iterable[int]) -> list[ModelRope]:
        """The ropes of passes, one after the other, that end at so many tokens each, from now on."""
        if not self.changes:
            held = self.at(0)
            return [held for _ in lengths]
        with self.untouched():
            return [self.at(tokens) for tokens in lengths]

    def _held(self, configured: ModelRope) -> ModelRope:
        """The configuration's ropes with the modules' frequencies."""
        types = _config.entry(self.config, "layer_types") or ()
        made: dict[Any, Rope] = {}
        ropes: list[Rope | None] = []
        for index in range(configured.layers):
            rope = configured.layer(index)
            kind = types[index] if index < len(types) else None
            buffer = None if rope is None else self._of(index, kind, types, rope)
            said_so = self.as_said and representative(configured, index) in self.as_said
            if rope is None or buffer is None or said_so:
                ropes.append(rope)
                continue
            key = (id(buffer.module), buffer.name, rope.pairing, rope.offset)
            if key not in made:
                held = buffer.frequencies()
                if not buffer.changes:
                    _warn_if_they_differ(index, held, rope.inv_freq)
                made[key] = Rope.from_inv_freq(held, pairing=rope.pairing, offset=rope.offset)
            ropes.append(made[key])
        return ModelRope.from_layers(ropes)

    def _of(self, index: int, kind: str | None, types: Sequence[str], rope: Rope) -> _Buffer | None:
        """The buffer that a layer turns by: its own, that of its type, or the nearest to what is said."""
        some = [buffer for buffer in self.buffers if buffer.layer in (None, index)]
        some = [buffer for buffer in some if buffer.layer == index] or some
        own = [buffer for buffer in some if buffer.layer_type is not None and buffer.layer_type == kind]
        some = own or [buffer for buffer in some if buffer.layer_type not in types]
        wanted = rope.inv_freq
        # A window of an odd number of dimensions has a pair of which one is missing.
        some = [buffer for buffer in some if getattr(buffer.module, buffer.name).numel() == len(wanted)]
        if len(some) < 2:
            return some[0] if some else None
        return min(some, key=lambda buffer: apart(buffer.frequencies(), wanted))


def _buffers(model: Any) -> list[_Buffer]:
    found = []
    for path, module in model.named_modules():
        for name in [*module._buffers, *vars(module)]:
            if not name.endswith(_FREQUENCIES) or any(copy in name for copy in _COPIES):
                continue
            if isinstance(getattr(module, name), torch.Tensor) and getattr(module, name).is_floating_point():
                found.append(_Buffer(module, name, _layer_of(path)))
    return found


def representative(rope: ModelRope, layer: int) -> int:
    """The first layer that has the same rope."""
    return next(index for index in range(layer + 1) if rope.layer(index) == rope.layer(layer))


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """By how much frequencies differ, relative to the larger ones; what is no number differs from everything."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a == b:
            continue
        off = abs(a - b) / max(abs(a), abs(b))
        if math.isnan(off):
            return math.inf
        worst = max(worst, off)
    return worst


def _warn_if_they_differ(layer: int, held: Sequence[float], configured: Sequence[float]) -> None:
    if apart(held, configured) <= _ROUNDING:
        return
    pair = max(range(len(held)), key=lambda pair: apart([held[pair]], [configured[pair]]))
    warnings.warn(
        f"model: pair {pair} of layer {layer} turns by {held[pair]:.6g} a position in its rotary module, but by"
        f" {configured[pair]:.6g} by its configuration; the module's frequencies are used",
        stacklevel=2,
    )


def _layer_of(path: str) -> int | None:
    """The layer whose own a module is, by its path."""
    parts = path.split(".")
    for name, number in zip(parts, parts[1:], strict=False):
        if name in ("layers", "h", "blocks", "block") and number.isdigit():
            return int(number)
    return None


def latent(config: Any) -> Mapping[str, int] | None:
    """The widths of a latent attention's rows, or None for one that keeps heads."""
    if isinstance(config, ModelRope):
        return None
    rank, rotary = _config.entry(config, "kv_lora_rank"), _config.entry(config, "qk_rope_head_dim")
    return None if rank is None else {"rank": rank, "rotary": rotary}
