"""Sequences to continue: equal steps, equal factors, sums of the two before, letters of the alphabet, repeating words.

Sequences that run through each other are the same problem, forwards or backwards: 3, 7, 11, 15 would give away what
follows 7, 11, 15, or what comes before.

An answer tells what lies between the first two items, and takes that step from the last one, in sums that a small model
can do: a product in the parts of its digits, letters by their places in the alphabet, which are asked for too. A
sequence whose answer would tell a sum that is held out is not drawn. Most exercises have several sequences: fewer
tokens around each.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from shoestring.data.synthetic.arithmetic import SIGNS, evaluate, problem
from shoestring.data.synthetic.exercise import RESERVED, Draw, Exercise, is_held_out
from shoestring.data.synthetic.vocabulary import NOUNS

_ASK = (
    "What comes next: {shown}?",
    "Continue the sequence: {shown}",
    "Which item follows? {shown}, ...",
    "Find the next one: {shown}",
)
_ASK_ALL = ("What comes next in each?", "Continue each sequence:", "The next item of each:", "Go on with these:")
_ASK_PLACES = ("Give each letter its number: {}", "Which places have these in the alphabet: {}?")
_ASK_LETTERS = ("Give each number its letter: {}", "Which letters of the alphabet are at these places: {}?")
_SHARES = (0.55, 0.2, 0.25)  # of lists, of which none is held out, of sequences alone, of places
_LEAST, _MOST = 3, 5  # sequences of a list
_WORDS = (
    "red", "blue", "green", "yellow", "black", "white", "sun", "moon", "star", "cat", "dog", "bird", "A", "B", "C",
)  # fmt: skip


class _Sequence(NamedTuple):
    """told: what leads to the item that follows. problems: canonical ones, as in the suite that evaluates."""

    items: list[str]
    told: str
    following: str
    problems: list[str]

    @property
    def shown(self) -> str:
        return ", ".join(self.items)

    @property
    def answer(self) -> str:
        return f"{self.told}. The next one is {self.following}."


def patterns() -> Draw:
    """Draws one sequence or several; the answer tells how one item leads to the next. In some cases the places of
    letters in the alphabet instead."""
    return lambda rng: rng.choices((_list, _one, _places), _SHARES)[0](rng)


def _one(rng: random.Random) -> Exercise:
    found = rng.choice(_KINDS)(rng)
    return _exercise(rng.choice(_ASK).format(shown=found.shown), [found])


def _list(rng: random.Random) -> Exercise:
    """A line for each. None is held out by itself: else hardly a list could be learned from."""
    found: list[_Sequence] = []
    count = rng.randint(_LEAST, _MOST)
    while len(found) < count:
        one = rng.choice(_KINDS)(rng)
        if not any(is_held_out(problem, RESERVED) for problem in one.problems):
            found.append(one)
    return _exercise("\n".join([rng.choice(_ASK_ALL), *(one.shown for one in found)]), found)


def _exercise(question: str, found: list[_Sequence]) -> Exercise:
    problems = dict.fromkeys(problem for one in found for problem in one.problems)
    answer = "\n".join(one.answer for one in found)
    return Exercise("patterns", question, answer, found[-1].following, tuple(problems))


def _reckoned(*sums: tuple[int, str, int]) -> str | None:
    """Sums (a, operation, b) with results, such as "9 - 5 = 4, 9 + 4 = 13"; None where one is never to be told."""
    if any(is_held_out(problem(*sum_), RESERVED) for sum_ in sums):
        return None
    return ", ".join(f"{a} {SIGNS[operation]} {b} = {evaluate(a, operation, b)}" for a, operation, b in sums)


def _step_further(items: Sequence[int], name: str = "") -> str | None:
    """What lies between the first two, and the last one with that once more. name: of the last one, with its number."""
    step = items[1] - items[0]
    between = _reckoned((max(items[:2]), "subtract", min(items[:2])))
    last = _reckoned((items[-1], "add" if step > 0 else "subtract", abs(step)))
    return None if between is None or last is None else f"{between}. The last is {name or items[-1]}: {last}"


def _steps(rng: random.Random) -> _Sequence:
    step = rng.choice([n for n in range(-12, 13) if n])
    count = rng.randint(4, 5)
    first = rng.randint(0, 60) + max(0, -step * count)
    items = [first + step * n for n in range(count)]
    told = _step_further(items)
    if told is None:
        return _steps(rng)
    own = f"steps {abs(step)} {first % abs(step)}"
    return _Sequence([str(n) for n in items], told, str(first + step * count), [own])


def _factors(rng: random.Random) -> _Sequence:
    first, factor, count = rng.randint(1, 30), rng.choice((2, 3, 4, 5, 10)), rng.randint(3, 4)
    items = [first * factor**n for n in range(count)]
    product = _in_parts(items[-1], factor)
    if product is None:
        return _factors(rng)
    root = first
    while root % factor == 0:
        root //= factor
    told = f"{items[1]} / {items[0]} = {factor}. The last is {items[-1]}: {product}"
    return _Sequence([str(n) for n in items], told, str(first * factor**count), [f"factors {root} {factor}"])


def _in_parts(number: int, factor: int) -> str | None:
    """A product, digit by digit: "70 * 2 = 140, 6 * 2 = 12, 140 + 12 = 152"."""
    digits = str(number)
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(digits)) if digit != "0"][::-1]
    if factor == 10 or len(parts) == 1:
        return _reckoned((number, "multiply", factor))
    sums, so_far = [(part, "multiply", factor) for part in parts], parts[0] * factor
    for part in parts[1:]:
        sums.append((so_far, "add", part * factor))
        so_far += part * factor
    return _reckoned(*sums)


def _sums(rng: random.Random) -> _Sequence:
    items = [rng.randint(0, 20), rng.randint(1, 20)]
    root = (items[0], items[1])
    while 0 < root[0] <= root[1]:  # back to where it could have begun
        root = (root[1] - root[0], root[0])
    own = f"sums {root[0]} {root[1]}"
    for _ in range(rng.randint(2, 3)):
        items.append(items[-1] + items[-2])
    told = _reckoned(*((a, "add", b) for a, b in pairwise(items[-3:])))
    if told is None:
        return _sums(rng)
    return _Sequence([str(n) for n in items], told, str(items[-1] + items[-2]), [own])


def _repeats(rng: random.Random) -> _Sequence:
    words = rng.sample(rng.choice((_WORDS, NOUNS)), rng.randint(2, 4))
    shown = [words[n % len(words)] for n in range(rng.randint(len(words) + 2, 2 * len(words) + 2))]
    following = words[len(shown) % len(words)]
    return _Sequence(shown, f"{shown[-1]}, {following}", following, [f"repeats {' '.join(sorted(words))}"])


def _letters(rng: random.Random) -> _Sequence:
    """A problem for each of the letters: what follows C, E, G is told by E, G, I too."""
    step, count = rng.choice((-4, -3, -2, -1, 1, 2, 3, 4)), rng.randint(3, 5)
    first = rng.choice([n for n in range(26) if 0 <= n + step * count < 26])
    places = [first + step * n + 1 for n in range(count + 1)]  # A is 1
    items = [string.ascii_uppercase[place - 1] for place in places]
    told = _step_further(places[:-1], f"{items[-2]} {places[-2]}")
    if told is None:
        return _letters(rng)
    told = f"{items[0]} {places[0]}, {items[1]} {places[1]}: {told}, {places[-1]} {items[-1]}"
    problems = [f"letters {abs(step)} {first % abs(step)} {item}" for item in items]
    return _Sequence(items[:-1], told, items[-1], problems)


def _places(rng: random.Random) -> Exercise:
    """Letters and their places in the alphabet, which their sequences go by."""
    places = rng.sample(range(1, 27), rng.randint(4, 8))
    items = [string.ascii_uppercase[place - 1] for place in places]
    letters_given = rng.random() < 0.5
    given, told = (items, places) if letters_given else (places, items)
    pairs = [f"{one} {other}" for one, other in zip(given, told, strict=True)]
    asked = rng.choice(_ASK_PLACES if letters_given else _ASK_LETTERS)
    question = asked.format(", ".join(pair.split()[0] for pair in pairs))
    return Exercise("patterns", question, ", ".join(pairs), pairs[-1].split()[1], (f"places {' '.join(items)}",))


_KINDS = (*[_steps] * 4, *[_factors] * 4, *[_letters] * 4, *[_repeats] * 3, _sums)
