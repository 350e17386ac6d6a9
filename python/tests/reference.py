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


# A little over half a unit in the last place for a number that is rounded once; in float32 the turn's own rounding
# comes on top of it (tests/conformance/check.rs derives 1.71).
UNITS = {"float32": 1.71 * 2**-23, "float16": 0.51 * 2**-10, "bfloat16": 0.51 * 2**-7}


def assert_close(got, want, element):
    """Keys, in float64, beside what they should be: within the rounding of `element` at the magnitude of the largest
    component that could have turned into it."""
    filled = ~np.isnan(want)
    assert filled.any()
    magnitude = np.abs(want[filled]).max()
    assert magnitude > 0.1
    # One power of two above the largest, times sqrt(2) for the pair.
    worst = np.abs(got[filled] - want[filled]).max()
    assert worst <= UNITS[element] * 2.0 ** np.floor(np.log2(np.sqrt(2) * magnitude)), worst
