"""Regular expressions from adapter_config.json, matched without backtracking.

peft chooses the rank and alpha of a module by patterns for the end of its name: `re.match(rf"(.*\\.)?({key})$", name)`.
Python's matcher tries one way after another, so `(([a-z]+)+)+!` would hang loading. Here all ways are followed at
once, as sets of positions (Thompson, CACM 11(6), 1968); what a position leads to is found once. Python's parser reads
the pattern, so both agree on what it means; back references, look-around and flags are refused.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

try:
    from re import _constants as sre
    from re import _parser as parser
except ImportError:  # Python 3.10
    import sre_constants as sre  # type: ignore[no-redef]
    import sre_parse as parser  # type: ignore[no-redef]

MOST_PATTERNS = 10_000
LONGEST_PATTERN = 1_000
MOST_STEPS = 1_000_000  # of all matching with one table, about a second

V = TypeVar("V")


class ModulePatterns(Generic[V]):
    """A table from pattern to value. Raises ValueError for a pattern that cannot be used."""

    def __init__(self, table: dict[str, V]):
        if len(table) > MOST_PATTERNS:
            raise ValueError(f"{len(table):,} patterns; at most {MOST_PATTERNS:,} are possible")
        self.table = table
        self._trees = [_parse(pattern) for pattern in table]
        self._steps_left = MOST_STEPS

    def of(self, module: str) -> V | None:
        """The value of the first pattern that matches an end of this name, from its beginning or after a dot."""
        for tree, value in zip(self._trees, self.table.values(), strict=True):
            match = _Match(module, self._steps_left)
            starts = {0, *(at + 1 for at, letter in enumerate(module) if letter == ".")}
            found = len(module) in match.after(tree, starts)
            self._steps_left = match.steps_left
            if found:
                return value
        return None


def _parse(pattern: str) -> list[Any]:
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern of {len(pattern):,} characters; at most {LONGEST_PATTERN:,} are possible")
    try:
        tree = parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern!r:.80} is broken: {error}") from error
    if tree.state.flags & ~re.UNICODE:
        raise ValueError(f"the pattern {pattern!r:.80} has flags, which are not supported")
    _check(tree, pattern)
    return list(tree)


def _check(items: Any, pattern: str) -> None:
    for op, argument in items:
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            inner = [argument[2]]
        elif op is sre.BRANCH:
            inner = argument[1]
        elif op is sre.SUBPATTERN and not (argument[1] or argument[2]):
            inner = [argument[3]]
        elif op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN) or (op is sre.AT and argument in _PLACES):
            inner = []
        else:
            raise ValueError(f"the pattern {pattern!r:.80} uses {str(op).lower()}, which is not supported")
        for each in inner:
            _check(each, pattern)


_PLACES = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING, sre.AT_END, sre.AT_END_STRING)


class _Match:
    """One text; `after` gives the positions to which a part of a pattern leads."""

    def __init__(self, text: str, steps_left: int):
        self.text, self.steps_left = text, steps_left
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def after(self, items: Any, starts: set[int]) -> set[int]:
        for item in items:
            starts = set().union(*(self._one(item, at) for at in starts))
            if not starts:
                break
        return starts

    def _one(self, item: tuple[Any, Any], at: int) -> Any:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise ValueError("its patterns take too long to match")
        op, argument = item
        if op is sre.AT:
            there = at == (0 if argument in _PLACES[:2] else len(self.text))
            return (at,) if there else ()
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return (at + 1,) if at < len(self.text) and _is(op, argument, self.text[at]) else ()
        key = (id(item), at)
        if key not in self._known:
            self._known[key] = frozenset(self._part(op, argument, at))
        return self._known[key]

    def _part(self, op: Any, argument: Any, at: int) -> set[int]:
        if op is sre.SUBPATTERN:
            return self.after(argument[3], {at})
        if op is sre.BRANCH:
            return set().union(*(self.after(way, {at}) for way in argument[1]))
        least, most, items = argument
        reached = {at}
        for _ in range(least):
            further = self.after(items, reached)
            if further == reached:  # it can match nothing: no more repetition leads further
                break
            reached = further
        newest, count = reached, least
        while newest and count < most:
            newest = self.after(items, newest) - reached
            reached, count = reached | newest, count + 1
        return reached


def _is(op: Any, argument: Any, letter: str) -> bool:
    if op is sre.ANY:
        return letter != "\n"
    if op in (sre.LITERAL, sre.NOT_LITERAL):
        return (ord(letter) == argument) == (op is sre.LITERAL)
    negated = argument[0][0] is sre.NEGATE
    return negated != any(_among(op, inner, letter) for op, inner in argument[negated:])


def _among(op: Any, argument: Any, letter: str) -> bool:
    if op is sre.RANGE:
        return argument[0] <= ord(letter) <= argument[1]
    if op is sre.CATEGORY:
        name = str(argument).removeprefix("CATEGORY_")
        has = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": _is_word}[name.removeprefix("NOT_")]
        return has(letter) != name.startswith("NOT_")
    return ord(letter) == argument


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"
