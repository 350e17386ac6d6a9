"""The Python snippets of both READMEs run as they are, after the set-up that their section speaks of."""

import re
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="numpy is not installed")

from reference import assert_close, spliced  # noqa: E402

ROOT = Path(__file__).parents[2]


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
    if heading in ("pie-rope for Python", "From Python"):
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
    if heading in ("pie-rope for Python", "From Python"):
        assert names["plan"].new_spans[0].rows == slice(10, 13)
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
def test_snippet(heading, code):
    names = before(heading)
    exec(compile(code, heading, "exec"), names)
    check(heading, names)


def test_every_engine_has_one():
    assert {"transformers", "vLLM", "SGLang", "From Python"} <= {snippet.values[0] for snippet in snippets()}
