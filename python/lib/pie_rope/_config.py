"""Configurations of models: the part that is about text, and what it says."""

import json
from typing import Any

_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")


def text(config: Any) -> Any:
    """The part of a configuration that is about text."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise ValueError(f"config: it is not the text of a config.json: {error}") from None
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    if not isinstance(config, dict) and not hasattr(config, "to_json_string"):
        raise TypeError(
            "config: it must be the text of a config.json, a dict of it, or a configuration of transformers,"
            f" not {type(config).__name__}"
        )
    while isinstance(config, dict) and (inner := next((config[part] for part in _PARTS if config.get(part)), None)):
        config = inner
    return config


def entry(config: Any, *names: str) -> Any:
    """The first of these entries of the part that is about text that says something."""
    config = text(config)
    found = (config.get(name) if isinstance(config, dict) else getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def parameters(config: Any) -> list[dict[str, Any]]:
    """What a configuration says of its ropes: once, or once for each type of layers."""
    said = entry(config, "rope_parameters", "rope_scaling") or {}
    if not isinstance(said, dict):
        return []
    nested = [inner for inner in said.values() if isinstance(inner, dict)]
    return nested or [said]


def rope_type(said: dict[str, Any]) -> str:
    """As transformers calls it; older configurations have other names."""
    name = str(said.get("rope_type") or said.get("type") or "default")
    return {"su": "longrope", "mrope": "default"}.get(name, name)
