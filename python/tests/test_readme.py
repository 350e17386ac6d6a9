"""The Python snippets of both READMEs run as they are, after the set-up that their section speaks of."""

import re
from pathlib import Path

import pytest

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

import pie_rope  # noqa: E402
from reference import assert_close, spliced  # noqa: E402

ROOT = Path(__file__).parents[2]

# Snippets that make their own keys, of random numbers, which `check` has to know: of a seed of this run, then.
OWN = ("pie-rope for Python", "From Python")
SEED = numpy.random.SeedSequence().entropy
default_rng = numpy.random.default_rng


def snippets():
    for path in (ROOT / "README.md", ROOT / "python" / "README.md"):
        heading = None
        # A block of code, of any language, or a heading.
        for block, language, code, title in re.findall(
            r"^(```)(\w*)\n(.*?)^```$|^#+ ([^\n]+)$", path.read_text(), re.M | re.S
        ):
            if not block:
                heading = title
            elif language == "python":
                yield pytest.param(heading, code, id=f"{path.parent.name}: {heading}")


def before(heading):
    """What a snippet finds there already."""
    if heading in OWN:
        return {}
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if heading == "transformers":
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        config = transformers.LlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
        )
        old = torch.randint(97, (40,))
        return {
            "model": transformers.LlamaForCausalLM(config).eval(),
            "old_tokens": old,
            "new_tokens": torch.cat([old[:10], torch.randint(97, (3,)), old[10:]]),
        }
    if heading == "vLLM":
        kv_caches = [torch.randn(2, 8, 16, 4, 64) for _ in range(2)]
        return {"kv_caches": kv_caches, "block_table": [5, 2, 7, 1], "before": [cache.clone() for cache in kv_caches]}
    if heading == "SGLang":
        buffers = [torch.randn(100, 4, 64) for _ in range(2)]
        before = [buffer.clone() for buffer in buffers]
        return {"k_buffers": buffers, "slots": range(40), "free_slots": range(40, 60), "before": before}
    raise AssertionError(f"no set-up for a snippet under `{heading}`")


def check(heading, names):
    """What a snippet has done."""
    if heading in OWN:
        plan, rope = names["plan"], pie_rope.Rope.from_theta(10_000.0, 128)
        assert [span.rows for span in plan.new_spans] == [slice(10, 13)]
        old = default_rng(SEED).standard_normal((2, 1, 8, 64, 128)).astype("float16")
        # Rows first.
        old_keys, old_values = (part[0].swapaxes(0, 1).astype("float64") for part in old)
        keys, values = (names[name][0].swapaxes(0, 1).astype("float64") for name in ("keys", "values"))
        want, want_values = spliced(old_keys[:40], old_values[:40], plan, rope)
        assert_close(keys[:43], want, rope, "float16")
        kept = [row for span in plan.kept for row in range(span.dst, span.dst + span.len)]
        assert len(kept) == 40
        assert (values[kept] == want_values[kept]).all()
        # What has not moved has its bits, as have the rows behind.
        for got, was in ((keys, old_keys), (values, old_values)):
            assert (got[:10] == was[:10]).all()
            assert (got[43:] == was[43:]).all()
        return
    if heading == "transformers":
        tokens, model = names["new_tokens"], names["model"]
        assert names["next_token"] == model(tokens.unsqueeze(0)).logits[0, -1].argmax()
        return
    plan, rope = names["plan"], names["rope"]
    for layer in range(2):
        if heading == "vLLM":
            old, new = (c[layer][0][names["block_table"]].flatten(0, 1) for c in (names["before"], names["kv_caches"]))
        else:
            old, new = names["before"][layer][:40], names["k_buffers"][layer][names["slots"]]
        old = old.numpy().astype("float64")
        want, _ = spliced(old[:40], old[:40], plan, rope)
        assert_close(new.numpy().astype("float64")[:43], want, rope, "float32")
    if heading == "vLLM":
        assert names["slot_mapping"] == [5 * 16 + 10, 5 * 16 + 11, 5 * 16 + 12]
    else:
        assert list(names["slots"][10:13]) == [40, 41, 42]


@pytest.mark.parametrize(("heading", "code"), list(snippets()))
def test_snippet(heading, code, monkeypatch):
    print(f"seed {SEED}")
    monkeypatch.setattr(numpy.random, "default_rng", lambda: default_rng(SEED))
    names = before(heading)
    exec(compile(code, heading, "exec"), names)
    check(heading, names)


def test_every_engine_has_one():
    assert {"transformers", "vLLM", "SGLang", "From Python"} <= {snippet.values[0] for snippet in snippets()}
