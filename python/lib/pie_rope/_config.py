"""Configurations of models: the part that is about text, and what it says."""

import json
from typing import Any

_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
_KINDS = "a configuration of transformers, a dict of it, the text of a config.json"


def text(config: Any, name: str = "config", kinds: str = f"{_KINDS}, or a ModelRope") -> Any:
    """The part of a configuration that is about text. ``name`` is the argument that it came by, ``kinds`` what that
    may be: what messages say."""
    config = whole(config, name)
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    if not isinstance(config, dict) and not hasattr(config, "to_json_string"):
        raise TypeError(f"{name}: it must be {kinds}, not {type(config).__name__}")
    return _inner(config) if isinstance(config, dict) else config


def whole(config: Any, name: str = "config") -> Any:
    """A configuration with all its parts."""
    try:
        return json.loads(config) if isinstance(config, str) else config
    except ValueError as error:
        raise ValueError(f"{name}: it is not the text of a config.json: {error}") from None


def check(given: Any) -> None:
    """Whether what is given in a model's place is a configuration."""
    text(given, "model", f"a model of transformers, {_KINDS}, or a ModelRope")


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    """As the crate's reader goes down: a part that does not say its type has the next outer one's, with ``_text``."""
    outer = None
    while True:
        # The one encoder and decoder whose decoder has a rope that is known.
        parts = (*_PARTS, "decoder") if config.get("model_type") == "t5gemma" else _PARTS
        part = next((config[part] for part in parts if isinstance(config.get(part), dict)), None)
        if part is None:
            break
        outer = config.get("model_type") or outer
        config = part
    return config if config.get("model_type") or outer is None else {**config, "model_type": f"{outer}_text"}


def entry(config: Any, *names: str) -> Any:
    """The first of these entries of the part that is about text that says something."""
    config = text(config)
    found = (config.get(name) if isinstance(config, dict) else getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def parameters(config: Any) -> dict[str | None, dict[str, Any]]:
    """What a configuration says of its ropes, by the type of layers; None: of all."""
    return believed(config)[1]


def believed(config: Any) -> tuple[str, dict[str | None, dict[str, Any]]]:
    """The entry that says what ropes there are, and what it says."""
    old, new = "rope_scaling", "rope_parameters"
    older, newer = (_by_type(entry(config, name)) for name in (old, new))
    if not older or not newer:
        return (old, older) if older else (new, newer)
    # Files that serve readers of both forms have both. transformers believes the older one; but where that is for all
    # layers, and the newer one for each type, only the newer one says which.
    finer = None in older and None not in newer
    pairs = [(older.get(kind, older.get(None)), said) for kind, said in newer.items()]
    alike = [one is not None and rope_type(one) == rope_type(said) for one, said in pairs]
    if not (any(alike) if finer else all(alike)):
        types = [" and ".join(sorted({rope_type(said) for said in some.values()})) for some in (older, newer)]
        raise ValueError(
            f"{old}: it is {types[0]}, but `{new}` are {types[1]}: by which of them the model was made is not known,"
            " leave the other out"
        )
    return (new, newer) if finer else (old, older)


def _by_type(said: Any) -> dict[str | None, dict[str, Any]]:
    if not isinstance(said, dict) or not said:
        return {}
    nested: dict[str | None, dict[str, Any]] = {name: inner for name, inner in said.items() if isinstance(inner, dict)}
    return nested or {None: said}


def rope_type(said: dict[str, Any]) -> str:
    """As transformers calls it; older configurations have other names."""
    name = str(said.get("rope_type") or said.get("type") or "default")
    return {"su": "longrope", "mrope": "default"}.get(name, name)
