"""How replies are made, as a chat shows and changes it: every setting by its name, but for those that no reply has."""

from __future__ import annotations

import re
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.core.yaml_document import parse_value
from shoestring.generate.config import CONSTRAINTS, SamplingConfig, sampling_config
from shoestring.generate.constraint import check_constraint, text_or_file

WHAT = "a conversation"  # as it is told what goes with none
_ALWAYS = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
_OFF = "off"


def shown(sampling: SamplingConfig) -> str:
    """The usual settings, and those others that are not at rest, as they can be typed."""
    parts = [f"{name} {getattr(sampling, name):,}" for name in _ALWAYS]
    for name, field in SamplingConfig.model_fields.items():
        value = getattr(sampling, name)
        if name not in _ALWAYS and value != field.get_default(call_default_factory=True):
            parts.append(f"{name} {_typed(name, value)}")
    return " · ".join(parts)


def _typed(name: str, value: Any) -> str:
    if name == "logit_bias":
        return repr(dict(value))
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def change(sampling: SamplingConfig, argument: str) -> SamplingConfig:
    """With what `NAME VALUE` or `NAME=VALUE` says; as it is where nothing is said. `NAME off` takes back what is
    nothing by default.

    Raises ConfigError, also for what goes with no conversation; DataError for a schema or grammar in a file that cannot
    be read.
    """
    name = re.match(r"[^\s=]*", argument)[0]  # type: ignore[index]
    text = argument[len(name) :].strip().removeprefix("=").strip()
    name = name.lstrip("-").replace("-", "_")
    if not name:
        return sampling
    if not text:
        raise ConfigError(f"/set {name} needs a value", hint=f"/set {name} VALUE; /set alone shows all")
    settings = sampling.model_dump(exclude_none=True)
    if text == _OFF and name in SamplingConfig.model_fields and _nothing(name) in (None, ()):
        settings.pop(name, None)
        changed = sampling_config(settings, {})
    else:
        if name in CONSTRAINTS:  # one takes the place of another
            settings = {other: value for other, value in settings.items() if other not in CONSTRAINTS}
        changed = sampling_config(settings, {name: _value(name, text)})
    changed.check_streams(WHAT)
    check_constraint(changed)
    return changed


def _nothing(name: str) -> Any:
    return SamplingConfig.model_fields[name].get_default(call_default_factory=True)


def _value(name: str, text: str) -> Any:
    """What a person means by these words."""
    if name in CONSTRAINTS:
        return text if name == "regex" else text_or_file(text, name)
    if name == "stop" and not text.startswith("["):
        return text
    value = parse_value(text, "/set")
    return text if value is None else value
