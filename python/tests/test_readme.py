"""The Python snippets of both READMEs run as they are, after the set-up that their section speaks of."""

import re
from pathlib import Path

import pytest

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
    pie_rope = pytest.importorskip("pie_rope")
    rope = pie_rope.Rope.from_theta(10_000.0, 64)
    plan = pie_rope.Plan.from_edits(40, [pie_rope.Edit.insert(10, 3)])
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
        kv_caches = [torch.randn(2, 8, 16, 4, 64).bfloat16() for _ in range(2)]
        return {"kv_caches": kv_caches, "block_table": [5, 2, 7, 1], "plan": plan, "rope": rope}
    if heading == "SGLang":
        buffers = [torch.randn(100, 4, 64).bfloat16() for _ in range(2)]
        return {"k_buffers": buffers, "slots": range(40), "free_slots": range(40, 60), "plan": plan, "rope": rope}
    raise AssertionError(f"no set-up for a snippet under `{heading}`")


@pytest.mark.parametrize(("heading", "code"), snippets())
def test_snippet(heading, code):
    exec(compile(code, heading, "exec"), before(heading))


def test_every_engine_has_one():
    assert {"transformers", "vLLM", "SGLang", "From Python"} <= {snippet.values[0] for snippet in snippets()}
