"""YAML read with the place of every setting, so that a later error can name file and line.

A `YamlDocument` holds nested plain values and a map from dotted key to "file:line". Scalars follow YAML 1.2's
core schema (so `1e-3` is a number and `no` is text), with underscores allowed in whole numbers. Duplicate
keys, anchors and tags are errors: each is a way for a recipe to mean something else than it shows. `extends:
NAME` at the top merges over NAME. Size, depth and numbers have limits, because libyaml recurses until the stack ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shoestring.core.errors import ConfigError
from shoestring.core.foreign import MOST_DEPTH, whole_number
from shoestring.core.given import GIVEN

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_DEFAULT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
MOST_CHARACTERS = 2**18  # of a file or a value: a recipe has a few thousand
_INTEGER = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_ROUND = re.compile(r"[0-9]+[eE]\+?[0-9]{1,2}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_CONSTANTS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_CONSTANTS |= {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}


@dataclass(frozen=True)
class YamlDocument:
    """Nested dicts, lists and scalars, and for each dotted key the place it was written at ("file:line")."""

    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    name: str = "settings"

    def place(self, key: str) -> str:
        """Where `key` stands; for a key that is absent, where its nearest section stands."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key.rpartition(".")[0]
        return self.name


def read_document(path: str | Path, find: Callable[[str], Path] | None = None) -> YamlDocument:
    """Read a YAML file whose top is a mapping. Raises ConfigError with file and line.

    find: turns the name in a top-level `extends: NAME` into a path; by default NAME.yaml in the same folder.
    """
    return _read(Path(path), find, ())


def parse_value(text: str, place: str | None = None) -> Any:
    """One value as the command line gives it: a YAML scalar, or a list or mapping in flow style.

    Text that is not YAML, such as `C: x` or `"def `, stands for itself if it does not begin like a list or
    mapping.
    """
    place = place or GIVEN.get()
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        return _scalar(text.strip(), place)
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value {text[:60]!r}: {_problem(error)}", where=place) from error
    return _values(node, "", place, {})


def apply_overrides(document: YamlDocument, overrides: dict[str, Any]) -> YamlDocument:
    """`document` with dotted keys set. Text is parsed as YAML;

    other values (from Python) are taken as they are.
    """
    values, places = _copy(document.values), dict(document.places)
    for key, raw in overrides.items():
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(f"{key!r} is not a dotted key {GIVEN.get()}")
        if len(parts) > MOST_DEPTH:
            most = f"at most {MOST_DEPTH} are possible {GIVEN.get()}"
            raise ConfigError(f"{key[:60]}... has {len(parts):,} parts; {most}")
        value = parse_value(raw) if isinstance(raw, str) else raw
        section: Any = values
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            if isinstance(section, list) and part in map(str, range(len(section))):
                index: Any = int(part)
            elif isinstance(section, dict):
                index = part
            else:
                parent = ".".join(parts[:depth])
                raise ConfigError(f"cannot set {key}: {parent} is not a section {GIVEN.get()}")
            if last:
                section[index] = value
            else:
                if isinstance(section, dict) and section.get(index) is None:
                    section[index] = {}
                section = section[index]
        for known in [known for known in places if known == key or known.startswith(key + ".")]:
            del places[known]
        places[key] = GIVEN.get()
    return YamlDocument(values, places, document.name)


def merge(base: YamlDocument, over: YamlDocument) -> YamlDocument:
    """`over` on top of `base`: sections merge, everything else replaces;

    so does a section whose `kind` differs.
    """
    places = dict(base.places)

    def merged(low: dict[str, Any], high: dict[str, Any], prefix: str) -> dict[str, Any]:
        result = dict(low)
        for key, value in high.items():
            old: Any = low.get(key)
            dotted = prefix + key
            both = isinstance(old, dict) and isinstance(value, dict)
            if both and value.get("kind") in (None, old.get("kind")):
                result[key] = merged(old, value, dotted + ".")
            else:
                result[key] = value
                for known in [known for known in places if known == dotted or known.startswith(dotted + ".")]:
                    del places[known]
        return result

    values = merged(base.values, over.values, "")
    return YamlDocument(values, places | over.places, over.name)


def _read(path: Path, find: Callable[[str], Path] | None, above: tuple[Path, ...]) -> YamlDocument:
    if path.resolve() in above:
        raise ConfigError("this recipe extends itself", where=str(path))
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=str(path)) from error
    except OSError as error:
        raise ConfigError(f"cannot read this file: {error.strerror}", where=str(path)) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8 text", where=f"{path}:{line}", hint="save the file as UTF-8") from error
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        line = _line(getattr(error, "problem_mark", None), 1)
        raise ConfigError(f"not valid YAML: {_problem(error)}", where=f"{path}:{line}") from error
    if node is None:
        return YamlDocument({}, {}, str(path))
    if not isinstance(node, yaml.MappingNode):
        place = f"{path}:{_line(node.start_mark)}"
        raise ConfigError("expected settings (`key: value` lines) at the top of this file", where=place)
    places: dict[str, str] = {}
    values = _values(node, "", str(path), places)
    document = YamlDocument(values, places, str(path))
    if "extends" not in values:
        return document
    name = values.pop("extends")
    place = places.pop("extends")
    if not isinstance(name, str):
        raise ConfigError("extends: expected the name or path of another recipe", where=place)
    sibling = path.with_name(f"{name}.yaml") if not name.endswith((".yaml", ".yml")) else path.parent / name
    base = find(name) if find is not None and not os.path.isfile(sibling) else sibling
    if not os.path.isfile(base):
        raise ConfigError(f"extends: there is no recipe {name!r} beside this file", where=place)
    return merge(_read(base, find, (*above, path.resolve())), document)


def _compose(text: str) -> yaml.Node | None:
    """The nodes of a document within limits. Raises yaml.YAMLError."""
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"longer than {MOST_CHARACTERS:,} characters")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):  # one after another, where composing goes as deep as they do
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            problem = f"nested more than {MOST_DEPTH} times"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    return yaml.compose(text, Loader=_Loader)


def _values(node: yaml.Node, key: str, file: str, places: dict[str, str]) -> Any:
    """The plain value of a node; fills `places` with the line of every key under it."""
    seen: set[int] = set()

    def value(node: yaml.Node, key: str) -> Any:
        place = f"{file}:{_line(node.start_mark)}" if file != GIVEN.get() else file
        if id(node) in seen:
            raise ConfigError("aliases (`*name`) are not supported in recipes", where=place)
        seen.add(id(node))
        if node.tag not in _DEFAULT_TAGS:
            raise ConfigError(f"tags such as {node.tag!r} are not supported in recipes", where=place)
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style else _scalar(node.value, place)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                inner = f"{key}.{index}".lstrip(".")
                places[inner] = place if file == GIVEN.get() else f"{file}:{_line(item.start_mark)}"
                items.append(value(item, inner))
            return items
        result: dict[str, Any] = {}
        for name_node, item in node.value:
            place = f"{file}:{_line(name_node.start_mark)}" if file != GIVEN.get() else file
            if not isinstance(name_node, yaml.ScalarNode):
                raise ConfigError("a key must be plain text", where=place)
            name = name_node.value
            dotted = f"{key}.{name}".lstrip(".")
            if name == "<<":
                raise ConfigError("merge keys (`<<`) are not supported; use `extends: NAME`", where=place)
            if name in result:
                first = places[dotted].rpartition(":")[2]
                raise ConfigError(f"{dotted} is set twice, first on line {first}", where=place)
            places[dotted] = place
            result[name] = value(item, dotted)
        return result

    return value(node, key)


def _scalar(text: str, place: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        if _INTEGER.fullmatch(text):
            return whole_number(text.replace("_", ""))
        if _ROUND.fullmatch(text):  # 1e9 tokens is a whole number to whoever writes it
            digits, _, exponent = text.lower().partition("e")
            return whole_number(digits) * 10 ** int(exponent)
    except ValueError as error:
        raise ConfigError(str(error), where=place) from None
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _line(mark: Any, default: int = 1) -> int:
    return mark.line + 1 if mark is not None else default


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
