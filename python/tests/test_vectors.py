"""Keys that transformers itself cached before and after an edit: turning the first must give the second.

The head of scripts/reference_vectors.py says what the files hold, and derives how far a key may be off.
"""

from pathlib import Path

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

import pie_rope  # noqa: E402
from pie_rope import ModelRope, Plan, Rotations  # noqa: E402

FILES = sorted((Path(__file__).parents[2] / "tests" / "vectors").glob("*.txt"))
# Bits of the significand, the unit of float32 in units of the type, and what the turn itself may be off by.
TYPES = {"f32": (23, 1.0, 1.708), "f16": (10, 2.0**-13, 0.5003), "bf16": (7, 2.0**-16, 0.5001)}


def read(path):
    case = {"layers": []}
    for line in path.read_text().splitlines():
        word, rest = line.split(" ", 1)
        if word == "layer":
            index, dim, pairing, *offset = rest.split()
            case["layers"].append((int(index), int(dim), pairing, int(offset[0]) if offset else 0, []))
        elif word == "key":
            old, new, *keys = rest.split()
            case["layers"][-1][-1].append((int(old), int(new), *map(bytes.fromhex, keys)))
        else:
            case[word] = rest
    return case


def numbers(keys, element):
    """Bits, the most significant first, as an array of the type, with bfloat16 as its bits."""
    return np.frombuffer(keys, ">u4" if element == "f32" else ">u2").astype(
        np.uint32 if element == "f32" else np.uint16
    )


def values(bits, element):
    if element == "f32":
        return bits.view(np.float32).astype(np.float64)
    if element == "f16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def shows(key):
    """Numbers, and not all of them zero: bits that are the same are compared as bits, which a NaN passes."""
    return bool(np.isfinite(key).all() and (key != 0).any())


def typed(bits, element):
    if element == "bf16":
        return bits.view(pytest.importorskip("ml_dtypes", reason="numpy has bfloat16 by ml_dtypes").bfloat16)
    return bits.view(np.float32 if element == "f32" else np.float16)


def allowed(ropes, positions, element):
    """How far each pair may be off, in units in the last place."""
    _, unit, own = TYPES[element]
    (f_old, f_new), (old, new) = (np.asarray(rope.inv_freq) for rope in ropes), positions
    factor = 6e-7 * 2**24
    changed = factor * np.where(f_old == f_new, np.abs(f_new * new - f_old * old), f_old * old + f_new * new)
    angle = unit * (f_old * old + f_new * new + changed)
    encoding = (np.sqrt(2) + 1) * unit + 1.5 + (0 if element == "f32" else 0.5)
    return angle + (1 + np.sqrt(2)) * encoding + own


def off(got, want, old, rope, element):
    """By how much each pair is off, in units in the last place at the magnitude of the pair."""
    pairs, start = len(rope.inv_freq), rope.offset
    window = slice(start, start + 2 * pairs)

    def pair(key):
        key = key[window]
        return key.reshape(2, pairs) if rope.pairing == "half-split" else key.reshape(pairs, 2).T

    radius = np.maximum(np.hypot(*pair(old)), np.hypot(*pair(want)))
    unit = 2.0 ** (np.floor(np.log2(radius)) - TYPES[element][0])
    return np.abs(pair(got) - pair(want)).max(0) / unit


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_turned_keys_are_those_of_transformers(path):
    case = read(path)
    element = case["element"]
    models = [ModelRope.from_config(case["config"], int(tokens)) for tokens in case["tokens"].split()]
    compared = 0
    for layer, dim, pairing, offset, keys in case["layers"]:
        ropes = [model.layer(layer) for model in models]
        if pairing == "none":
            assert ropes == [None, None]
        else:
            assert [(rope.pairing, rope.offset) for rope in ropes] == [(pairing, offset)] * 2
        for old, new, old_key, new_key in keys:
            plan = Plan.from_positions([old], [new])
            bits, want = numbers(old_key, element), numbers(new_key, element)
            for key in (bits, want):
                assert len(key) == dim and shows(values(key, element))
            before = bits.copy()
            rotations = Rotations.between(plan, *models).select([layer])
            pie_rope.rotate(rotations, typed(bits, element).reshape(1, 1, 1, dim))
            still = np.ones(dim, bool)
            if pairing != "none" and (old != new or ropes[0] != ropes[1]):
                still[offset : offset + ropes[1].rotary_dim] = False
                limits = allowed(ropes, (old, new), element)
                got, goal, start = (values(key, element) for key in (bits, want, before))
                assert (off(got, goal, start, ropes[1], element) <= limits).all()
                # A key that has not turned, where it does, is far outside.
                if old != new:
                    assert (off(start, goal, start, ropes[1], element) > limits).any()
                compared += 1
            assert (bits[still] == want[still]).all()
    assert compared > 0


def test_there_are_vectors():
    assert len(FILES) >= 29
