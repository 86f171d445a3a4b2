"""Strict configuration: every setting is declared; a mistake is named with file, line and nearest key.

`Config` is the base of all settings classes: frozen, no unknown keys, no silent conversion between text,
numbers and booleans. `load_config` reads YAML and command-line overrides and turns pydantic's findings into
one ConfigError. Nothing here imports torch, so a mistake is reported within a second.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from shoestring.core.config_errors import explain
from shoestring.core.config_keys import classes_at
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.units import Bytes, Seconds
from shoestring.core.yaml_document import YamlDocument, apply_overrides, read_document

C = TypeVar("C", bound="Config")
_LARGEST = 2**63 - 1
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
        raise explain(error, cls, document, overrides or {}, hint) from None


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
        for owner in classes_at(cls, section.split(".") if section else []):
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


def dump_values(values: dict[str, Any]) -> str:
    """Plain values, nested, as YAML that `read_document` reads back: short sections on a line, no defaults added."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=None, allow_unicode=True, sort_keys=False, width=10**6)


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
