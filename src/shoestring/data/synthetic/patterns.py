"""Sequences to continue: equal steps, equal factors, sums of the two before, repeating words.

Sequences that run through each other are the same problem, forwards or backwards: 3, 7, 11, 15 would give away what
follows 7, 11, 15, or what comes before.

An answer shows what the rule is seen by, and then reckons: a small model cannot name a rule before it has. Where that
would tell a sum that is held out, it names the rule alone.
"""

from __future__ import annotations

import random

from shoestring.data.synthetic.arithmetic import problem
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
    """Draws a sequence of one of four kinds; the answer names the rule and the next item."""
    kinds = (_steps, _factors, _sums, _repeats)
    return lambda rng: rng.choice(kinds)(rng)


def _exercise(rng: random.Random, items: list[str], rule: str, following: str, problem: str) -> Exercise:
    question = rng.choice(_ASK).format(shown=", ".join(items))
    return Exercise("patterns", question, f"{rule} The next one is {following}.", following, (problem,))


def _reserved(*sums: tuple[str, int, int]) -> bool:
    """Whether one of these, (operation, a, b), is never to be told."""
    return any(is_held_out(problem(a, operation, b), RESERVED) for operation, a, b in sums)


def _steps(rng: random.Random) -> Exercise:
    step = rng.choice([n for n in range(-12, 13) if n])
    count = rng.randint(4, 5)
    first = rng.randint(0, 60) + max(0, -step * count)
    items = [first + step * n for n in range(count)]
    sign, size = ("+", step) if step > 0 else ("-", -step)
    rule = f"Each number is {size} {'more' if step > 0 else 'less'} than the one before."
    following = first + step * count
    low, high = sorted(items[:2])
    last = "add" if step > 0 else "subtract"
    if not _reserved(("subtract", high, low), (last, items[-1], size)):
        rule = f"{high} - {low} = {size}. {rule} {items[-1]} {sign} {size} = {following}."
    own = f"steps {abs(step)} {first % abs(step)}"
    return _exercise(rng, [str(n) for n in items], rule, str(following), own)


def _factors(rng: random.Random) -> Exercise:
    first, factor, count = rng.randint(1, 30), rng.choice((2, 3, 4, 5, 10)), rng.randint(3, 4)
    items = [first * factor**n for n in range(count)]
    rule = f"Each number is {factor} times the one before."
    if not _reserved(("multiply", items[0], factor), ("multiply", items[-1], factor)):
        rule = f"{items[0]} * {factor} = {items[1]}. {rule} {items[-1]} * {factor} = {items[-1] * factor}."
    root = first
    while root % factor == 0:
        root //= factor
    return _exercise(rng, [str(n) for n in items], rule, str(first * factor**count), f"factors {root} {factor}")


def _sums(rng: random.Random) -> Exercise:
    items = [rng.randint(0, 20), rng.randint(1, 20)]
    root = (items[0], items[1])
    while 0 < root[0] <= root[1]:  # back to where it could have begun
        root = (root[1] - root[0], root[0])
    own = f"sums {root[0]} {root[1]}"
    for _ in range(rng.randint(2, 3)):
        items.append(items[-1] + items[-2])
    rule = "Each number is the sum of the two before it."
    if not _reserved(("add", items[0], items[1]), ("add", items[-2], items[-1])):
        rule = f"{items[0]} + {items[1]} = {items[2]}. {rule} {items[-2]} + {items[-1]} = {items[-1] + items[-2]}."
    return _exercise(rng, [str(n) for n in items], rule, str(items[-1] + items[-2]), own)


def _repeats(rng: random.Random) -> Exercise:
    words = rng.sample(_WORDS, rng.randint(2, 4))
    shown = [words[n % len(words)] for n in range(rng.randint(len(words) + 2, 2 * len(words) + 2))]
    following = words[len(shown) % len(words)]
    rule = f"The pattern {', '.join(words)} repeats."
    return _exercise(rng, shown, rule, following, f"repeats {' '.join(sorted(words))}")
