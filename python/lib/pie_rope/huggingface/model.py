"""What models of transformers are called and call things."""

import inspect
from typing import Any, Literal

# The pairs of what turns in a latent row, as transformers caches it. Most models reorder it before they turn it, so
# these are not the pairs of the checkpoint.
LATENT: dict[str, Literal["half-split", "interleaved"]] = {
    "axk1": "half-split",
    "bailing_hybrid": "half-split",
    "deepseek_v2": "interleaved",
    "deepseek_v3": "half-split",
    "glm4_moe_lite": "half-split",
    "longcat_flash": "half-split",
    "minicpm3": "half-split",
    "mistral4": "half-split",
    "sarvam_mla": "half-split",
    "youtu": "half-split",
}


def cache_argument(model: Any) -> str:
    """How the model's ``forward`` calls its cache: ``past_key_values``, or ``cache`` in later versions."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
