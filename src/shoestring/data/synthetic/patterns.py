"""Sequences to continue: equal steps, equal factors, sums of the two before, repeating words.

Sequences that run through each other are the same problem, forwards or backwards: 3, 7, 11, 15 would give away what
follows 7, 11, 15, or what comes before.

An answer goes through the sequence, one item after another, and one step further: what a small model cannot see at once
it sees by then, and no rule has to be named. A sequence that would tell a sum that is held out is not drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from shoestring.data.synthetic.arithmetic import SIGNS, evaluate, problem
from shoestring.data.synthetic.exercise import RESERVED, Draw, Exercise, is_held_out

_ASK = (
    "What comes next: {shown}?",
    "Continue the sequence: {shown}",
    "Which item follows? {shown}, ...",
    "Find the next one: {shown}",
)
_WORDS = (
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "sun",
    "moon",
    "star",
    "cat",
    "dog",
    "bird",
    "A",
    "B",
    "C",
)


def patterns() -> Draw:
    """Draws a sequence of one of four kinds; the answer goes through it to the next item."""
    return lambda rng: rng.choice(_KINDS)(rng)


def _exercise(rng: random.Random, items: list[str], through: str, following: str, problem: str) -> Exercise:
    question = rng.choice(_ASK).format(shown=", ".join(items))
    return Exercise("patterns", question, f"{through}. The next one is {following}.", following, (problem,))


def _reckoned(operation: str, pairs: list[tuple[int, int]]) -> str | None:
    """All these (a, b) reckoned, such as "2 + 3 = 5, 5 + 3 = 8"; None where one of them is never to be told."""
    if any(is_held_out(problem(a, operation, b), RESERVED) for a, b in pairs):
        return None
    return ", ".join(f"{a} {SIGNS[operation]} {b} = {evaluate(a, operation, b)}" for a, b in pairs)


def _steps(rng: random.Random) -> Exercise:
    step = rng.choice([n for n in range(-12, 13) if n])
    count = rng.randint(4, 5)
    first = rng.randint(0, 60) + max(0, -step * count)
    items = [first + step * n for n in range(count)]
    through = _reckoned("add" if step > 0 else "subtract", [(item, abs(step)) for item in items])
    if through is None:
        return _steps(rng)
    own = f"steps {abs(step)} {first % abs(step)}"
    return _exercise(rng, [str(n) for n in items], through, str(first + step * count), own)


def _factors(rng: random.Random) -> Exercise:
    first, factor, count = rng.randint(1, 30), rng.choice((2, 3, 4, 5, 10)), rng.randint(3, 4)
    items = [first * factor**n for n in range(count)]
    through = _reckoned("multiply", [(item, factor) for item in items])
    if through is None:
        return _factors(rng)
    root = first
    while root % factor == 0:
        root //= factor
    return _exercise(rng, [str(n) for n in items], through, str(first * factor**count), f"factors {root} {factor}")


def _sums(rng: random.Random) -> Exercise:
    items = [rng.randint(0, 20), rng.randint(1, 20)]
    root = (items[0], items[1])
    while 0 < root[0] <= root[1]:  # back to where it could have begun
        root = (root[1] - root[0], root[0])
    own = f"sums {root[0]} {root[1]}"
    for _ in range(rng.randint(2, 3)):
        items.append(items[-1] + items[-2])
    through = _reckoned("add", list(pairwise(items)))
    if through is None:
        return _sums(rng)
    return _exercise(rng, [str(n) for n in items], through, str(items[-1] + items[-2]), own)


def _repeats(rng: random.Random) -> Exercise:
    words = rng.sample(_WORDS, rng.randint(2, 4))
    shown = [words[n % len(words)] for n in range(rng.randint(len(words) + 2, 2 * len(words) + 2))]
    following = words[len(shown) % len(words)]
    through = rounds([*shown, following], len(words))
    return _exercise(rng, shown, through, following, f"repeats {' '.join(sorted(words))}")


def rounds(items: Sequence[str], each: int) -> str:
    """What repeats, with a semicolon after each round."""
    return "; ".join(", ".join(items[at : at + each]) for at in range(0, len(items), each))


_KINDS = (_steps, _steps, _steps, _factors, _factors, _repeats, _repeats, _sums)
