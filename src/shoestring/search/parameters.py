"""What one setting may be in a search: a range of numbers, or a list of choices. Optuna-free and torch-free.

A parameter draws its value from a `Chooser`, which is what an `optuna.trial.Trial` is. Every value has a place between
0 and 1 on the parameter's axis, for CMA-ES and the picture of parallel coordinates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

POINTS = 4  # of a range in a grid, where the space does not say


class Chooser(Protocol):
    """Chooses a value by name, as an `optuna.trial.Trial` does."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Holds where the setting `key` has one of these values."""

    key: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key} is {' or '.join(label(value) for value in self.values)}"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """name: its own in the study. key: the dotted setting that it gives. place: where it is written. when: all of which
    must hold for it to be drawn."""

    name: str
    key: str
    place: str = ""
    when: tuple[Condition, ...] = field(default=())

    def draw(self, chooser: Chooser) -> Any:
        raise NotImplementedError

    def grid(self) -> list[Any]:
        """Every value that a grid has of it."""
        raise NotImplementedError

    def contains(self, value: Any) -> bool:
        raise NotImplementedError

    def position(self, value: Any) -> float:
        """Of a value that it contains, from 0 to 1."""
        raise NotImplementedError

    def drawn(self, value: Any) -> Any:
        """How a study keeps a value."""
        return value


@dataclass(frozen=True, kw_only=True)
class Range(Parameter):
    """From `low` to `high`, both included. log: evenly in the logarithm. whole: whole numbers, `step` apart."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None
    points: int = POINTS

    def draw(self, chooser: Chooser) -> Any:
        if self.whole:
            return chooser.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return chooser.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def at(self, position: float) -> Any:
        """The value there, the nearest that the range has."""
        position = min(max(position, 0.0), 1.0)
        if self.log:
            value = math.exp(math.log(self.low) + position * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + position * (self.high - self.low)
        if self.step is not None or self.whole:
            step = self.step or 1
            value = self.low + step * round((value - self.low) / step)
            while value > self.high:
                value -= step
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def grid(self) -> list[Any]:
        if self.points == 1:
            return [self.at(0.5)]
        every = [self.at(number / (self.points - 1)) for number in range(self.points)]
        return list(dict.fromkeys(every))

    def contains(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        if self.whole and value != round(value):
            return False
        step = self.step if self.step is not None else (1 if self.whole and not self.log else None)
        if step is None:
            return True
        steps = (value - self.low) / step
        return abs(steps - round(steps)) < 1e-8

    def position(self, value: Any) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Choices(Parameter):
    """Any values, also lists and whole sections."""

    values: tuple[Any, ...]

    def draw(self, chooser: Chooser) -> Any:
        kept = [self.drawn(value) for value in self.values]
        return self.values[kept.index(chooser.suggest_categorical(self.name, kept))]

    def grid(self) -> list[Any]:
        return list(self.values)

    def contains(self, value: Any) -> bool:
        return any(same(value, own) for own in self.values)

    def position(self, value: Any) -> float:
        number = next(number for number, own in enumerate(self.values) if same(value, own))
        return number / max(len(self.values) - 1, 1)

    def drawn(self, value: Any) -> Any:
        """Lists and sections as text: a study keeps plain values alone."""
        return value if value is None or isinstance(value, (bool, int, float, str)) else label(value)


def label(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False)


def same(first: Any, second: Any) -> bool:
    """Whether two settings have the same value: true is not 1, but a list is what a tuple is."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
