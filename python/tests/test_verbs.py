"""The verbs on numpy arrays: no torch is needed."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

import pie_rope  # noqa: E402
from pie_rope import Edit, ModelRope, Plan, Rope, Rotations  # noqa: E402
from reference import assert_close, assert_same, spliced, turned  # noqa: E402

HEADS, DIM, ROWS, ROOM = 3, 32, 40, 56
EDITS = {
    "insertion": [Edit.insert(7, 5)],
    "deletion": [Edit.delete(4, 9)],
    "several": [Edit.replace(3, 6, 9), Edit.insert(12, 1), Edit.delete(20, 31), Edit.replace(35, 36, 4)],
}
ropes = {
    "half-split": Rope.from_theta(10_000.0, DIM),
    "interleaved": Rope.from_theta(500_000.0, 16, pairing="interleaved", offset=8),
}
elements = ["float32", "float16", "bfloat16"]


def array(random, shape, element):
    """Random numbers of a type. numpy knows bfloat16 by ml_dtypes."""
    if element == "bfloat16":
        element = pytest.importorskip("ml_dtypes", reason="numpy has bfloat16 by ml_dtypes").bfloat16
    return random.standard_normal(shape).astype(element)


def rows(tensor, layout, table=None):
    """The rows of a tensor as [row, head, dim], in float64; batch 0."""
    tensor = tensor.astype(np.float64)
    if layout == "bhsd":
        return tensor[0].transpose(1, 0, 2)
    if layout == "bshd":
        return tensor[0]
    if layout == "slots":
        return tensor[table]
    if layout == "x_packed":
        # [blocks, heads, dim / x, block, x] or [blocks, heads, dim, block]
        tensor = tensor[..., None] if tensor.ndim == 4 else tensor
        tensor = tensor.transpose(0, 3, 1, 2, 4)
        tensor = tensor.reshape(*tensor.shape[:3], -1)
    elif layout == "hnd":
        tensor = tensor.transpose(0, 2, 1, 3)
    return tensor[table].reshape(-1, *tensor.shape[2:])


SHAPES = {
    "bhsd": (1, HEADS, ROOM, DIM),
    "bshd": (1, ROOM, HEADS, DIM),
    "slots": (90, HEADS, DIM),
    "nhd": (12, 8, HEADS, DIM),
    "hnd": (12, HEADS, 8, DIM),
    "x_packed": (12, HEADS, DIM // 8, 8, 8),
}


def table_for(random, layout):
    if layout == "slots":
        return random.permutation(90)[:ROOM]
    if layout in ("nhd", "hnd", "x_packed"):
        return random.permutation(12)[: ROOM // 8]
    return None


@pytest.mark.parametrize("element", elements)
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("pairing", ropes)
def test_splice(random, element, layout, edit, pairing):
    rope, plan, table = ropes[pairing], Plan.from_edits(ROWS, EDITS[edit]), table_for(random, layout)
    keys = [array(random, SHAPES[layout], element) for _ in range(2)]
    values_shape = (12, HEADS, DIM, 8) if layout == "x_packed" else SHAPES[layout]
    values = [array(random, values_shape, element) for _ in range(2)]
    want = [
        spliced(rows(k, layout, table), rows(v, layout, table), plan, rope) for k, v in zip(keys, values, strict=True)
    ]
    before = [(k.copy(), v.copy()) for k, v in zip(keys, values, strict=True)]
    pie_rope.splice(Rotations(plan, rope), keys, values, layout=layout, block_table=table)
    for key, value, (want_keys, want_values), (old_key, old_value) in zip(keys, values, want, before, strict=True):
        got_keys, got_values = (rows(tensor, layout, table)[: plan.new_rows] for tensor in (key, value))
        assert_close(got_keys, want_keys, rope, element)
        assert_same(got_values, want_values)
        # Behind the longer sequence nothing has changed, nor in pages that the table does not have.
        unused = max(plan.old_rows, plan.new_rows)
        for new, old in ((key, old_key), (value, old_value)):
            assert (rows(new, layout, table)[unused:] == rows(old, layout, table)[unused:]).all()
            if table is not None:
                others = np.setdiff1d(np.arange(len(new)), table)
                assert (new[others] == old[others]).all()


@pytest.mark.parametrize("element", elements)
def test_rotate_leaves_rows_and_copy_leaves_the_source(random, element):
    rope, plan = ropes["half-split"], Plan.from_edits(ROWS, EDITS["several"])
    keys, values = (array(random, (1, HEADS, ROOM, DIM), element) for _ in range(2))
    want_keys, want_values = spliced(rows(keys, "bhsd"), rows(values, "bhsd"), plan, rope)
    new_keys, new_values = (array(random, (1, ROOM, HEADS, DIM), element) for _ in range(2))
    old = keys.copy(), values.copy()
    ends = {"src_keys": keys, "dst_keys": new_keys, "src_values": values, "dst_values": new_values}
    pie_rope.copy(Rotations(plan, rope), **ends, dst_layout="bshd")
    assert (old[0] == keys).all() and (old[1] == values).all()
    assert_close(rows(new_keys, "bshd")[: plan.new_rows], want_keys, rope, element)
    assert_same(rows(new_values, "bshd")[: plan.new_rows], want_values)

    pie_rope.rotate(Rotations(plan, rope), keys)
    for span in plan.kept:
        source = slice(span.src, span.src + span.len)
        want = turned(rows(old[0], "bhsd")[source], rope, span.old_position, span.new_position)
        assert_close(rows(keys, "bhsd")[source], want, rope, element)


def test_views_are_worked_on_where_they_lie(random):
    """Keys and values interleaved in one allocation, heads and rows narrowed, axes swapped: nothing else changes."""
    rope, plan = ropes["half-split"], Plan.from_edits(ROWS, EDITS["several"])
    whole = array(random, (ROOM + 3, 2, HEADS + 2, 2, DIM + 5), "float32")
    before = whole.copy()

    def view(tensor, layer, part):
        return tensor[2:-1, layer, 1:-1, part, 3:-2].transpose(1, 0, 2)[None]

    keys, values = ([view(whole, layer, part) for layer in range(2)] for part in range(2))
    pie_rope.splice(Rotations(plan, rope), keys, values)
    mask = np.zeros(whole.shape, bool)
    for layer in range(2):
        old_keys, old_values = (rows(view(before, layer, part), "bhsd") for part in range(2))
        want_keys, want_values = spliced(old_keys, old_values, plan, rope)
        assert_close(rows(keys[layer], "bhsd")[: plan.new_rows], want_keys, rope, "float32")
        assert_same(rows(values[layer], "bhsd")[: plan.new_rows], want_values)
        for part in range(2):
            view(mask, layer, part)[...] = True
    assert (whole[~mask] == before[~mask]).all()


def test_keys_and_values_of_other_widths_share_an_allocation(random):
    """A latent row whose parts are two views: what turns, and what moves along."""
    rope, plan = Rope.from_theta(10_000.0, 8), Plan.from_edits(ROWS, EDITS["several"])
    whole = array(random, (1, 1, ROOM, 40), "float32")
    keys, values = whole[..., 32:], whole[..., :32]
    want_keys, want_values = spliced(rows(keys, "bhsd"), rows(values, "bhsd"), plan, rope)
    pie_rope.splice(Rotations(plan, rope), keys, values)
    assert_close(rows(keys, "bhsd")[: plan.new_rows], want_keys, rope, "float32")
    assert_same(rows(values, "bhsd")[: plan.new_rows], want_values)


def large(random):
    """More than one thread works on it."""
    keys = [random.standard_normal((1, 8, 1024, 64), dtype=np.float32) for _ in range(4)]
    plan = Plan.from_edits(1000, [Edit.insert(17, 9), Edit.delete(500, 510)])
    rope = Rope.from_theta(10_000.0, 64)
    return keys, plan, rope, [spliced(rows(k, "bhsd")[:1000], rows(k, "bhsd")[:1000], plan, rope)[0] for k in keys]


def test_large_calls_on_several_threads_of_python(random):
    work = [large(random) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(pie_rope.splice, Rotations(plan, rope), keys, None) for keys, plan, rope, _ in work]
        for done in calls:
            done.result()
    for keys, plan, rope, want in work:
        for key, wanted in zip(keys, want, strict=True):
            assert_close(rows(key, "bhsd")[: plan.new_rows], wanted, rope, "float32")


def in_a_child(rotations, keys, queue):
    pie_rope.splice(rotations, keys, None)
    queue.put(keys)


def test_a_forked_process_has_threads_of_its_own(random):
    keys, plan, rope, want = large(random)
    pie_rope.splice(Rotations(plan, rope), [key.copy() for key in keys], None)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=in_a_child, args=(Rotations(plan, rope), keys, queue))
    child.start()
    try:
        for key, wanted in zip(queue.get(timeout=60), want, strict=True):
            assert_close(rows(key, "bhsd")[: plan.new_rows], wanted, rope, "float32")
    finally:
        child.kill()


def test_empty_tensors_and_nothing_to_do(random):
    rope = ropes["half-split"]
    empty = np.zeros((1, HEADS, 0, DIM), np.float32)
    nothing = Rotations(Plan.from_edits(0, []), rope)
    pie_rope.splice(nothing, empty, empty.copy())
    room = np.zeros((1, HEADS, 4, DIM), np.float32)
    opened = Rotations(Plan.from_edits(0, [Edit.insert(0, 4)]), rope)
    pie_rope.copy(opened, src_keys=empty, dst_keys=room, src_values=empty.copy(), dst_values=room.copy())
    keys = array(random, (1, HEADS, ROOM, DIM), "float32")
    before = keys.copy()
    for edits in ([], [Edit.delete(0, ROWS)]):
        pie_rope.splice(Rotations(Plan.from_edits(ROWS, edits), rope), keys, None)
        assert (keys == before).all()


def test_edits_are_hashed_copied_and_pickled():
    edit = Edit.replace(3, 6, 9)
    assert pickle.loads(pickle.dumps(edit)) == edit and copy.deepcopy(edit) == edit
    assert {edit, Edit(3, 6, 9), Edit.insert(1, 1)} == {edit, Edit.insert(1, 1)}


def test_layers_have_their_own_ropes(random):
    plan = Plan.from_edits(ROWS, EDITS["insertion"])
    model = ModelRope.from_layers([ropes["half-split"], None, ropes["interleaved"]])
    keys = [array(random, (1, HEADS, ROOM, DIM), "float32") for _ in range(3)]
    values = [array(random, (1, HEADS, ROOM, DIM), "float32") for _ in range(3)]
    still = Rope.from_inv_freq([0.0])
    want = [
        spliced(rows(k, "bhsd"), rows(v, "bhsd"), plan, model.layer(layer) or still)
        for layer, (k, v) in enumerate(zip(keys, values, strict=True))
    ]
    pie_rope.splice(Rotations(plan, model), keys, values)
    for layer, (key, (want_keys, _)) in enumerate(zip(keys, want, strict=True)):
        assert_close(rows(key, "bhsd")[: plan.new_rows], want_keys, model.layer(layer) or still, "float32")


def test_plans():
    plan = Plan.from_tokens(np.array([1, 2, 3, 4]), [1, 9, 9, 2, 3, 4])
    assert plan == Plan.from_edits(4, [Edit(1, 1, 2)])
    assert [(s.row, s.len, s.position, s.rows, s.positions) for s in plan.new_spans] == [
        (1, 2, 1, slice(1, 3), range(1, 3))
    ]
    assert [(s.src, s.dst, s.len, s.old_position, s.new_position) for s in plan.kept] == [
        (0, 0, 1, 0, 0),
        (1, 3, 3, 1, 3),
    ]
    assert plan.deltas == [2] and (plan.old_rows, plan.new_rows) == (4, 6)
    assert plan.then(Plan.from_edits(6, [Edit.delete(1, 3)])).deltas == []
    assert Edit.between([1, 2], [1, 3, 2]) == [Edit.insert(1, 1)]
    assert Plan.from_kept(8, [0, 1, 5, 6, 7]).deltas == [-3]
    assert Plan.from_positions([3], [40]).deltas == [37]
    assert Plan.from_kept_at([3, 4, 9], [0, 2], [3, 4]).deltas == [-5]
    assert plan.in_place().kept[1].src == plan.in_place().kept[1].dst
    assert Plan.from_edits(4, [Edit.insert(1, 2)], first_position=10).new_spans[0].position == 11


def test_ropes_of_a_config():
    config = {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32,
        "rope_theta": 100000, "rope_scaling": {"type": "linear", "factor": 4.0},
    }  # fmt: skip
    model = ModelRope.from_config(config)
    assert model.layers == 2 and model.layer(1).inv_freq[0] == 0.25 and model.layer(0).rotary_dim == 128
    assert model.stored(offset=8).layer(0).offset == 8
    assert model == ModelRope.from_config(__import__("json").dumps(config))


def refused(call, text, error=ValueError):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value), raised.value


def test_errors_name_the_argument_and_nothing_is_written(random):
    plan = Plan.from_edits(ROWS, EDITS["insertion"])
    rotations = Rotations(plan, ropes["half-split"])
    keys = array(random, (1, HEADS, ROOM, DIM), "float32")
    values, before = keys.copy(), keys.copy()

    def splice(keys=keys, values=values, rotations=rotations, **options):
        return lambda: pie_rope.splice(rotations, keys, values, **options)

    refused(splice(layout="bhds"), "layout: there is no `bhds`")
    refused(splice(layout="slots"), "keys: layout `slots` is for tensors [slots, heads, dim]")
    refused(splice(keys[:, :, :ROWS], values[:, :, :ROWS]), "the plan needs 45 rows, the layout has 40")
    refused(splice(keys[..., :16], values[..., :16]), "the rope turns dimensions 0..32, the head dimension is 16")
    refused(splice([keys, before.copy()], [values]), "values: 1 layers, but keys: 2")
    refused(splice(keys, np.concatenate([values, values])), "values: a batch of 2, but keys: of 1")
    # Any order of four tensors could be mistaken.
    refused(lambda: pie_rope.copy(rotations, keys, values, before, before), "takes 1 positional argument", TypeError)
    ends = {"src_keys": None, "dst_keys": keys, "src_values": None, "dst_values": None}
    refused(lambda: pie_rope.copy(rotations, **ends), "src_keys: NoneType is no tensor", TypeError)
    refused(lambda: pie_rope.check([keys, keys]), "keys[0] and keys[1] share memory")
    refused(splice(keys, keys), "keys and values share memory")
    refused(splice(keys, keys[:, :, ::-1]), "negative stride")
    refused(splice([keys, keys[:, :2]], [values, values[:, :2]]), "keys[1]: it differs from keys[0]")
    refused(splice(np.broadcast_to(keys[:, :1], keys.shape), values), "read-only")
    refused(splice(keys.astype(np.float64), values), "elements must be float32, float16 or bfloat16", TypeError)
    refused(lambda: pie_rope.splice(rotations, keys), "missing 1 required positional argument: 'values'", TypeError)
    refused(splice([], []), "keys: there are no layers")
    refused(splice(None, values), "keys: NoneType is no tensor", TypeError)
    refused(splice(stream=0), "stream: the tensors are on the CPU")
    refused(splice(workspace=keys), "workspace: the tensors are on the CPU")
    refused(splice(layout="nhd", block_table=[0, "1"]), "block_table: it must be a flat sequence", TypeError)
    pages = keys.reshape(-1, 8, HEADS, DIM)
    others = values.reshape(-1, 8, HEADS, DIM)
    refused(splice(pages, others, layout="nhd", block_table=[0, 1, 2, 3, 4, 9]), "entry 5 is 9, there are 7 blocks")
    refused(splice(pages, others, layout="nhd", block_table=[0, 1, 2, 3, 4, -1]), "entry 5 is -1, there are 7 blocks")
    refused(splice(pages, others, layout="nhd", block_table=[0, 1, 2, 3, 4, 4]), "block 4 is there twice")
    refused(lambda: Rope.from_theta(-1.0, 8), "rope: rope_theta is -1")
    refused(lambda: Rope.from_theta(1e4, 8, pairing="neox"), "pairing: there is no `neox`")
    refused(lambda: Plan.from_edits(4, [Edit.delete(2, 9)]), "edit 0: range 2..9 is outside the 4 old tokens")
    refused(lambda: Plan.from_tokens([1, -1], [1]), "old: entry 1 is -1")
    refused(lambda: Plan.from_tokens([1], [2**63]), "new: 9223372036854775808 is out of range")
    refused(lambda: Plan.from_tokens([[1]], [1]), "old: it must be a flat sequence", TypeError)
    for call, text in {
        lambda: Edit(-1, 2, 0): "start: it is -1, and counts from 0",
        lambda: Edit.insert(-1, 3): "at: it is -1",
        lambda: Edit.delete(0, -2): "stop: it is -2",
        lambda: Edit.replace(0, 1, -3): "tokens: it is -3",
        lambda: Plan.from_edits(-1, []): "rows: it is -1",
        lambda: Plan.from_edits(1, [], first_position=2**40): "first_position: 1099511627776 is more than 2147483647",
        lambda: Plan.from_kept(-1, []): "rows: it is -1",
        lambda: Rope.from_theta(1e4, 8, offset=-1): "offset: it is -1",
        lambda: ModelRope.uniform(ropes["half-split"], -1): "layers: it is -1",
        lambda: ModelRope.uniform(ropes["half-split"], 2).layer(-1): "layer: it is -1",
        lambda: ModelRope.from_config({"model_type": "llama"}, -1): "tokens: it is -1",
        lambda: rotations.starting_at(-1): "row: it is -1",
        lambda: rotations.select([-1]): "layers: entry 0 is -1",
    }.items():
        refused(call, text)
    refused(lambda: Rope.from_inv_freq(1.0), "inv_freq: it must be a flat sequence of numbers", TypeError)
    assert Rope.from_inv_freq(np.array([1.0, 0.5])) == Rope.from_inv_freq([1.0, 0.5])
    refused(lambda: ModelRope.from_config({"model_type": "what"}), "`what` is not a model type")
    refused(lambda: ModelRope.from_config(object()), "config: it must be", TypeError)
    refused(lambda: ModelRope.from_config("[]"), "is not a JSON object")
    refused(lambda: Rotations(plan, plan), "rope: it must be a Rope or a ModelRope", TypeError)
    refused(lambda: ModelRope.uniform(ropes["half-split"], 2).layer(2), "there is no 2", IndexError)
    model = ModelRope.uniform(ropes["half-split"], 2)
    refused(splice(rotations=Rotations(plan, model)), "1 given, but the rotations are for a model of 2")
    assert (keys == before).all() and (values == before).all()
