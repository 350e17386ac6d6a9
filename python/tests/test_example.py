"""The worked example does what it says."""

import runpy
from pathlib import Path

import pytest

for module in ("torch", "transformers", "tokenizers"):
    pytest.importorskip(module, reason=f"{module} is not installed")


def test_edit_llama():
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "edit_llama.py"))
    results = example["main"]()
    assert {name for _, name in results} == {"insertion", "deletion", "several"}
    for (layers, name), result in results.items():
        if layers == 1:
            # Rounding: of float32, at positions below 2000.
            assert result["logits"] < 2e-4 * result["size"], (name, result)
        assert result["turned"] < 0.02 and result["stale"] > 10 * result["turned"], (layers, name, result)
    assert results[6, "several"]["spans"] > 5
