"""What the verbs have to do, in float64, by their definition."""

import numpy as np


def turned(keys, rope, old_position, new_position):
    """Key vectors, [..., dim] in float64, turned from one position to another."""
    result = keys.copy()
    angles = np.asarray(rope.inv_freq) * (new_position - old_position)
    cos, sin = np.cos(angles), np.sin(angles)
    pairs = len(angles)
    window = rope.offset + np.arange(2 * pairs)
    first, second = (window[:pairs], window[pairs:]) if rope.pairing == "half-split" else (window[::2], window[1::2])
    a, b = keys[..., first], keys[..., second]
    result[..., first], result[..., second] = a * cos - b * sin, b * cos + a * sin
    return result


def spliced(keys, values, plan, rope):
    """Rows, [rows, heads, dim] in float64, after an edit. Rows to be encoded are NaN."""
    new_keys = np.full((plan.new_rows, *keys.shape[1:]), np.nan)
    new_values = np.full((plan.new_rows, *values.shape[1:]), np.nan)
    for span in plan.kept:
        source, target = slice(span.src, span.src + span.len), slice(span.dst, span.dst + span.len)
        new_keys[target] = turned(keys[source], rope, span.old_position, span.new_position)
        new_values[target] = values[source]
    return new_keys, new_values


# How far a key may be off, in units in the last place of its type at the magnitude of the pair that turned: half a unit
# for a number that is rounded once; in float32 the turn's own product and the table's angles are of that size, too
# (tests/conformance/check.rs derives the bounds).
UNITS = {"float32": (1.708, 23), "float16": (0.5003, 10), "bfloat16": (0.5001, 7)}


def assert_close(got, want, rope, element):
    """Keys, [..., dim] in float64, beside what they should be; whole rows of NaN where nothing is expected."""
    got, want, rows = _expected(got, want)
    window = np.zeros(want.shape[-1], bool)
    window[rope.offset : rope.offset + rope.rotary_dim] = True
    _all("what does not turn", got == want, got, want, rows, ~window)

    def pairs(keys):
        keys = keys[..., window]
        return np.split(keys, 2, -1) if rope.pairing == "half-split" else (keys[..., ::2], keys[..., 1::2])

    units, digits = UNITS[element]
    radius = np.hypot(*pairs(want))
    assert radius.max() > 0.1, "there is nothing to see"
    unit = 2.0 ** (np.floor(np.log2(radius)) - digits)
    off = np.zeros(want.shape)
    # Both halves, each where it lies.
    where = np.arange(want.shape[-1])[None, :]
    for one, other, place in zip(pairs(got), pairs(want), pairs(where), strict=True):
        off[..., place[0]] = np.abs(one - other) / unit
    # Written so that a NaN is too far.
    _all(f"more than {units} units", off <= units, got, want, rows, window, off)


def assert_same(got, want):
    """Rows, in float64, that are as they should be to the last bit; whole rows of NaN where nothing is expected."""
    got, want, rows = _expected(got, want)
    _all("moved wrongly", got == want, got, want, rows)


def _expected(got, want):
    """The rows of which something is expected, all of a row or nothing, and where they are."""
    assert got.shape == want.shape, f"{got.shape} are beside {want.shape}"
    nothing = np.isnan(want)
    filled = ~nothing.all(-1)
    assert filled.any(), "nothing is expected"
    wrong = filled & nothing.any(-1)
    assert not wrong.any(), f"a NaN is expected in row {np.argwhere(wrong)[0]}, beside numbers"
    return got[filled], want[filled], np.argwhere(filled)


def _all(what, right, got, want, rows, columns=slice(None), off=None):
    """Says where the first is that is wrong, and both numbers."""
    wrong = np.zeros(got.shape, bool)
    wrong[..., columns] = ~right[..., columns]
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        place = ", ".join(map(str, [*rows[row], column]))
        by = "" if off is None else f", {off[row, column]} units off"
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size}, the first at ({place}): {got[row, column]}, not"
            f" {want[row, column]}{by}"
        )
