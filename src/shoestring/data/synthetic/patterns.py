"""Sequences to continue: equal steps, equal factors, sums of the two before, repeating words.

Sequences that run through each other are the same problem, forwards or backwards: 3, 7, 11, 15 would give away what
follows 7, 11, 15, or what comes before.
"""

from __future__ import annotations

import random

from shoestring.data.synthetic.exercise import Draw, Exercise

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
    """Draws a sequence of one of four kinds; the answer names the rule and the next item."""
    kinds = (_steps, _factors, _sums, _repeats)
    return lambda rng: rng.choice(kinds)(rng)


def _exercise(rng: random.Random, items: list[str], rule: str, following: str, problem: str) -> Exercise:
    question = rng.choice(_ASK).format(shown=", ".join(items))
    return Exercise("patterns", question, f"{rule} The next one is {following}.", following, (problem,))


def _steps(rng: random.Random) -> Exercise:
    step = rng.choice([n for n in range(-12, 13) if n])
    count = rng.randint(4, 5)
    first = rng.randint(0, 60) + max(0, -step * count)
    items = [first + step * n for n in range(count)]
    rule = f"Each number is {abs(step)} {'more' if step > 0 else 'less'} than the one before."
    problem = f"steps {abs(step)} {first % abs(step)}"
    return _exercise(rng, [str(n) for n in items], rule, str(first + step * count), problem)


def _factors(rng: random.Random) -> Exercise:
    first, factor, count = rng.randint(1, 30), rng.choice((2, 3, 4, 5, 10)), rng.randint(3, 4)
    items = [first * factor**n for n in range(count)]
    rule = f"Each number is {factor} times the one before."
    root = first
    while root % factor == 0:
        root //= factor
    return _exercise(rng, [str(n) for n in items], rule, str(first * factor**count), f"factors {root} {factor}")


def _sums(rng: random.Random) -> Exercise:
    items = [rng.randint(0, 20), rng.randint(1, 20)]
    root = (items[0], items[1])
    while 0 < root[0] <= root[1]:  # back to where it could have begun
        root = (root[1] - root[0], root[0])
    problem = f"sums {root[0]} {root[1]}"
    for _ in range(rng.randint(2, 3)):
        items.append(items[-1] + items[-2])
    rule = "Each number is the sum of the two before it."
    return _exercise(rng, [str(n) for n in items], rule, str(items[-1] + items[-2]), problem)


def _repeats(rng: random.Random) -> Exercise:
    words = rng.sample(_WORDS, rng.randint(2, 4))
    shown = [words[n % len(words)] for n in range(rng.randint(len(words) + 2, 2 * len(words) + 2))]
    following = words[len(shown) % len(words)]
    rule = f"The pattern {', '.join(words)} repeats."
    return _exercise(rng, shown, rule, following, f"repeats {' '.join(sorted(words))}")
