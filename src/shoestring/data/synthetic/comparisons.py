"""Numbers to compare and to put in order: whole numbers, decimals such as 9.9 and 9.11, three to five at once.

The problem is the set of numbers, whatever their order and whatever is asked about them.
"""

from __future__ import annotations

import random
from decimal import Decimal

from shoestring.data.synthetic.exercise import Draw, Exercise


def comparisons() -> Draw:
    """Draws a question for the larger or smaller of two, for yes or no, or for an order."""
    kinds = (_which, _whether, _order)
    return lambda rng: rng.choice(kinds)(rng)


def _numbers(rng: random.Random, count: int) -> list[str]:
    """Different in value, written alike: all whole, or all with a point."""
    found: dict[Decimal, str] = {}
    whole = rng.random() < 0.6
    high = rng.choice((10, 100, 1000))
    near = rng.randint(0, 20)
    while len(found) < count:
        if whole:
            text = str(rng.randrange(high))
        else:
            places = rng.randint(1, 2)
            text = f"{near if rng.random() < 0.7 else rng.randint(0, 20)}.{rng.randrange(1, 10**places):0{places}d}"
        found.setdefault(Decimal(text), text)
    return list(found.values())


def _problem(numbers: list[str]) -> tuple[str]:
    return (f"compare {' '.join(sorted(numbers, key=Decimal))}",)


def _which(rng: random.Random) -> Exercise:
    pair = _numbers(rng, 2)
    larger = rng.random() < 0.5
    word, other = ("larger", "smaller") if larger else ("smaller", "larger")
    result = (max if larger else min)(pair, key=Decimal)
    question = rng.choice(
        ("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "{a} or {b}: which is {w}?")
    )
    rest = pair[0] if result == pair[1] else pair[1]
    answer = f"{result} is {word} than {rest}."
    return Exercise("comparisons", question.format(w=word, a=pair[0], b=pair[1]), answer, result, _problem(pair))


def _whether(rng: random.Random) -> Exercise:
    a, b = _numbers(rng, 2)
    asked = rng.choice(("greater", "less"))
    true = "greater" if Decimal(a) > Decimal(b) else "less"
    result = "Yes" if asked == true else "No"
    question = rng.choice(("Is {a} {w} than {b}?", "True or not: {a} is {w} than {b}?")).format(a=a, b=b, w=asked)
    return Exercise("comparisons", question, f"{result}, {a} is {true} than {b}.", result, _problem([a, b]))


def _order(rng: random.Random) -> Exercise:
    numbers = _numbers(rng, rng.randint(3, 5))
    descending = rng.random() < 0.5
    way = "largest to smallest" if descending else "smallest to largest"
    question = rng.choice(("Sort from {way}: {n}", "Put in order from {way}: {n}")).format(
        way=way, n=", ".join(numbers)
    )
    result = ", ".join(sorted(numbers, key=Decimal, reverse=descending))
    return Exercise("comparisons", question, result, result, _problem(numbers))
