"""How replies are made, as a chat shows and changes it."""

from __future__ import annotations

import re

from shoestring.core.errors import ConfigError
from shoestring.core.yaml_document import parse_value
from shoestring.generate.config import SamplingConfig, sampling_config

_ALWAYS = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


def shown(sampling: SamplingConfig) -> str:
    """The usual settings, and those others that are not at rest."""
    parts = [f"{name} {getattr(sampling, name):,}" for name in _ALWAYS]
    for name, field in SamplingConfig.model_fields.items():
        value = getattr(sampling, name)
        if name not in _ALWAYS and value != field.get_default(call_default_factory=True):
            parts.append(f"{name} {', '.join(map(repr, value)) if isinstance(value, tuple) else value}")
    return " · ".join(parts)


def change(sampling: SamplingConfig, argument: str) -> SamplingConfig:
    """With what `NAME VALUE` or `NAME=VALUE` says; as it is where nothing is said. Raises ConfigError."""
    name = re.match(r"[^\s=]*", argument)[0]  # type: ignore[index]
    text = argument[len(name) :].strip().removeprefix("=").strip()
    name = name.lstrip("-").replace("-", "_")
    if not name:
        return sampling
    if not text:
        raise ConfigError(f"/set {name} needs a value", hint=f"/set {name} VALUE; /set alone shows all")
    value = text if name == "stop" and not text.startswith("[") else parse_value(text, "/set")
    return sampling_config(sampling.model_dump(), {name: text if value is None else value})
