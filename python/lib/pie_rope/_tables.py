"""Block tables and slots: what the engines' modules share."""

from operator import index
from typing import Any

from . import _native
from ._native import Rotations


def as_list(name: str, numbers: Any) -> list[int]:
    """Without a table the kernels would take blocks as they come, which are other requests'."""
    try:
        return [index(number) for number in (numbers.tolist() if hasattr(numbers, "tolist") else numbers)]
    except TypeError:
        raise TypeError(f"{name}: it must be a flat sequence of integers") from None


def copy(
    rotations: Rotations,
    keys: Any,
    values: Any,
    tables: tuple[tuple[str, Any], tuple[str, Any]],
    block: int,
    **options: Any,
) -> None:
    """Copies rows from the blocks of one table to those of another, but for those of leading blocks that both have.

    ``tables``: each with the name that messages call it; ``block``: rows of a block.
    """
    (old_name, old), (name, new) = tables
    old, new = as_list(old_name, old), as_list(name, new)
    shared = (
        next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))) * block
    )
    unchanged = rotations.unchanged_rows
    nothing = unchanged == rotations.old_rows == rotations.new_rows
    if shared > unchanged and not nothing:
        # Also where they are to be encoded, or free for what comes next: the engine would write them there.
        raise ValueError(f"{name}: its first {shared} rows are shared, and the edit changes rows from {unchanged} on")
    # The verb looks at the rows that it writes, and the engine writes others: those to be encoded.
    old_used, new_used = (-(-rows // block) for rows in (rotations.old_rows, rotations.new_rows))
    theirs = set(old[:old_used])
    for place in range(shared // block, min(new_used, len(new))):
        if new[place] in theirs:
            raise ValueError(f"{name}: entry {place} is {new[place]}, which is shared, behind one that is not")
    _native.copy(
        rotations.starting_at(shared),
        src_keys=keys,
        dst_keys=keys,
        src_values=values,
        dst_values=values,
        block_table=old,
        dst_block_table=new,
        **options,
    )
