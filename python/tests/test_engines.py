"""Torch tensors laid out as the caches of vLLM and SGLang."""

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

torch = pytest.importorskip("torch", reason="torch is not installed")

import pie_rope  # noqa: E402
from pie_rope import Edit, Plan, Rope, Rotations, sglang, vllm  # noqa: E402
from reference import assert_close, assert_same, spliced  # noqa: E402

LAYERS, HEADS, DIM, BLOCK, BLOCKS, ROWS = 3, 2, 32, 16, 12, 70
EDITS = [Edit.replace(3, 6, 9), Edit.insert(12, 1), Edit.delete(20, 31), Edit.insert(50, 14)]
ROPE = Rope.from_theta(10_000.0, DIM)
PLAN = Plan.from_edits(ROWS, EDITS)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def tensor(random, shape, element):
    return torch.from_numpy(random.standard_normal(shape)).to(DTYPES[element])


def numpy(tensor):
    return tensor.to(torch.float64).numpy()


def rows(pages, table):
    """[blocks, block, heads, dim] by a table, as [row, head, dim]."""
    pages = numpy(pages)[np.asarray(table)]
    return pages.reshape(-1, *pages.shape[2:])


def make(random, backend, element):
    """A layer's cache as the backend has it, and views of its keys and values as [blocks, block, heads, dim]."""
    if backend == "FlashAttention":
        cache = tensor(random, (2, BLOCKS, BLOCK, HEADS, DIM), element)
        return cache, cache[0], cache[1]
    if backend == "packed":
        cache = tensor(random, (BLOCKS, HEADS, BLOCK, 2 * DIM), element)
        return cache, cache.transpose(1, 2)[..., :DIM], cache.transpose(1, 2)[..., DIM:]
    if backend == "packed, rows first in memory":
        cache = tensor(random, (BLOCKS, BLOCK, HEADS, 2 * DIM), element).transpose(1, 2)
        return cache, cache.transpose(1, 2)[..., :DIM], cache.transpose(1, 2)[..., DIM:]
    if backend == "heads first":
        cache = tensor(random, (2, BLOCKS, HEADS, BLOCK, DIM), element)
        return cache, cache[0].transpose(1, 2), cache[1].transpose(1, 2)
    if backend == "FlashInfer":
        cache = tensor(random, (BLOCKS, 2, BLOCK, HEADS, DIM), element)
        return cache, cache[:, 0], cache[:, 1]
    if backend == "FlashInfer, heads first":
        cache = tensor(random, (BLOCKS, 2, HEADS, BLOCK, DIM), element).permute(0, 1, 3, 2, 4)
        return cache, cache[:, 0], cache[:, 1]
    if backend == "apart":
        keys, values = (tensor(random, (BLOCKS, BLOCK, HEADS, DIM), element) for _ in range(2))
        return (keys, values), keys, values
    cache = tensor(random, (BLOCKS, BLOCK, 24 + DIM), element)
    return cache, cache[:, :, None], None


BACKENDS = [
    "packed", "packed, rows first in memory", "FlashAttention", "heads first", "FlashInfer", "FlashInfer, heads first",
    "apart", "MLA",
]  # fmt: skip


def rope_of(backend):
    return Rope.from_theta(10_000.0, DIM, pairing="interleaved", offset=24) if backend == "MLA" else ROPE


def want_of(keys, values, table, rope):
    keys = rows(keys, table)
    return spliced(keys, keys if values is None else rows(values, table), PLAN, rope)


def assert_rows(keys, values, table, want, rope, element):
    assert_close(rows(keys, table)[: PLAN.new_rows], want[0], rope, element)
    if values is not None:
        assert_same(rows(values, table)[: PLAN.new_rows], want[1])


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_vllm_splice(random, backend, element):
    layers = [make(random, backend, element) for _ in range(LAYERS)]
    table = torch.from_numpy(random.permutation(BLOCKS)[:6].astype(np.int32))
    padded = torch.cat([table, torch.tensor([-1, -1], dtype=torch.int32)])
    want = [want_of(keys, values, table, rope_of(backend)) for _, keys, values in layers]
    unused = [b for b in range(BLOCKS) if b not in table.tolist()]
    before = [numpy(keys)[unused] for _, keys, _ in layers]
    vllm.splice([cache for cache, _, _ in layers], padded, Rotations(PLAN, rope_of(backend)), block_size=BLOCK)
    for (_, keys, values), want_layer, others in zip(layers, want, before, strict=True):
        assert_rows(keys, values, table, want_layer, rope_of(backend), element)
        assert (numpy(keys)[unused] == others).all()


COPIES = {
    "nothing shared": ([Edit.insert(40, 3)], 0),
    "two blocks shared": ([Edit.insert(40, 3)], 2),
    "as long as before": ([Edit.replace(36, 39, 3)], 2),
    "nothing moves": ([Edit.replace(3, 6, 3)], 0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", COPIES)
def test_vllm_copy_brings_every_row_that_is_not_shared(random, backend, which):
    edits, shared = COPIES[which]
    plan = Plan.from_edits(ROWS, edits)
    cache, keys, values = make(random, backend, "bfloat16")
    order = random.permutation(BLOCKS)
    table = order[:5]
    new_table = np.concatenate([order[:shared], order[5 : 10 - shared]])
    for part in (keys, values):
        if part is not None:
            part[order[5:]] = torch.nan
    before = numpy(keys)
    old_keys = rows(keys, table)[:ROWS]
    old_values = old_keys if values is None else rows(values, table)[:ROWS]
    want = spliced(old_keys, old_values, plan, rope_of(backend))
    vllm.copy([cache], table, new_table, Rotations(plan, rope_of(backend)), block_size=BLOCK)
    for part, wanted, exact in ((keys, want[0], False), (values, want[1], True)):
        if part is None:
            continue
        got = rows(part, new_table)[: plan.new_rows]
        if exact:
            assert_same(got, wanted)
        else:
            assert_close(got, wanted, rope_of(backend), "bfloat16")
    assert (numpy(keys)[table] == before[table]).all()
    with pytest.raises(ValueError, match="new_block_table: its first 80 rows are shared"):
        vllm.copy([cache], table, table, Rotations(PLAN, rope_of(backend)), block_size=BLOCK)


@pytest.mark.parametrize("edit", [Edit.replace(3, 6, 3), Edit.insert(14, 2), Edit.delete(69, 70), Edit.insert(70, 3)])
def test_shared_blocks_are_not_handed_out_to_new_rows(random, edit):
    plan = Plan.from_edits(ROWS, [edit])
    cache, keys, _ = make(random, "packed", "float32")
    before, rotations = numpy(keys), Rotations(plan, ROPE)
    table, first = list(range(5)), edit.start
    shared = [*table[: first // BLOCK + 1], 9, 10, 11, 8, 7][:5]
    with pytest.raises(ValueError, match=f"and the edit changes rows from {first} on"):
        vllm.copy(cache, table, shared, rotations, block_size=BLOCK)
    with pytest.raises(ValueError, match=f"and the edit changes rows from {first} on"):
        slots = list(range(ROWS + 5))
        sglang.copy(cache[:, 0], None, slots, slots, rotations)
    assert (numpy(keys) == before).all()
    apart = [*table[: first // BLOCK], 9, 10, 11, 8, 7][:5]
    vllm.copy(cache, table, apart, rotations, block_size=BLOCK)


def test_a_shared_block_is_not_handed_out_to_new_rows_behind_one_that_is_not():
    # Nothing is copied to the second block, where the verb would see it.
    plan = Plan.from_edits(32, [Edit.replace(16, 32, 16)])
    cache = torch.zeros(BLOCKS, HEADS, BLOCK, 2 * DIM)
    with pytest.raises(ValueError, match="new_block_table: entry 1 is 2, which is shared, behind one that is not"):
        vllm.copy(cache, [5, 2], [7, 2], Rotations(plan, ROPE), block_size=BLOCK)
    with pytest.raises(ValueError, match="new_slots: entry 16 is 16, which is shared, behind one that is not"):
        new_slots = [*range(40, 56), *range(16, 32)]
        sglang.copy(torch.zeros(60, HEADS, DIM), None, range(32), new_slots, Rotations(plan, ROPE))
    # Blocks behind those in use are padding.
    vllm.copy(cache, [5, 2, 0, 9], [7, 9, 0, 0], Rotations(plan, ROPE), block_size=BLOCK)


def test_a_table_that_has_no_block_for_a_row_has_no_slot_for_it():
    spans = Plan.from_edits(30, [Edit.insert(30, 3)]).new_spans
    assert vllm.slot_mapping([0, 5, 7], BLOCK, spans) == [16 * 5 + 14, 16 * 5 + 15, 16 * 7]
    for table, text in (([0, 5, -1], "row 32 has no block: entry 2 is -1"), ([0, 5], "it has 2 entries")):
        with pytest.raises(ValueError, match=f"block_table: .*{text}"):
            vllm.slot_mapping(table, BLOCK, spans)
    with pytest.raises(ValueError, match="block_size: it is 0"):
        vllm.slot_mapping([0, 5, 7], 0, spans)
    for block_size in (None, 16.0):
        with pytest.raises(TypeError, match=f"block_size: {block_size} is no integer"):
            vllm.slot_mapping([0, 5, 7], block_size, spans)
    with pytest.raises(TypeError, match="block_table: it must be a flat sequence"):
        vllm.slot_mapping([[0, 5, 7]], BLOCK, spans)


def test_vllm_slots_are_where_new_rows_lie():
    table = [5, 2, 9, 7, 1]
    slots = vllm.slot_mapping(torch.tensor(table), BLOCK, PLAN.new_spans)
    expected = [table[r // BLOCK] * BLOCK + r % BLOCK for s in PLAN.new_spans for r in range(*s.rows.indices(10**6))]
    assert slots == expected and len(slots) == 9 + 1 + 14


def test_vllm_refuses_shapes_that_do_not_tell(random):
    rotations = Rotations(PLAN, ROPE)
    with pytest.raises(ValueError, match="pass `kv_dim`"):
        vllm.splice(torch.zeros(2, 2, BLOCK, HEADS, DIM), [0, 1], rotations, block_size=BLOCK)

    def refused(shape, text, error=ValueError, **options):
        with pytest.raises(error, match=text):
            cache = torch.zeros(shape) if isinstance(shape, tuple) else shape
            vllm.splice(cache, [0, 1], rotations, block_size=BLOCK, **options)

    refused((2, BLOCKS), "is none of vLLM's")
    refused((BLOCKS, BLOCK, HEADS, 2 * DIM), "is not .blocks, heads, 16, 2")
    refused((BLOCKS, HEADS, BLOCK, 2 * DIM), "is not .blocks, heads, 16, 2", layout="NHD")
    refused((BLOCKS, HEADS, BLOCK, 2 * DIM + 1), "65 numbers are not a key and a value: pass `head_size`")
    refused((BLOCKS, HEADS, BLOCK, 2 * DIM), "64 numbers are not a key and a value", head_size=2 * DIM)
    # As many heads as rows, and a cache of one number a row: the numbers are not where they would be looked for.
    refused((2, BLOCKS, BLOCK, BLOCK, DIM), "as many heads as rows in a block: pass `layout`")
    refused((2, BLOCKS, HEADS, BLOCK, DIM), "are not .blocks, 16, heads, head_size.", layout="NHD")
    refused((2, BLOCKS, BLOCK, HEADS, DIM), "are not .blocks, heads, 16, head_size.", layout="HND")
    refused((2, BLOCKS, BLOCK, HEADS, DIM), "layout: there is no 'nhd'", layout="nhd")
    refused((2, BLOCKS, BLOCK * HEADS * DIM), "are not .blocks, 16, heads, head_size.")
    refused({"model.layers.0": torch.zeros(1)}, "kv_caches: it must be a list", TypeError)
    refused(None, "kv_caches: it must be a list", TypeError)
    refused([None], "kv_caches.0.: NoneType is no tensor", TypeError)
    with pytest.raises(TypeError, match="block_table: it must be a flat sequence"):
        vllm.splice(torch.zeros(2, BLOCKS, BLOCK, HEADS, DIM), None, rotations, block_size=BLOCK)
    with pytest.raises(TypeError, match="slots: it must be a flat sequence"):
        sglang.rotate(torch.zeros(90, HEADS, DIM), None, rotations)
    rotations = Rotations(Plan.from_edits(70, [Edit.insert(3, 20)]), ROPE)
    with pytest.raises(ValueError, match="entry 5 is -1"):
        vllm.splice(torch.zeros(2, BLOCKS, BLOCK, HEADS, DIM), [0, 1, 2, 3, 4, -1], rotations, block_size=BLOCK)


def test_vllm_where_the_shape_does_not_tell(random):
    rotations = Rotations(PLAN, ROPE)
    table = [3, 1, 4, 2, 5, 0]
    heads = BLOCK
    rows_first = torch.randn(2, BLOCKS, BLOCK, heads, DIM)
    heads_first = rows_first.transpose(2, 3).contiguous()
    # Keys and values of two widths.
    packed = torch.cat([rows_first[0], rows_first[1, ..., :8]], -1).transpose(1, 2)
    vllm.splice(rows_first, table, rotations, block_size=BLOCK, layout="NHD")
    vllm.splice(heads_first, table, rotations, block_size=BLOCK, layout="HND")
    vllm.splice(packed, table, rotations, block_size=BLOCK, head_size=DIM)
    assert (heads_first.transpose(2, 3) == rows_first).all()
    assert (packed.transpose(1, 2) == torch.cat([rows_first[0], rows_first[1, ..., :8]], -1)).all()


@pytest.mark.parametrize("element", DTYPES)
def test_sglang_rotate_moves_nothing(random, element):
    k_buffers = [tensor(random, (200, HEADS, DIM), element) for _ in range(LAYERS)]
    order = random.permutation(200)
    slots, free = torch.from_numpy(order[:ROWS]), order[ROWS : ROWS + 40]
    want = [spliced(numpy(k)[slots], numpy(k)[slots], PLAN, ROPE)[0] for k in k_buffers]
    before = [numpy(k) for k in k_buffers]
    sglang.rotate(k_buffers, slots, Rotations(PLAN, ROPE))
    new_slots = sglang.edited_slots(slots, PLAN, free)
    assert len(set(new_slots)) == PLAN.new_rows
    for k, want_keys, old in zip(k_buffers, want, before, strict=True):
        assert_close(numpy(k)[new_slots], want_keys, ROPE, element)
        others = np.setdiff1d(np.arange(200), slots)
        assert (numpy(k)[others] == old[others]).all()
    with pytest.raises(ValueError, match="free: the edit opens 24 rows, there are 3 slots"):
        sglang.edited_slots(slots, PLAN, free[:3])
    for wrong in (slots[:24], [free[0]] * 24):
        with pytest.raises(ValueError, match="free: a slot is there twice, or is one of the request's own"):
            sglang.edited_slots(slots, PLAN, wrong)
    with pytest.raises(ValueError, match="slots: the plan is for 70 rows, there are 9 slots"):
        sglang.edited_slots(slots[:9], PLAN, free)
    with pytest.raises(ValueError, match="slots: a slot is there twice"):
        sglang.edited_slots([*slots[:69], slots[0]], PLAN, free)
    with pytest.raises(ValueError, match="slots: entry 69 is -1"):
        sglang.edited_slots([*slots[:69], -1], PLAN, free)
    with pytest.raises(ValueError, match="free: entry 1 is -1"):
        sglang.edited_slots(slots, PLAN, [free[0], -1, *free[2:]])


def test_sglang_splice_and_copy(random):
    k, v = (tensor(random, (300, HEADS, DIM), "bfloat16") for _ in range(2))
    order = random.permutation(300)
    slots, new_slots = order[:90], order[100:190]
    want = spliced(numpy(k)[slots][:ROWS], numpy(v)[slots][:ROWS], PLAN, ROPE)
    new_slots[:3] = slots[:3]  # the rows before the first edit are shared
    for buffer in (k, v):
        buffer[new_slots[3:]] = torch.nan
    sglang.copy([k], [v], slots, new_slots, Rotations(PLAN, ROPE))
    with pytest.raises(ValueError, match="new_slots: its first 90 rows are shared"):
        sglang.copy([k], [v], slots, slots, Rotations(PLAN, ROPE))
    sglang.splice([k], [v], slots, Rotations(PLAN, ROPE))
    for where in (slots, new_slots):
        assert_close(numpy(k)[where[: PLAN.new_rows]], want[0], ROPE, "bfloat16")
        assert_same(numpy(v)[where[: PLAN.new_rows]], want[1])


def test_a_tensor_that_needs_a_gradient_is_refused():
    with pytest.raises(ValueError, match="keys: "):
        pie_rope.rotate(Rotations(PLAN, ROPE), torch.zeros(1, HEADS, 80, DIM, requires_grad=True))


def test_a_view_with_negated_numbers_is_refused():
    keys = torch.randn(1, HEADS, 80, DIM, dtype=torch.complex64).conj().imag
    assert keys.is_neg()
    with pytest.raises(ValueError, match="keys: it is a view with negated numbers"):
        pie_rope.rotate(Rotations(PLAN, ROPE), keys)
