"""Sequences to continue, and things to compare and to sort."""

from __future__ import annotations

import random
import string
from decimal import Decimal

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Question, ask

_NEXT = ("What comes next: {}?", "Continue the sequence with one more item: {}", "Which item follows? {}, ...")
WORDS = tuple(
    """
    amber anchor basket beacon blanket bottle bucket button candle canyon carpet castle cellar cloud cotton cradle
    curtain desert dragon drawer ember engine fabric falcon feather forest fountain garlic glacier hammer harbor
    harvest helmet insect island ivory jacket journal kernel kettle ladder lantern leather lizard magnet marble
    meadow mirror mitten napkin needle nephew oatmeal orchid oyster parcel pebble pepper pillow planet pocket
    quarry rabbit ribbon rocket saddle sailor shadow silver spider stable sugar temple thunder ticket timber
    tunnel turnip umbrella uncle valley velvet violin walnut whistle willow window winter yogurt zebra
    """.split()
)


_NUMBER = r"\b\d{1,3}(?:,\d{3})+\b|\b\d+\b"


def _follow(rng: random.Random, items: list[str], following: str, problem: str, form: str) -> Question:
    """form: a pattern of an item. An answer may go through the whole sequence."""
    shown = ", ".join(items)
    return ask(problem, rng.choice(_NEXT).format(shown), following, checks.continues(following, form), max_tokens=144)


def _steps(rng: random.Random) -> Question:
    step, count = rng.choice([n for n in range(-12, 13) if n]), rng.randint(4, 5)
    first = rng.randint(0, 60) + max(0, -step * count)
    items = [str(first + step * n) for n in range(count)]
    return _follow(rng, items, str(first + step * count), f"steps {abs(step)} {first % abs(step)}", _NUMBER)


def _factors(rng: random.Random) -> Question:
    first, factor, count = rng.randint(1, 30), rng.choice((2, 3, 4, 5, 10)), rng.randint(3, 4)
    root = first
    while root % factor == 0:
        root //= factor
    items = [str(first * factor**n) for n in range(count)]
    return _follow(rng, items, str(first * factor**count), f"factors {root} {factor}", _NUMBER)


def _letters(rng: random.Random) -> Question:
    step, count = rng.choice((-4, -3, -2, -1, 1, 2, 3, 4)), rng.randint(4, 5)
    places = [n for n in range(26) if 0 <= n + step * count < 26]
    first = rng.choice(places)
    items = [string.ascii_uppercase[first + step * n] for n in range(count + 1)]
    problem = f"letters {abs(step)} {first % abs(step)} {rng.choice(items)}"
    return _follow(rng, items[:-1], items[-1], problem, r"\b[A-Z]\b")


def _repeats(rng: random.Random) -> Question:
    unit = rng.sample(WORDS, rng.randint(2, 4))
    shown = [unit[n % len(unit)] for n in range(rng.randint(len(unit) + 2, 2 * len(unit) + 2))]
    problem = f"repeats {' '.join(sorted(unit))}"
    return _follow(rng, shown, unit[len(shown) % len(unit)], problem, rf"(?i:\b(?:{'|'.join(unit)})\b)")


def _numbers(rng: random.Random, count: int, decimals: bool) -> list[str]:
    found: dict[Decimal, str] = {}
    near, high = rng.randint(0, 20), rng.choice((20, 100, 1000))
    while len(found) < count:
        text = str(rng.randrange(high))
        if decimals:
            places = rng.randint(1, 2)
            text = f"{near}.{rng.randrange(1, 10**places):0{places}d}"
        found.setdefault(Decimal(text), text)
    return list(found.values())


def _compare(decimals: bool):
    def draw(rng: random.Random) -> Question:
        pair = _numbers(rng, 2, decimals)
        larger = rng.random() < 0.5
        result = (max if larger else min)(pair, key=Decimal)
        rest = pair[0] if result == pair[1] else pair[1]
        word = "larger" if larger else "smaller"
        text = rng.choice(("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?")).format(
            w=word, a=pair[0], b=pair[1]
        )
        problem = f"compare {' '.join(sorted(pair, key=Decimal))}"
        return ask(problem, text, result, checks.chooses(result, [rest]), options=tuple(pair))

    return draw


def _sort(decimals: bool):
    def draw(rng: random.Random) -> Question:
        items = _numbers(rng, rng.randint(3, 4), decimals)
        down = rng.random() < 0.5
        order = sorted(items, key=Decimal, reverse=down)
        if order == items:
            items.reverse()
        way = "largest to smallest" if down else "smallest to largest"
        result = ", ".join(order)
        text = f"Sort these numbers from {way}, with commas between them: {', '.join(items)}"
        return ask(f"compare {' '.join(sorted(items, key=Decimal))}", text, result, checks.says(result))

    return draw


def _alphabet(rng: random.Random) -> Question:
    items = rng.sample(WORDS, rng.randint(3, 5))
    result = ", ".join(sorted(items))
    if sorted(items) == items:
        items.reverse()
    text = f"Put these words into alphabetical order, with commas between them: {', '.join(items)}"
    return ask(f"alphabet {' '.join(sorted(items))}", text, result, checks.says(result))


CATEGORIES = (
    Category("equal steps", "patterns", "2, 5, 8, 11: what follows", _steps),
    Category("equal factors", "patterns", "3, 6, 12: what follows", _factors, 0.1),
    Category("letters", "patterns", "A, C, E, G: what follows", _letters, 0.07),
    Category("repeating words", "patterns", "sun, moon, sun, moon: what follows", _repeats, 0.36),
    Category("whole numbers compared", "comparisons", "the larger or smaller of two", _compare(False), 0.5),
    Category("decimals compared", "comparisons", "9.9 and 9.11", _compare(True), 0.5),
    Category("numbers sorted", "sorting", "three or four numbers in order", _sort(False)),
    Category("words sorted", "sorting", "three to five words by the alphabet", _alphabet),
)
