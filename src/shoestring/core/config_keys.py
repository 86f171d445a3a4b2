"""The dotted keys of settings classes: all of them, the one nearest to a misspelt one, what may stand at one."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel

_LONGEST_KEY = 200  # that may be a misspelt one


def setting_keys(cls: type[BaseModel]) -> list[str]:
    """Every dotted key that `cls` understands, sections included, over all kinds;

    `*` stands for a list's index.
    """
    return list(dict.fromkeys(_keys(cls, "", ())))


def nearest_key(unknown: str, keys: list[str]) -> str | None:
    """The valid dotted key closest to `unknown` over the whole tree, or None if nothing is close.

    The last word decides, because a setting in the wrong section is the usual mistake; the section breaks
    ties.
    """
    if len(unknown) > _LONGEST_KEY:
        return None
    section, _, name = unknown.rpartition(".")
    best, best_score = None, 0.0
    for key in keys:
        candidate_section, _, candidate = key.rpartition(".")
        initials = "".join(word[0] for word in candidate.split("_") if word)
        alike = 0.9 if len(name) > 1 and name == initials else _similarity(name, candidate)
        whole = _similarity(unknown, key)
        score = max(alike, whole if whole >= 0.85 else 0.0) + 0.15 * _similarity(section, candidate_section)
        score -= 0.05 * (key.count(".") > max(unknown.count("."), 1))  # a section within a section is seldom meant
        if max(alike, whole) >= 0.7 and score > best_score:
            best, best_score = key, score
    return best


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first.lower(), second.lower(), autojunk=False).ratio()


def _keys(annotation: Any, prefix: str, above: tuple[type, ...]) -> typing.Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in above:
            return
        for name, info in annotation.model_fields.items():
            yield prefix + name
            yield from _keys(info.annotation, f"{prefix}{name}.", (*above, annotation))
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _keys(arguments[0], prefix, above)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _keys(argument, prefix, above)
    elif origin in (list, tuple, dict):
        for argument in arguments:
            yield from _keys(argument, f"{prefix}*.", above)


def classes_at(annotation: Any, parts: list[str]) -> list[type[BaseModel]]:
    """The settings classes that may stand at the dotted place `parts` under `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not parts:
            return [annotation]
        field = annotation.model_fields.get(parts[0])
        return [] if field is None else classes_at(field.annotation, parts[1:])
    if typing.get_origin(annotation) in (list, tuple, dict):
        parts = parts[1:]
    return [found for inner in typing.get_args(annotation) for found in classes_at(inner, parts)]


def tags_at(annotation: Any, parts: list[str], discriminator: str) -> list[str]:
    """The kinds that a discriminated union at the dotted place `parts` under `annotation` offers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if parts and parts[0] in fields:
            return tags_at(fields[parts[0]].annotation, parts[1:], discriminator)
        return [str(tag) for tag in typing.get_args(fields[discriminator].annotation)] if not parts else []
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return tags_at(arguments[0], parts, discriminator)
    if typing.get_origin(annotation) in (list, tuple, dict):
        parts = parts[1:]
    return list(dict.fromkeys(tag for inner in arguments for tag in tags_at(inner, parts, discriminator)))
