"""An exercise, and the split of exercises into train and test.

The side is decided by a hash of the unordered problem, whatever its wording, seed or order: 7 + 8 and 8 + 7, asked
in ten ways, are all held out or all learned. An exercise of several steps belongs to a side only if all of its
steps do, so that a fact of the test set is never learned inside a longer story.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.core.files import atomic_folder

MOST = 10_000_000  # they are made in memory, a kilobyte or so each
RESERVED = 0.1  # of all problems: `shoestring evaluate` asks them, so they are never ones to train on
_TRIES = 1000  # draws without a new exercise, after which the space is taken to be used up


@dataclass(frozen=True)
class Exercise:
    """problems: canonical unordered problems that solving it takes. result: the bare answer, for scoring."""

    kind: str
    question: str
    answer: str
    result: str
    problems: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """The `messages` form, with what an evaluation needs beside it."""
        return conversation([self])


Draw = Callable[[random.Random], Exercise]


@dataclass(frozen=True)
class ExerciseSet:
    """repeated: train exercises that stand there more than once, because there are no more of them."""

    train: list[Exercise]
    test: list[Exercise]
    repeated: int = 0


def conversation(exercises: Sequence[Exercise]) -> dict[str, Any]:
    """Exercises asked and answered one after another, as one row of the `messages` form. answer: of the last."""
    messages = [
        {"role": role, "content": text}
        for exercise in exercises
        for role, text in (("user", exercise.question), ("assistant", exercise.answer))
    ]
    problems = dict.fromkeys(problem for exercise in exercises for problem in exercise.problems)
    kinds = dict.fromkeys(exercise.kind for exercise in exercises)
    return {
        "messages": messages, "kind": "; ".join(kinds), "problem": "; ".join(problems), "answer": exercises[-1].result
    }  # fmt: skip


def is_held_out(problem: str, share: float) -> bool:
    """Whether a problem belongs to the test set; the same on every machine, for every seed."""
    return int.from_bytes(hashlib.sha256(problem.encode()).digest()[:6], "big") / 2**48 < share


def collect(draw: Draw, n: int, seed: int, test: float) -> ExerciseSet:
    """n different exercises, `test` of them held out (a share in [0, 1)); the same for the same arguments.

    A kind that has fewer repeats those to train on. With less than a tenth held out, what is left of that tenth is on
    neither side. Raises ConfigError for numbers that cannot be.
    """
    if not 1 <= n <= MOST or not 0 <= test < 1:
        hint = f"1 <= n <= {MOST:,}, 0 <= test < 1"
        raise ConfigError(f"cannot make {n:,} exercises with a share of {test} held out", hint=hint)
    wanted = {True: round(n * test), False: n - round(n * test)}
    sides: dict[bool, list[Exercise]] = {}
    for held_out, count in wanted.items():
        found: dict[tuple[str, str], Exercise] = {}
        share = test if held_out else max(test, RESERVED)
        for exercise in _side(draw, random.Random(f"{seed} {held_out}"), share, held_out):
            if len(found) >= count:
                break
            found.setdefault((exercise.question, exercise.answer), exercise)
        sides[held_out] = list(found.values())
    train = sides[False]
    if not train:
        raise ConfigError("no exercise to train on is left", hint="a smaller share of test, or other settings")
    missing = wanted[False] - len(train)
    train += random.Random(f"{seed} again").choices(train, k=missing) if missing > 0 else []
    return ExerciseSet(train, sides[True], max(missing, 0))


def _side(draw: Draw, rng: random.Random, test: float, held_out: bool) -> Iterator[Exercise]:
    """Exercises of one side, until nothing new has come for a while."""
    seen: set[str] = set()
    idle = 0
    while idle < _TRIES:
        exercise = draw(rng)
        idle += 1
        if all(is_held_out(problem, test) == held_out for problem in exercise.problems):
            if exercise.question not in seen:
                seen.add(exercise.question)
                idle = 0
            yield exercise


def write(exercises: ExerciseSet, out: str | Path, turns: int = 1) -> Path:
    """A new folder with train.jsonl and test.jsonl.

    turns: exercises of a conversation to train on: fewer tokens around each. A test is always asked one by one. Raises
    ConfigError.
    """
    if turns < 1:
        raise ConfigError(f"a conversation of {turns} turns", hint="turns from 1 on")
    learned = [exercises.train[first : first + turns] for first in range(0, len(exercises.train), turns)]
    tested = [[exercise] for exercise in exercises.test]
    with atomic_folder(out) as folder:
        for name, part in (("train", learned), ("test", tested)):
            text = "".join(json.dumps(conversation(some), ensure_ascii=False) + "\n" for some in part)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    return Path(out)
