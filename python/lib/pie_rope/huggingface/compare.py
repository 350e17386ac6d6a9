"""What a model does, seen on one token: the position that it gives to its first row, and how its keys turn.

A token that is a sequence by itself attends to nothing but itself, so that what goes into each layer is the same at
every position, and two of its keys differ by the rotation alone.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import cache_utils

from .. import _config
from .._native import ModelRope, Plan, Rope, Rotations, rotate
from .model import LATENT, cache_argument
from .ropes import Rotary, latent, magnitude, representative, said

# How far a key may be from where it should be, in parts of the largest component: some roundings of the type, of a
# cosine and of a sine among them, and of float32 those of a GPU that multiplies in TF32. Another pairing, window or
# first position is off by tenths.
_ROUNDING = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# And for each position, of an angle that float32 holds.
_ANGLE = 2.0**-22
# Far enough for a rounded frequency to show.
_FAR = 1000


@dataclass(frozen=True)
class Compared:
    """What one token has shown of a model."""

    # The position of a sequence's first row, where the model itself counts.
    first: int
    # The dimensions of keys and values, in the layers that were looked at.
    widths: dict[int, tuple[int, int]]
    # Layers, each the first that has its rope, whose keys turn by the configuration's frequencies and not by those that
    # rotary modules hold.
    as_said: frozenset[int]
    # Why the ropes of the model are not known, if they are not.
    problem: str | None
    # What the model was like.
    state: Any


_SEEN: "weakref.WeakKeyDictionary[Any, Compared]" = weakref.WeakKeyDictionary()


def compared(model: Any, rotary: Rotary) -> Compared:
    """Made at a model's first use, and again where its frequencies were cast or replaced since."""
    state = (model.dtype, rotary.state)
    seen = _SEEN.get(model)
    if seen is None or seen.state != state:
        seen = _SEEN[model] = _compare(model, rotary, state)
    return seen


def _compare(model: Any, rotary: Rotary, state: Any) -> Compared:
    far = _far(model, rotary)
    problem = None
    try:
        configured = said(model.config, far + 1)
        held = rotary.passes([far + 1])[0]
        # Each of the model's ropes once.
        layers = {representative(configured, layer) for layer in range(configured.layers)}
    except ValueError as error:
        problem, layers = str(error), {0}
    one = torch.tensor([[_token(model)]], device=model.device)

    def at(*positions: int) -> dict[int, dict[str, torch.Tensor]]:
        ids = torch.tensor(positions, device=model.device)[:, None]
        with _quietly(model):
            return _keys(model, layers, input_ids=one.expand(len(positions), 1), position_ids=ids)

    try:
        apart = at(0, 1, far)
        # A far position may change what the near ones have.
        near = at(0, 1) if rotary.changes or magnitude(model.config, 2) != magnitude(model.config, far + 1) else apart
        with _quietly(model):
            alone = _keys(model, layers, input_ids=one)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"model: one token cannot be encoded by itself, to see how keys turn ({type(error).__name__}: {error});"
            " if you know how they do, pass a `ModelRope` in the model's place"
        ) from error
    if not apart:
        raise ValueError("model: it caches no keys")
    turns = turned_part(model.config)
    keys = {layer: parts[turns].float().cpu()[:, :, 0] for layer, parts in apart.items()}
    tolerance = max(_ROUNDING.get(parts[turns].dtype, 1e-1) for parts in apart.values())
    first = _first(
        {layer: parts[turns].float().cpu()[0, :, 0] for layer, parts in alone.items()},
        {layer: parts[turns].float().cpu()[:, :, 0] for layer, parts in near.items()},
        tolerance,
    )
    widths = {layer: (parts["keys"].shape[-1], parts["values"].shape[-1]) for layer, parts in apart.items()}
    as_said = set()
    if problem is None:
        ropes = [_as_stored(model.config, rope) for rope in (held, configured)]
        for layer in sorted(keys):
            by_held, by_said = (_off(keys[layer], far, rope.layer(layer)) for rope in ropes)
            # Written so that a NaN fits nothing.
            held_fits, said_fits = (by <= tolerance + _ANGLE * far for by in (by_held, by_said))
            if held_fits and (by_held <= 2 * by_said or not said_fits):
                continue
            if said_fits:
                as_said.add(layer)
                continue
            kind = _config.entry(model.config, "model_type")
            problem = (
                f"model: keys of layer {layer} of this `{kind}` do not turn as its rotary module and its configuration"
                f" say: from position 0 to {far} they are off by {by_held:.2g} of their size; if you know how they"
                " turn, pass a `ModelRope` in the model's place"
            )
    return Compared(first, widths, frozenset(as_said), problem, state)


def _off(keys: torch.Tensor, far: int, rope: Rope | None) -> float:
    """How far the key that is turned from position 0 to `far` is from the one that the model makes there."""
    turned = keys[0].clone()[None, :, None]
    if rope is not None and rope.offset + rope.rotary_dim > turned.shape[-1]:
        return float("inf")
    if rope is not None:
        rotate(Rotations(Plan.from_positions([0], [far]), rope), turned)
    size = keys[0].abs().max()
    # Of nothing, nothing can be seen; of what is no number the difference is none either.
    return 0.0 if size == 0 else float((turned[0, :, 0] - keys[2]).abs().max() / size)


def _as_stored(config: Any, rope: ModelRope) -> ModelRope:
    """Of a latent row, the part that turns lies by itself."""
    if latent(config) is None:
        return rope
    pairing = LATENT.get(_config.entry(config, "model_type"))
    return rope if pairing is None else rope.stored(offset=0, pairing=pairing)


@contextmanager
def _quietly(model: Any) -> Iterator[None]:
    """A pass in it leaves nothing behind: frequencies, positions, modes and random numbers are as before."""
    training = [module for module in model.modules() if module.training]
    states = [(module, module.rope_deltas) for module in model.modules() if hasattr(module, "rope_deltas")]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        model.eval()
        # No graph is compiled for it either; before 2.6 torch cannot be told so.
        eager = getattr(torch.compiler, "set_stance", nullcontext)
        with eager("force_eager"), Rotary(model).untouched():
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                yield
    finally:
        for module in training:
            module.training = True
        for module, state in states:
            module.rope_deltas = state


def _first(alone: dict[int, torch.Tensor], keys: dict[int, torch.Tensor], tolerance: float) -> int:
    """The position that a model gives the first row of its own accord."""
    for position in (0, 1):
        # Written so that a NaN is none.
        if all(
            float((own - keys[layer][position]).abs().max()) <= tolerance * float(keys[layer][0].abs().max())
            for layer, own in alone.items()
        ):
            return position
    raise ValueError(
        "model: the first row is at neither position 0 nor 1 where the model counts: how it does is unknown"
    )


def _far(model: Any, rotary: Rotary) -> int:
    """A position at which dynamic NTK is as it is now, and LongRoPE past its switch."""
    most = int(_config.entry(model.config, "max_position_embeddings", "n_positions") or _FAR + 1)
    far = min(_FAR, most - 1)
    for said_of in _config.parameters(model.config).values():
        if _config.rope_type(said_of) == "longrope":
            switch = said_of.get("original_max_position_embeddings")
            switch = int(switch or _config.entry(model.config, "original_max_position_embeddings") or most)
            far = max(far, switch) if switch < most else far
    for original, seen in rotary.longest():
        # One token more than `original` leaves grown frequencies alone.
        far = original if seen > original else min(far, original - 2)
    return max(far, 1)


def _token(model: Any) -> int:
    """One that stands for nothing else, neither padding nor an image."""
    vocabulary = int(_config.entry(model.config, "vocab_size") or 2)
    special = special_tokens(model.config) | {
        token
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        if isinstance(token := _config.entry(model.config, name), int)
    }
    return next((token for token in range(vocabulary // 2, vocabulary) if token not in special), vocabulary // 2)


def special_tokens(config: Any) -> set[int]:
    """Tokens that stand for rows of an image, a video or sound."""
    found = set()
    for part in (_config.whole(config), _config.text(config)):
        entries = part if isinstance(part, dict) else vars(part)
        for name, token in entries.items():
            media = any(word in name for word in ("image", "video", "audio", "vision", "speech"))
            row = name.endswith(("token_id", "token_index")) and not any(
                word in name for word in ("start", "end", "bos", "eos", "boi", "eoi")
            )
            if media and row and isinstance(token, int):
                found.add(token)
    return found


class _Enough(Exception):
    """All keys that were wanted are there."""


class _Seen(cache_utils.DynamicCache):
    """Keeps what layers give it, up to the last that is wanted."""

    def __init__(self, layers: set[int], whole: bool):
        super().__init__()
        self.wanted, self.whole = layers, whole
        self.parts: dict[int, dict[str, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_idx in self.wanted:
            self.parts[layer_idx] = {"keys": key_states.detach().clone(), "values": value_states.detach().clone()}
            if not self.whole and layer_idx == max(self.wanted):
                raise _Enough
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _keys(model: Any, layers: set[int], **arguments: Any) -> dict[int, dict[str, torch.Tensor]]:
    """What a pass would cache in these layers, [batch, heads, rows, dimension]; it ends when they have been reached."""
    # Where weights are fetched for each module, a pass that ends early would leave them there.
    whole = any(hasattr(module, "_hf_hook") for module in model.modules())
    cache = _Seen(layers, whole)
    try:
        model(use_cache=True, **{cache_argument(model): cache}, **arguments)
    except _Enough:
        pass
    return cache.parts


def from_cached(
    model: Any, tokens: torch.Tensor, positions: torch.Tensor, rows: list[int], cached: torch.Tensor
) -> float | None:
    """How far these rows of the first layer's keys, [batch, heads, rows, dimension], are from those that the model
    makes of the tokens, in parts of the largest: what goes into the first layer depends on no other token. None where
    that layer has no keys."""
    # The last one says how long the sequence is.
    chosen = torch.tensor([*rows, tokens.shape[-1] - 1], device=tokens.device)
    with _quietly(model):
        made = _keys(model, {0}, input_ids=tokens[:, chosen], position_ids=positions[:, chosen])
    if 0 not in made:
        return None
    new = made[0][turned_part(model.config)].float().cpu()[:, :, :-1]
    return float((new - cached.detach().float().cpu()).abs().max() / new.abs().max())


def turned_part(config: Any) -> str:
    """Which of a layer's tensors holds what turns: of a latent attention, it is where values are elsewhere."""
    return "keys" if latent(config) is None else "values"
