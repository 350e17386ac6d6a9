"""The verbs on an NVIDIA GPU, or on the emulator of one: scripts/python runs them there."""

import ctypes
import sys
import types

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

import pie_rope  # noqa: E402
from device import DeviceArray, Driver  # noqa: E402
from pie_rope import Edit, Plan, Rope, Rotations  # noqa: E402
from reference import assert_close, assert_same, spliced, turned  # noqa: E402

HEADS, DIM, ROWS, ROOM = 2, 64, 40, 64
ROPE = Rope.from_theta(10_000.0, DIM)
PLAN = Plan.from_edits(ROWS, [Edit.replace(3, 6, 9), Edit.insert(12, 1), Edit.delete(20, 31)])


@pytest.fixture(scope="module")
def driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no NVIDIA driver; scripts/python has an emulator of one")
    return Driver()


def rows(array):
    """[1, heads, rows, dim] as [row, head, dim] in float64."""
    return array[0].transpose(1, 0, 2).astype(np.float64)


def numpy_type(element):
    if element == "bfloat16":
        return pytest.importorskip("ml_dtypes", reason="numpy has bfloat16 by ml_dtypes").bfloat16
    return element


@pytest.mark.parametrize("element", ["float32", "float16", "bfloat16"])
def test_verbs_in_a_stream(random, driver, element):
    host = [random.standard_normal((1, HEADS, ROOM, DIM)).astype(numpy_type(element)) for _ in range(6)]
    keys, values = [driver.upload(a) for a in host[:2]], [driver.upload(a) for a in host[2:4]]
    want = [spliced(rows(k), rows(v), PLAN, ROPE) for k, v in zip(host[:2], host[2:4], strict=True)]
    stream = driver.stream()
    rotations = Rotations(PLAN, ROPE)
    # Elsewhere first, then in place.
    copies = [driver.upload(a) for a in host[4:]]
    pie_rope.copy(
        rotations,
        src_keys=keys[0],
        dst_keys=copies[0],
        src_values=values[0],
        dst_values=copies[1],
        stream=stream,
    )
    pie_rope.splice(rotations, keys, values, stream=stream)
    driver.synchronize()
    # Every tensor was told which stream will use it.
    assert {s for tensor in keys + values + copies for s in tensor.streams} == {stream}
    pairs = [(keys[0], values[0], want[0]), (keys[1], values[1], want[1]), (*copies, want[0])]
    for key, value, (want_keys, want_values) in pairs:
        assert_close(rows(key.download())[: PLAN.new_rows], want_keys, ROPE, element)
        assert_same(rows(value.download())[: PLAN.new_rows], want_values)
    assert (rows(keys[0].download())[ROWS:] == rows(host[0])[ROWS:]).all()

    turning = driver.upload(host[0])
    pie_rope.rotate(rotations, turning)
    driver.synchronize()
    assert turning.streams == [1]  # the default stream, as DLPack counts
    for span in PLAN.kept:
        source = slice(span.src, span.src + span.len)
        want_keys = turned(rows(host[0])[source], ROPE, span.old_position, span.new_position)
        assert_close(rows(turning.download())[source], want_keys, ROPE, element)


def test_a_workspace_is_asked_for_and_used(random, driver):
    """A delta for every second row: more than a launch's parameters hold."""
    count = 4000
    rope = Rope.from_theta(10_000.0, 8)
    plan = Plan.from_positions(range(count), [row + row // 2 for row in range(count)])
    host = random.standard_normal((1, 1, count, 8)).astype(np.float32)
    keys = driver.upload(host)
    rotations = Rotations(plan, rope)
    with pytest.raises(ValueError, match="workspace: this call needs [0-9]+ bytes"):
        pie_rope.rotate(rotations, keys)
    driver.synchronize()
    assert (keys.download() == host).all()
    with pytest.raises(ValueError, match="workspace: this call needs"):
        pie_rope.rotate(rotations, keys, workspace=driver.upload(np.zeros(4, np.uint8)))
    space = driver.upload(np.zeros(1 << 20, np.uint8))
    with pytest.raises(ValueError, match="workspace: its elements must lie one behind the other"):
        pie_rope.rotate(rotations, keys, workspace=driver.upload(np.zeros(1 << 21, np.uint8), every=2))
    pie_rope.rotate(rotations, keys, workspace=space)
    driver.synchronize()
    want = np.stack([turned(key, rope, row, row + row // 2) for row, key in enumerate(rows(host))])
    assert_close(rows(keys.download()), want, rope, "float32")


def test_devices_do_not_mix(random, driver):
    host = random.standard_normal((1, HEADS, ROOM, DIM)).astype(np.float32)
    with pytest.raises(ValueError, match="tensors must all be on one device"):
        pie_rope.splice(Rotations(PLAN, ROPE), driver.upload(host), host)
    with pytest.raises(TypeError, match="stream: it must be an integer"):
        pie_rope.rotate(Rotations(PLAN, ROPE), driver.upload(host), stream="default")


class FakeTorch(types.ModuleType):
    """As much of torch as a call on CUDA asks for: its current device and stream, and memory."""

    def __init__(self, driver, stream):
        super().__init__("torch")
        self.log, self.uint8, fake = [], np.uint8, self

        class Tensor(DeviceArray):
            def is_neg(self):
                return False

            def __dlpack__(self, stream=None):
                # As torch does: for tensors of the current device alone.
                assert fake.inside == 0
                return super().__dlpack__(stream)

        class device:
            def __init__(self, ordinal):
                self.ordinal = ordinal

            def __enter__(self):
                fake.inside = self.ordinal

            def __exit__(self, *error):
                assert error == (None, None, None)
                fake.inside = None
                fake.log.append("left")

        self.Tensor, self.inside = Tensor, None
        self.cuda = types.SimpleNamespace(
            device=device, current_stream=lambda ordinal: types.SimpleNamespace(cuda_stream=stream)
        )
        self.device = lambda kind, ordinal: (kind, ordinal)

        def empty(count, dtype, place):
            assert place == ("cuda", 0)
            self.log.append(count)
            return Tensor(driver, np.zeros(count, dtype))

        self.empty = empty


def test_calls_on_tensors_of_torch(random, driver, monkeypatch):
    """In its current stream, with nothing ordered, on its device, with its memory where a workspace is needed."""
    stream = driver.stream()
    torch = FakeTorch(driver, stream)
    monkeypatch.setitem(sys.modules, "torch", torch)
    count = 4000
    rope = Rope.from_theta(10_000.0, 8)
    plan = Plan.from_positions(range(count), [row + row // 2 for row in range(count)])
    host = random.standard_normal((1, 1, count, 8)).astype(np.float32)
    keys = torch.Tensor(driver, host)
    pie_rope.rotate(Rotations(plan, rope), keys)
    driver.synchronize()
    assert keys.streams == [-1] and torch.inside is None
    needed, left = torch.log
    assert needed > 32 << 10 and left == "left"
    want = np.stack([turned(key, rope, row, row + row // 2) for row, key in enumerate(rows(host))])
    assert_close(rows(keys.download()), want, rope, "float32")
    # In another stream than torch's current one the tensor is told so, and memory has to be given.
    other = driver.stream()
    with pytest.raises(ValueError, match="workspace: this call needs"):
        pie_rope.rotate(Rotations(plan, rope), keys, stream=other)
    assert keys.streams[-1] == other and torch.inside is None


def test_torch_tensors_in_torchs_current_stream(random):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    host = torch.from_numpy(random.standard_normal((1, HEADS, ROOM, DIM))).to(torch.bfloat16)
    want = host.clone()
    pie_rope.rotate(Rotations(PLAN, ROPE), want)
    with torch.cuda.stream(torch.cuda.Stream()):
        keys = host.cuda(non_blocking=True)
        pie_rope.rotate(Rotations(PLAN, ROPE), keys)
        assert (keys.cpu() == want).all()
