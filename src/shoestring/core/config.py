"""Strict configuration: every setting is declared; a mistake is named with file, line and nearest key.

`Config` is the base of all settings classes: frozen, no unknown keys, no silent conversion between text,
numbers and booleans. `load_config` reads YAML and command-line overrides and turns pydantic's findings into
one ConfigError. Nothing here imports torch, so a mistake is reported within a second.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.units import Bytes, Seconds
from shoestring.core.yaml_document import YamlDocument, apply_overrides, read_document

C = TypeVar("C", bound="Config")
_LARGEST = 2**63 - 1
_MOST_TOLD = 20  # problems of one document
_LONGEST_KEY = 200  # that may be a misspelt one
_DOCUMENT_END = "\n...\n"  # PyYAML marks the end after a bare scalar


def _make_scalars_strict(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool", "str"):
            schema["strict"] = True
        if schema.get("type") == "int":  # what tensors and generators can hold
            schema.setdefault("ge", -_LARGEST - 1)
            schema.setdefault("le", _LARGEST)
        for key, inner in schema.items():
            if key not in ("metadata", "serialization", "default"):
                _make_scalars_strict(inner)
    elif isinstance(schema, (list, tuple)):
        for inner in schema:
            _make_scalars_strict(inner)


class Config(BaseModel):
    """Base of all settings. Text is not taken for a number, nor a number for a boolean;

    1 is fine where 1.0 is expected. renamed: settings that had other names, old -> new; the old ones are refused by
    the new one's name.
    """

    renamed: typing.ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        # Strict for scalars only: pydantic's own strict mode also refuses a list for a tuple.
        schema = handler(source)
        _make_scalars_strict(schema)
        return schema

    @classmethod
    def called_elsewhere(cls, name: str, keys: list[str]) -> str | None:
        """What to write for an unknown setting whose last word is `name`, if other tools call something that."""
        return None


def usual_kind(kind: str) -> BeforeValidator:
    """In an annotation: the kind of a section that does not name one."""

    def fill(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, dict) and "kind" not in value else value

    return BeforeValidator(fill)


def load_config(
    cls: type[C],
    source: str | Path | YamlDocument,
    overrides: dict[str, Any] | None = None,
    hint: str | None = None,
) -> C:
    """Read `source` (a YAML file or a YamlDocument), apply `overrides` (dotted key -> value), validate as `cls`.

    hint: a last line for errors about unknown settings, such as which command lists them all.
    Raises ConfigError that lists every problem with its place and what was expected.
    """
    document = source if isinstance(source, YamlDocument) else read_document(source)
    alone = document
    if overrides:
        _need_units(cls, overrides)
        document = apply_overrides(document, overrides)
    try:
        return cls.model_validate(document.values)
    except ValidationError as error:
        if overrides and _is_right(cls, alone):  # then what was given is wrong, wherever the sections stand
            document = YamlDocument(document.values, dict.fromkeys(document.places, GIVEN.get()), GIVEN.get())
        raise _explain(error, cls, document, overrides or {}, hint) from None


def _is_right(cls: type[Config], document: YamlDocument) -> bool:
    try:
        cls.model_validate(document.values)
    except ValidationError:
        return False
    return True


def _need_units(cls: type[Config], given: dict[str, Any]) -> None:
    """Raises ConfigError for a bare number, typed where seconds or minutes, or bytes or gigabytes, may be meant."""
    for key, raw in given.items():
        if not isinstance(raw, str) or not re.fullmatch(r"\s*\d{1,15}(\.\d*)?\s*", raw):
            continue
        section, _, name = key.rpartition(".")
        for owner in _classes_at(cls, section.split(".") if section else []):
            field = owner.model_fields.get(name)
            kinds = () if field is None else (field.annotation, *typing.get_args(field.annotation))
            number, unit = raw.strip(), None
            if Seconds in kinds:
                unit = ("seconds, minutes or hours", f"{number}s, {number}m or {number}h")
            elif Bytes in kinds and 0 < float(number) < 1e6:
                unit = ("megabytes or gigabytes", f"{number}MB or {number}GB")
            if unit is not None:
                raise ConfigError(f"{key} {number}: {unit[0]}? {GIVEN.get()}", hint=f"write {unit[1]}")


def dump_yaml(config: Config, comments: bool = False) -> str:
    """The complete settings as YAML that `load_config` reads back to an equal object.

    comments: explain each setting by its field's description.
    """
    return "\n".join(_yaml_lines(config, "", comments)) + "\n"


def _yaml_lines(config: BaseModel, indent: str, comments: bool) -> typing.Iterator[str]:
    plain = config.model_dump(mode="json")
    for name, info in type(config).model_fields.items():
        value, description = getattr(config, name), info.description
        if isinstance(value, BaseModel) and type(value).model_fields:
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, indent + "  ", comments)
            continue
        text = yaml.dump(
            plain[name], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6
        )
        line = f"{indent}{name}: {text.removesuffix(_DOCUMENT_END).rstrip()}"
        yield f"{line:<36}  # {description}" if comments and description else line


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
        if max(alike, whole) >= 0.7 and score > best_score:
            best, best_score = key, score
    return best


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first.lower(), second.lower(), autojunk=False).ratio()


class _Dumper(yaml.SafeDumper):
    """PyYAML's own rules leave text such as 1e5 unquoted, which YAML 1.2 reads as a number."""


def _one_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _one_line)
_Dumper.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


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


def _classes_at(annotation: Any, parts: list[str]) -> list[type[Config]]:
    """The settings classes that may stand at the dotted place `parts` under `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        if not parts:
            return [annotation]
        field = annotation.model_fields.get(parts[0])
        return [] if field is None else _classes_at(field.annotation, parts[1:])
    if typing.get_origin(annotation) in (list, tuple, dict):
        parts = parts[1:]
    return [found for inner in typing.get_args(annotation) for found in _classes_at(inner, parts)]


def _tags(annotation: Any, parts: list[str], discriminator: str) -> list[str]:
    """The kinds that a discriminated union at the dotted place `parts` under `annotation` offers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if parts and parts[0] in fields:
            return _tags(fields[parts[0]].annotation, parts[1:], discriminator)
        return [str(tag) for tag in typing.get_args(fields[discriminator].annotation)] if not parts else []
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _tags(arguments[0], parts, discriminator)
    if typing.get_origin(annotation) in (list, tuple, dict):
        parts = parts[1:]
    return list(dict.fromkeys(tag for inner in arguments for tag in _tags(inner, parts, discriminator)))


# --- explaining what pydantic found -------------------------------------------------------------------------


def expected_of(error: ValidationError, names: typing.Mapping[str, str] | None = None) -> str:
    """The first problem of values that came from elsewhere, in our words: NAME: expected ..., found ...

    names: what our fields are called there.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    expected = _expectation(first["type"], first.get("ctx", {}), first["msg"])
    return f"{(names or {}).get(key, key)}: expected {expected}, found {_show(first['input'])}"

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


class _Problem(typing.NamedTuple):
    key: str
    place: str
    message: str
    hint: str | None = None

    def where(self) -> str | None:
        return None if self.place == GIVEN.get() else self.place

    def sentence(self) -> str:
        return f"{self.message} {GIVEN.get()}" if self.place == GIVEN.get() else self.message


def _explain(
    error: ValidationError, cls: type[Config], document: YamlDocument, overrides: dict[str, Any], hint: str | None
) -> ConfigError:
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
            tags = _tags(cls, parts, discriminator)
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
    for owner in _classes_at(cls, section.split(".") if section else []):
        if name in owner.renamed:
            new = f"{section}.{owner.renamed[name]}".lstrip(".")
            return _Problem(key, place, f"{key} is now called {new}")
    keys = setting_keys(cls)
    if key in keys:  # of another kind than the one chosen here
        section = key.rpartition(".")[0]
        chosen = _value_at(document.values, section.split("."))
        kind = chosen.get("kind") if isinstance(chosen, dict) else None
        return _Problem(key, place, f"unknown setting {key} for kind {kind}")
    if hint := cls.called_elsewhere(name, keys):
        return _Problem(key, place, f"unknown setting {key}", hint)
    near = nearest_key(key, keys)
    return _Problem(key, place, f"unknown setting {key}", f"did you mean {near}?" if near else None)


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
