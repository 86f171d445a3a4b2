"""A space: which settings of a recipe a search may change, in what ranges, and under which conditions.

    optimizer.learning_rate: {log: [1e-4, 1e-2]}
    optimizer.weight_decay: {uniform: [0, 0.2], points: 3}     # points: of a grid
    model.layers: {int: [2, 8], step: 2}
    train.batch_tokens: [512, 1024, 2048]
    schedule.kind: [cosine, wsd]
    schedule.decay: {uniform: [0.1, 0.9], when: {schedule.kind: wsd}}

`times: [0.2, 5]` and `factors: [0.5, 1, 2]` are around the recipe's own value. A setting may have several ranges, each
with its own `when`. Torch-free and optuna-free.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.core.yaml_document import YamlDocument, read_document
from shoestring.search.parameters import POINTS, Choices, Chooser, Condition, Parameter, Range, label, same

KINDS = ("log", "uniform", "int", "log_int", "choices", "times", "factors")
_OPTIONS = ("when", "step", "points")
_MISSING = object()


@dataclass(frozen=True)
class Space:
    """parameters: in an order in which each comes after those that its conditions ask about."""

    parameters: tuple[Parameter, ...]

    def settings(self, chooser: Chooser, base: Mapping[str, Any]) -> dict[str, Any]:
        """What is chosen: dotted setting -> value. base: the recipe's values, nested and complete.

        Raises ConfigError where two ranges of one setting hold at once.
        """
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if not self.holds(parameter, chosen, base):
                continue
            if parameter.key in chosen:
                raise ConfigError(
                    f"{parameter.key}: two of its ranges hold at once, with {described(chosen)}", parameter.place
                )
            chosen[parameter.key] = parameter.draw(chooser)
        return chosen

    def holds(self, parameter: Parameter, chosen: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
        """Whether its conditions do, with what has been chosen so far."""
        return all(any(same(value_of(one.key, chosen, base), value) for value in one.values) for one in parameter.when)

    def active(self, settings: Mapping[str, Any], base: Mapping[str, Any]) -> list[Parameter]:
        """Those that were drawn for these settings."""
        return [one for one in self.parameters if one.key in settings and self.holds(one, settings, base)]

    def grid(self, base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every point of the grid, as dotted settings."""

        def walk(number: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if number == len(self.parameters):
                yield dict(chosen)
                return
            parameter = self.parameters[number]
            if not self.holds(parameter, chosen, base):
                yield from walk(number + 1, chosen)
                return
            for value in parameter.grid():
                yield from walk(number + 1, {**chosen, parameter.key: value})

        return walk(0, {})


def value_of(key: str, chosen: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
    """Of a dotted setting, also inside a section that was chosen as a whole."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        section = ".".join(parts[:end])
        if section in chosen:
            return within(chosen[section], parts[end:])
    return within(base, parts)


def within(values: Any, parts: list[str]) -> Any:
    for part in parts:
        if isinstance(values, Mapping):
            values = values.get(part, _MISSING)
        elif isinstance(values, (list, tuple)) and part in map(str, range(len(values))):
            values = values[int(part)]
        else:
            return _MISSING
    return values


def described(settings: Mapping[str, Any]) -> str:
    """Such as: optimizer.kind muon, train.batch_tokens 512."""
    return ", ".join(f"{key} {label(value)}" for key, value in settings.items()) or "nothing changed"


def space_folder() -> Path:
    """Where the spaces that have names lie."""
    return Path(__file__).parent / "spaces"


def space_names() -> list[str]:
    return sorted(file.stem for file in space_folder().glob("*.yaml"))


def find_space(name_or_path: str | Path) -> Path:
    """Raises ConfigError with the nearest name."""
    named = space_folder() / f"{name_or_path}.yaml"
    if str(name_or_path) in space_names():
        return named
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = space_names()
    close = difflib.get_close_matches(str(name_or_path), names, 1)
    lines = [f"did you mean {close[0]}?"] if close else []
    lines.append(f"spaces with names: {', '.join(names)}; or give the path of a YAML file")
    raise ConfigError(f"there is no space {str(name_or_path)!r}", hint="\n".join(lines))


def read_space(source: str | Path | Mapping[str, Any], base: Mapping[str, Any]) -> Space:
    """From a name, a file, or in Python the same as a dictionary. base: the recipe's values, nested and complete.

    Of a space with a name, what cannot hold in this recipe is left out; in others that is a mistake. Raises
    ConfigError.
    """
    if isinstance(source, Mapping):
        document, named = YamlDocument(dict(source), name="the space"), False
    else:
        file = find_space(source)
        document, named = read_document(file), file.parent == space_folder()
    parameters: list[Parameter] = []
    for key, value in document.values.items():
        parameters += _of_setting(key, value, document, base, named)
    if not parameters:
        raise ConfigError("the space is empty: no setting of it can change", document.name)
    ordered = _in_order(parameters)
    if named:
        ordered = [one for one in ordered if not never_holds(one, parameters, base)]
        if not ordered:
            raise ConfigError(f"nothing of this space is for a recipe like this one: {document.name}")
    for parameter in ordered:
        if (why := never_holds(parameter, parameters, base)) is not None:
            raise ConfigError(f"{parameter.key} can never be chosen: {why}", parameter.place)
    return Space(tuple(ordered))


def _of_setting(key: str, value: Any, document: YamlDocument, base: Mapping[str, Any], named: bool) -> list[Parameter]:
    place = document.place(key)
    if isinstance(value, list) and value and all(_is_range(item) for item in value):
        alternatives = [_parameter(key, item, place, base) for item in value]
        for one in alternatives:
            if not one.when:
                raise ConfigError(f"{key} has several ranges, and one of them has no `when`", place)
        return alternatives
    if named and isinstance(value, dict) and {"times", "factors"} & value.keys():
        own = within(base, key.split("."))
        if isinstance(own, bool) or not isinstance(own, (int, float)) or not own > 0:
            return []
    return [_parameter(key, value, place, base)]


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= {*KINDS, *_OPTIONS} and len(set(KINDS) & value.keys()) == 1


def _parameter(key: str, value: Any, place: str, base: Mapping[str, Any]) -> Parameter:
    if isinstance(value, (list, tuple)):
        value = {"choices": list(value)}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{key}: expected a range or choices, found {label(value)}",
            place,
            hint="such as {log: [1e-4, 1e-2]} or [a, b]",
        )
    kinds = [kind for kind in KINDS if kind in value]
    unknown = [option for option in value if option not in (*KINDS, *_OPTIONS)]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), [*KINDS, *_OPTIONS], 1)
        raise ConfigError(
            f"{key}: unknown word {unknown[0]}", place,
            hint=f"did you mean {near[0]}?" if near else f"there are {', '.join((*KINDS, *_OPTIONS))}",
        )  # fmt: skip
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        raise ConfigError(f"{key}: give exactly one of {', '.join(KINDS)}, found {found}", place)
    kind, given = kinds[0], value[kinds[0]]
    when = _conditions(key, value.get("when"), place)
    suffix = "".join(f" ({one})" for one in when)
    about: dict[str, Any] = {"name": key + suffix if when else key, "key": key, "place": place, "when": when}
    if kind in ("choices", "factors"):
        for option in ("step", "points"):
            if option in value:
                raise ConfigError(f"{key}: {option} is for ranges, not for {kind}", place)
        return Choices(**about, values=_values(key, kind, given, place, base))
    return _range(key, kind, given, value, about, base)


def _conditions(key: str, when: Any, place: str) -> tuple[Condition, ...]:
    if when is None:
        return ()
    if not isinstance(when, dict) or not when:
        raise ConfigError(f"{key}: when: expected settings and their values, as {{optimizer.kind: muon}}", place)
    found = []
    for setting, values in when.items():
        if setting == key:
            raise ConfigError(f"{key}: when: it cannot depend on itself", place)
        options = tuple(values) if isinstance(values, list) else (values,)
        if not options:
            raise ConfigError(f"{key}: when: {setting} has no values", place)
        found.append(Condition(key=setting, values=options))
    return tuple(found)


def _values(key: str, kind: str, given: Any, place: str, base: Mapping[str, Any]) -> tuple[Any, ...]:
    if not isinstance(given, list) or len(given) < 2:
        raise ConfigError(f"{key}: {kind}: expected at least two values in a list, found {label(given)}", place)
    if kind == "factors":
        own = _own(key, kind, place, base)
        for factor in given:
            if not _is_number(factor) or factor <= 0:
                raise ConfigError(f"{key}: factors: expected numbers above 0, found {label(factor)}", place)
        given = [max(round(own * factor), 1) if isinstance(own, int) else own * factor for factor in given]
    for number, value in enumerate(given):
        if any(same(value, other) for other in given[:number]):
            raise ConfigError(f"{key}: {kind}: {label(value)} stands there twice", place)
    return tuple(given)


def _range(
    key: str, kind: str, given: Any, value: dict[str, Any], about: dict[str, Any], base: Mapping[str, Any]
) -> Range:
    place = about["place"]
    if not isinstance(given, list) or len(given) != 2 or not all(map(_is_number, given)):
        raise ConfigError(f"{key}: {kind}: expected two numbers, [lowest, highest], found {label(given)}", place)
    low, high = given
    log, whole = kind in ("log", "log_int", "times"), kind in ("int", "log_int")
    if kind == "times":
        own = _own(key, kind, place, base)
        if low <= 0:
            raise ConfigError(f"{key}: times: expected numbers above 0, found {label(given)}", place)
        whole = isinstance(own, int)
        low, high = own * low, own * high
        if whole:
            low, high = max(math.ceil(low), 1), math.floor(high)
    if not low < high:
        raise ConfigError(f"{key}: {kind}: the range from {label(low)} to {label(high)} is empty", place)
    if log and low <= 0:
        raise ConfigError(f"{key}: {kind}: a logarithm needs numbers above 0, found {label(given)}", place)
    if whole and (low != round(low) or high != round(high)):
        raise ConfigError(f"{key}: {kind}: expected whole numbers, found {label(given)}", place)
    step, points = value.get("step"), value.get("points", POINTS)
    if step is not None:
        if log:
            raise ConfigError(f"{key}: step does not go with {kind}", place, hint="points: says how many a grid has")
        if not _is_number(step) or not 0 < step <= high - low or (whole and step != round(step)):
            raise ConfigError(f"{key}: step: expected a number that fits into the range, found {label(step)}", place)
    if isinstance(points, bool) or not isinstance(points, int) or not 1 <= points <= 1000:
        raise ConfigError(f"{key}: points: expected a whole number from 1 to 1,000, found {label(points)}", place)
    if "points" not in value and step is not None:
        points = int((high - low) / step + 1e-9) + 1
    return Range(**about, low=low, high=high, log=log, whole=whole, step=step, points=points)


def _own(key: str, kind: str, place: str, base: Mapping[str, Any]) -> Any:
    own = within(base, key.split("."))
    if not _is_number(own) or not own > 0:
        found = "none" if own is _MISSING else label(own)
        raise ConfigError(
            f"{key}: {kind} is around the recipe's own value, which is {found}, not a number above 0", place
        )
    return own


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _gives(parameter: Parameter, key: str) -> bool:
    return key == parameter.key or key.startswith(parameter.key + ".")


def _in_order(parameters: list[Parameter]) -> list[Parameter]:
    """Each after those that it depends on, and what stands inside a section after the section; else as written."""
    ordered: list[Parameter] = []
    left = list(parameters)
    while left:
        for parameter in left:
            others = [other for other in left if other.key != parameter.key]
            asked = any(_gives(other, one.key) for other in others for one in parameter.when)
            inside = any(_gives(other, parameter.key) for other in others)
            if not asked and not inside:
                ordered.append(parameter)
                left.remove(parameter)
                break
        else:
            names = " and ".join(dict.fromkeys(one.key for one in left))
            raise ConfigError(f"the conditions of {names} go in a circle", left[0].place)
    return ordered


def never_holds(parameter: Parameter, parameters: list[Parameter], base: Mapping[str, Any]) -> str | None:
    """Why its conditions can never hold; None where they may."""
    for one in parameter.when:
        givers = [other for other in parameters if _gives(other, one.key)]
        possible = [value_of(one.key, {}, base)] if all(other.when for other in givers) else []
        exact = True
        for other in givers:
            if isinstance(other, Choices):
                inner = one.key.split(".")[len(other.key.split(".")) :]
                possible += [within(value, inner) for value in other.values]
            else:
                exact = exact and not any(other.contains(value) for value in one.values)
        if exact and not any(same(value, wanted) for value in possible for wanted in one.values):
            searched = "what the space gives it" if givers else "what the recipe has"
            return f"its condition ({one}) is against {searched}"
    return None
