"""What compares is compared: a NaN in any place, an expectation of nothing, and a short sequence are failures."""

import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

from pie_rope import Plan, Rope  # noqa: E402
from reference import assert_close, assert_same, spliced  # noqa: E402

ROWS, HEADS, DIM = 6, 2, 16
ROPES = {
    "half-split": Rope.from_theta(10_000.0, DIM),
    "interleaved": Rope.from_theta(10_000.0, 8, pairing="interleaved", offset=4),
}


def case(random, rope):
    """Keys and values that are right, with two rows of which nothing is expected."""
    keys, values = (random.standard_normal((ROWS, HEADS, DIM)) for _ in range(2))
    want_keys, want_values = spliced(keys, values, Plan.from_kept(ROWS, range(ROWS)), rope)
    for want in (want_keys, want_values):
        want[[1, 4]] = np.nan
    return keys, values, want_keys, want_values


PLACES = [(0, 0, 0), (0, 1, 7), (3, 0, 8), (5, 1, 15), (2, 0, 5)]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("place", PLACES)
def test_a_nan_in_each_place(random, rope, place):
    rope = ROPES[rope]
    keys, values, want_keys, want_values = case(random, rope)
    assert_close(keys, want_keys, rope, "float32")
    assert_same(values, want_values)
    for side in range(2):
        pair = [keys.copy(), want_keys.copy()]
        pair[side][place] = np.nan
        with pytest.raises(AssertionError):
            assert_close(*pair, rope, "float32")
        pair = [values.copy(), want_values.copy()]
        pair[side][place] = np.nan
        with pytest.raises(AssertionError):
            assert_same(*pair)
    # So are an infinity, and a number that is a little wrong.
    for wrong in (np.inf, -np.inf, keys[place] + 1e-3):
        got = keys.copy()
        got[place] = wrong
        with pytest.raises(AssertionError, match=r"the first at \(\d, \d, \d+\): .*, not "):
            assert_close(got, want_keys, rope, "float32")


def test_nothing_is_expected_and_too_little_is_there(random):
    rope = ROPES["half-split"]
    keys, values, want_keys, want_values = case(random, rope)
    nothing = np.full_like(want_keys, np.nan)
    for call in (lambda got, want: assert_close(got, want, rope, "float32"), assert_same):
        with pytest.raises(AssertionError, match="nothing is expected"):
            call(keys, nothing)
        with pytest.raises(AssertionError, match="are beside"):
            call(keys[:-1], want_keys)
        with pytest.raises(AssertionError, match="are beside"):
            call(keys[..., :1], want_keys)
        with pytest.raises(AssertionError, match="nothing is expected"):
            call(keys[:0], want_keys[:0])
    with pytest.raises(AssertionError, match="nothing to see"):
        assert_close(np.zeros_like(keys), np.zeros_like(keys), rope, "float32")


def test_vectors_are_compared_in_each_place():
    import test_vectors

    path = next(path for path in test_vectors.FILES if path.stem == "qwen2.5-coder-0.5b")
    case = test_vectors.read(path)
    _, _, _, _, keys = case["layers"][0]
    old, new, old_key, new_key = keys[1]
    rope = Rope.from_theta(1e6, 64)
    before, want = (test_vectors.numbers(key, "f32").view(np.float32).astype(np.float64) for key in (old_key, new_key))
    for side in range(2):
        for place in (0, 31, 32, 63):
            pair = [want.copy(), want.copy()]
            pair[side][place] = np.nan
            off = test_vectors.off(*pair, before, rope, "f32")
            assert not (off <= 1e9).all()
            assert test_vectors.shows(want) and not test_vectors.shows(pair[side])
    assert not test_vectors.shows(np.zeros(64))


def script():
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    try:
        import reference_vectors
    finally:
        sys.path.pop(0)
    return reference_vectors


def test_reference_vectors_writes_no_nan_and_finds_no_pairs_in_one():
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import torch

    reference_vectors = script()
    key = torch.randn(8)
    assert len(reference_vectors.bits(key)) == 64
    angle = torch.tensor(0.5)
    a, b = key[:4], key[4:]
    turned = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])
    assert reference_vectors.pairing(key[None], turned[None], None, "f32") == "half-split"
    for place in range(8):
        for value in (torch.nan, torch.inf):
            wrong = [key.clone(), turned.clone()]
            for side in range(2):
                pair = [wrong[0].clone(), wrong[1].clone()]
                pair[side][place] = value
                with pytest.raises(AssertionError):
                    reference_vectors.bits(pair[side])
                with pytest.raises(AssertionError):
                    reference_vectors.pairing(pair[0][None], pair[1][None], None, "f32")
    with pytest.raises(AssertionError):
        reference_vectors.bits(torch.zeros(8))
    with pytest.raises(AssertionError):
        reference_vectors.bits(key[:0])


def test_keys_of_transformers_are_compared_in_each_place():
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import torch

    from test_huggingface import same

    want = torch.randn(2, 3, 4)
    same(want.clone(), want)
    for value in (torch.nan, torch.inf):
        for place in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
            for side in range(2):
                pair = [want.clone(), want.clone()]
                pair[side][place] = value
                with pytest.raises(AssertionError):
                    same(*pair)
        with pytest.raises(AssertionError):
            same(torch.full_like(want, value), torch.full_like(want, value))
    for short in (want[:1], want[..., :1], want[:0]):
        with pytest.raises(AssertionError):
            same(short, want)
        with pytest.raises(AssertionError):
            same(want, short)
    with pytest.raises(AssertionError):
        same(want[:0], want[:0])


@pytest.mark.parametrize("element", ["f32", "f16", "bf16"])
def test_the_check_of_reference_vectors_sees_a_nan_in_each_place(element):
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    reference_vectors = script()
    digits = 8 if element == "f32" else 4
    one = {"f32": "3f800000", "f16": "3c00", "bf16": "3f80"}[element]
    nan = {"f32": "7fc00000", "f16": "7e00", "bf16": "7fc0"}[element]
    near = f"{int(one, 16) + 1:0{digits}x}"

    def file(*keys):
        return "name x\nelement " + element + "\n" + "".join(f"key 3 5 {old} {new}\n" for old, new in keys)

    there = file((one * 4, one * 4))
    difference = reference_vectors.difference
    assert difference(there, file((near + one * 3, one * 4)), element) <= 1
    for place in range(4):
        with_nan = one * place + nan + one * (3 - place)
        for keys in ((with_nan, one * 4), (one * 4, with_nan)):
            for pair in ((there, file(keys)), (file(keys), there), (file(keys), file((near + one * 3, one * 4)))):
                by = difference(*pair, element)
                assert by is None or not by <= 1
    # And too little.
    for short in (file((one * 4, one * 3)), file(), file((one * 4, one * 4), (one * 4, one * 4)), "name x\n"):
        by = difference(there, short, element)
        assert by is None or not by <= 1
