from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, final

class _SupportsDLPack(Protocol):
    def __dlpack__(self, *, stream: Any = ...) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...

class _SupportsToList(Protocol):
    def tolist(self) -> Any: ...

_Tensors: TypeAlias = _SupportsDLPack | Sequence[_SupportsDLPack]
_Integers: TypeAlias = Iterable[int] | _SupportsToList
_Numbers: TypeAlias = Sequence[float] | _SupportsToList
_Pairing: TypeAlias = Literal["half-split", "interleaved"]
_Layout: TypeAlias = Literal["bhsd", "bshd", "slots", "nhd", "hnd", "x_packed"]

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

__version__: str

@final
class Edit:
    """Replace the old tokens ``start`` to ``stop`` (half open) by ``inserted`` new ones."""

    def __new__(cls, start: int, stop: int, inserted: int) -> Edit: ...
    def __getnewargs__(self) -> tuple[int, int, int]: ...
    def __hash__(self) -> int: ...
    @staticmethod
    def insert(at: int, tokens: int) -> Edit: ...
    @staticmethod
    def delete(start: int, stop: int) -> Edit: ...
    @staticmethod
    def replace(start: int, stop: int, tokens: int) -> Edit: ...
    @staticmethod
    def between(old: _Integers, new: _Integers) -> list[Edit]: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def inserted(self) -> int: ...

@final
class Span:
    """A run of rows that survive."""

    @property
    def src(self) -> int: ...
    @property
    def dst(self) -> int: ...
    @property
    def len(self) -> int: ...
    @property
    def old_position(self) -> int: ...
    @property
    def new_position(self) -> int: ...

@final
class NewSpan:
    """A run of rows to encode."""

    @property
    def row(self) -> int: ...
    @property
    def len(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def rows(self) -> slice: ...
    @property
    def positions(self) -> range: ...

@final
class Plan:
    """What has to happen to a cached sequence so that it becomes the new one."""

    @staticmethod
    def from_edits(rows: int, edits: Sequence[Edit], *, first_position: int = 0) -> Plan: ...
    @staticmethod
    def from_tokens(old: _Integers, new: _Integers) -> Plan: ...
    @staticmethod
    def from_positions(old: _Integers, new: _Integers) -> Plan: ...
    @staticmethod
    def from_kept(rows: int, kept: _Integers) -> Plan: ...
    @staticmethod
    def from_kept_at(old: _Integers, kept: _Integers, new: _Integers) -> Plan: ...
    def then(self, next: Plan) -> Plan: ...
    def in_place(self) -> Plan: ...
    @property
    def kept(self) -> list[Span]: ...
    @property
    def new_spans(self) -> list[NewSpan]: ...
    @property
    def deltas(self) -> list[int]: ...
    @property
    def old_rows(self) -> int: ...
    @property
    def new_rows(self) -> int: ...

@final
class Rope:
    """One rotary position embedding."""

    @staticmethod
    def from_theta(theta: float, rotary_dim: int, *, pairing: _Pairing = "half-split", offset: int = 0) -> Rope: ...
    @staticmethod
    def from_inv_freq(inv_freq: _Numbers, *, pairing: _Pairing = "half-split", offset: int = 0) -> Rope: ...
    @property
    def inv_freq(self) -> list[float]: ...
    @property
    def pairing(self) -> _Pairing: ...
    @property
    def offset(self) -> int: ...
    @property
    def rotary_dim(self) -> int: ...

@final
class ModelRope:
    """The ropes of a model's layers."""

    @staticmethod
    def uniform(rope: Rope, layers: int) -> ModelRope: ...
    @staticmethod
    def from_layers(layers: Sequence[Rope | None]) -> ModelRope: ...
    @staticmethod
    def from_config(config: Any, tokens: int = 0) -> ModelRope: ...
    @property
    def layers(self) -> int: ...
    def layer(self, layer: int) -> Rope | None: ...
    def stored(self, *, offset: int | None = None, pairing: _Pairing | None = None) -> ModelRope: ...

@final
class Rotations:
    """A plan made ready for the kernels."""

    def __new__(cls, plan: Plan, rope: Rope | ModelRope) -> Rotations: ...
    @staticmethod
    def between(plan: Plan, old: ModelRope, new: ModelRope) -> Rotations: ...
    def select(self, layers: _Integers) -> Rotations: ...
    def affected_only(self) -> Rotations: ...
    def starting_at(self, row: int) -> Rotations: ...
    @property
    def old_rows(self) -> int: ...
    @property
    def new_rows(self) -> int: ...
    @property
    def unchanged_rows(self) -> int: ...
    @property
    def layers(self) -> int | None: ...

def rotate(
    rotations: Rotations,
    keys: _Tensors,
    *,
    layout: _Layout = "bhsd",
    block_table: _Integers | None = None,
    stream: Any = None,
    workspace: _SupportsDLPack | None = None,
) -> None:
    """Turn keys where they lie."""

def check(
    keys: _Tensors,
    values: _Tensors | None = None,
    *,
    layout: _Layout = "bhsd",
    values_layout: _Layout | None = None,
) -> None:
    """Raise what a verb would raise for these tensors, whatever the plan."""

def splice(
    rotations: Rotations,
    keys: _Tensors,
    values: _Tensors | None,
    *,
    layout: _Layout = "bhsd",
    values_layout: _Layout | None = None,
    block_table: _Integers | None = None,
    stream: Any = None,
    workspace: _SupportsDLPack | None = None,
) -> None:
    """Move rows inside their tensors and turn keys on the way."""

def copy(
    rotations: Rotations,
    *,
    src_keys: _Tensors,
    dst_keys: _Tensors,
    src_values: _Tensors | None,
    dst_values: _Tensors | None,
    layout: _Layout = "bhsd",
    values_layout: _Layout | None = None,
    dst_layout: _Layout | None = None,
    dst_values_layout: _Layout | None = None,
    block_table: _Integers | None = None,
    dst_block_table: _Integers | None = None,
    stream: Any = None,
    workspace: _SupportsDLPack | None = None,
) -> None:
    """Copy every row that the plan keeps, and turn keys on the way."""
