"""What pydantic found wrong with settings, in our words: the place, what was expected, the nearest right key."""

from __future__ import annotations

import difflib
import json
import math
import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from shoestring.core.config_keys import classes_at, nearest_key, setting_keys, tags_at
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.yaml_document import YamlDocument

if TYPE_CHECKING:
    from shoestring.core.config import Config

_MOST_TOLD = 20  # problems of one document
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_sub_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of settings",
    "model_type": "a section of settings",
    "model_attributes_type": "a section of settings",
    "none_required": "null",
    "path_type": "a path",
}
_LIMITS = {
    "greater_than": ("gt", "a number above {}"),
    "greater_than_equal": ("ge", "a number of at least {}"),
    "less_than": ("lt", "a number below {}"),
    "less_than_equal": ("le", "a number of at most {}"),
    "multiple_of": ("multiple_of", "a multiple of {}"),
    "too_short": ("min_length", "at least {} items"),
    "too_long": ("max_length", "at most {} items"),
    "string_too_short": ("min_length", "text of at least {} characters"),
    "string_too_long": ("max_length", "text of at most {} characters"),
    "string_pattern_mismatch": ("pattern", "text of the form {}"),
}


def expected_of(error: ValidationError, names: typing.Mapping[str, str] | None = None) -> str:
    """The first problem of values that came from elsewhere, in our words: NAME: expected ..., found ...

    names: what our fields are called there.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    expected = _expectation(first["type"], first.get("ctx", {}), first["msg"])
    return f"{(names or {}).get(key, key)}: expected {expected}, found {_show(first['input'])}"


class _Problem(typing.NamedTuple):
    key: str
    place: str
    message: str
    hint: str | None = None

    def where(self) -> str | None:
        return None if self.place == GIVEN.get() else self.place

    def sentence(self) -> str:
        return f"{self.message} {GIVEN.get()}" if self.place == GIVEN.get() else self.message


def explain(
    error: ValidationError, cls: type[Config], document: YamlDocument, overrides: dict[str, Any], hint: str | None
) -> ConfigError:
    """One error that lists what pydantic found in a document, each with its place, what was expected, and a hint."""
    expectations: dict[str, list[str]] = {}
    problems: dict[str, _Problem] = {}
    unknown = False
    every = error.errors(include_url=False)
    for found in every[:_MOST_TOLD]:
        parts = _path(found, document.values)
        key, kind, context = ".".join(parts), found["type"], found.get("ctx", {})
        value = _value_at(document.values, parts)
        if kind == "extra_forbidden":
            unknown = True
            problem = _unknown(key, cls, document, overrides)
        elif kind == "missing":
            where = ".".join(parts[:-1])
            message = f"missing setting {key}"
            if isinstance(_value_at(document.values, parts[:-1]), (list, tuple)):
                message = (
                    f"{where}: expected more items, found {_show(_value_at(document.values, parts[:-1]))}"
                )
                key = where
            problem = _Problem(key, document.place(where), message)
        elif kind == "union_tag_invalid":
            tags = [tag.strip("' ") for tag in str(context.get("expected_tags", "")).split(",")]
            tag = str(context.get("tag"))
            discriminator = str(context.get("discriminator", "kind")).strip("'")
            key = f"{key}.{discriminator}"
            close = difflib.get_close_matches(tag, tags, 1)
            message = f'{key}: unknown {discriminator} "{tag}"; there are: {", ".join(tags)}'
            problem = _Problem(
                key, document.place(key), message, f"did you mean {close[0]}?" if close else None
            )
        elif kind == "union_tag_not_found":
            discriminator = str(context.get("discriminator", "kind")).strip("'")
            tags = tags_at(cls, parts, discriminator)
            message = f"{key} needs a {discriminator}; there are: {', '.join(tags)}"
            problem = _Problem(key, document.place(key), message)
        elif kind in ("value_error", "assertion_error"):
            text = str(context.get("error") or found["msg"])
            named = not key or text.startswith(key)
            problem = _Problem(key, document.place(key), text if named else f"{key}: {text}")
        else:
            expectations.setdefault(key, []).append(_expectation(kind, context, found["msg"]))
            expected = " or ".join(dict.fromkeys(expectations[key]))
            message = f"{key}: expected {expected}, found {_show(value)}"
            choices = (
                [str(choice) for choice in _choices(context)] if kind in ("literal_error", "enum") else []
            )
            close = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
            problem = _Problem(
                key, document.place(key), message, f"did you mean {close[0]}?" if close else None
            )
        problems[f"{problem.key} {kind if kind == 'value_error' else ''}"] = problem
    more = f"and {len(every) - _MOST_TOLD:,} more\n" if len(every) > _MOST_TOLD else ""
    return _one_error(list(problems.values()), document, (more + (hint if unknown and hint else "")) or None)


def _one_error(problems: list[_Problem], document: YamlDocument, hint: str | None) -> ConfigError:
    last = [hint] if hint else []
    if len(problems) == 1:
        problem = problems[0]
        lines = ([problem.hint] if problem.hint else []) + last
        return ConfigError(problem.sentence(), where=problem.where(), hint="\n".join(lines) or None)
    lines = []
    for problem in sorted(problems, key=lambda problem: _place_order(problem.place)):
        place = problem.where()
        lines.append(f"{place}: {problem.sentence()}" if place else problem.sentence())
        if problem.hint:
            lines += [f"  {line}" for line in problem.hint.splitlines()]
    where = document.name if document.name != GIVEN.get() else "what is given"
    return ConfigError(f"{len(problems)} problems in {where}", hint="\n".join(lines + last))


def _place_order(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdigit() else (place, 0)


def _unknown(key: str, cls: type[Config], document: YamlDocument, overrides: dict[str, Any]) -> _Problem:
    place = document.place(key)
    for typed in overrides:  # name the key as it was typed: --optimiser.learning_rate, not its section alone
        if typed == key or typed.startswith(key + "."):
            key, place = typed, GIVEN.get()
            break
    section, _, name = key.rpartition(".")
    for owner in classes_at(cls, section.split(".") if section else []):
        if name in (renamed := getattr(owner, "renamed", {})):
            new = f"{section}.{renamed[name]}".lstrip(".")
            return _Problem(key, place, f"{key} is now called {new}")
    keys = setting_keys(cls)
    if key in keys:  # of another kind than the one chosen here
        section = key.rpartition(".")[0]
        chosen = _value_at(document.values, section.split("."))
        kind = chosen.get("kind") if isinstance(chosen, dict) else None
        if kind is None:  # which one may be unknown to whoever wrote this
            have = [str(owner.model_fields["kind"].default) for owner in _having(cls, section, name)]
            told = f"{section}.kind {' or '.join(have)} has it"
            return _Problem(key, place, f"unknown setting {key} for the usual kind", told)
        return _Problem(key, place, f"unknown setting {key} for kind {kind}")
    if hint := cls.called_elsewhere(name, keys):
        return _Problem(key, place, f"unknown setting {key}", hint)
    near = nearest_key(key, keys)
    return _Problem(key, place, f"unknown setting {key}", f"did you mean {near}?" if near else None)


def _having(cls: type[Config], section: str, name: str) -> list[type[BaseModel]]:
    """The kinds of a section that have this setting."""
    owners = classes_at(cls, section.split("."))
    return [owner for owner in owners if name in owner.model_fields and "kind" in owner.model_fields]


def _path(found: Any, values: Any) -> list[str]:
    """The keys that lead to the error in the document;

    pydantic's `loc` also holds union tags and validator names.
    """
    parts: list[str] = []
    for position, part in enumerate(found["loc"]):
        last = position == len(found["loc"]) - 1
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not (last and found["type"] == "missing"):
            continue
        parts.append(str(part))
    return parts


def _value_at(values: Any, parts: list[str]) -> Any:
    for part in parts:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, (list, tuple)) and part in map(str, range(len(values))):
            values = values[int(part)]
    return values


def _expectation(kind: str, context: dict[str, Any], message: str) -> str:
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _LIMITS:
        name, form = _LIMITS[kind]
        limit = context.get(name)
        return form.format(f"{limit:g}" if isinstance(limit, float) else limit)
    if kind in ("literal_error", "enum"):
        choices = _choices(context)
        return choices[0] if len(choices) == 1 else "one of: " + ", ".join(choices)
    return message[0].lower() + message[1:]


def _choices(context: dict[str, Any]) -> list[str]:
    return [
        choice.strip("' ") for choice in str(context.get("expected", "")).replace(" or ", ", ").split(",")
    ]


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a section of settings"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
