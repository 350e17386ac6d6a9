"""Block tables and slots: what the engines' modules share."""

from typing import Any

from . import _native
from ._native import Rotations


def as_list(numbers: Any) -> list[int]:
    return numbers.tolist() if hasattr(numbers, "tolist") else list(numbers)


def copy(
    rotations: Rotations, keys: Any, values: Any, tables: tuple[tuple[str, Any], tuple[str, Any]], block: int, **options
) -> None:
    """Copies rows from the blocks of one table to those of another, but for those of leading blocks that both have.

    ``tables``: each with the name that messages call it; ``block``: rows of a block.
    """
    (_, old), (name, new) = tables
    old, new = as_list(old), as_list(new)
    shared = (
        next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))) * block
    )
    first = rotations.affected_only().first_row
    if first is not None and first < shared:
        raise ValueError(f"{name}: its first {shared} rows are shared, and the edit changes row {first}")
    _native.copy(
        rotations.starting_at(shared), keys, keys, values, values, block_table=old, dst_block_table=new, **options
    )
