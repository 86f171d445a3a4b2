"""Many sums, differences and products at once, a line each: of all forms the one with most to learn in as many tokens.

A template writes forty tokens around a question, and a sum of its own line takes twenty with its answer. Problems are
those of plain sums. Differences are drawn twice as often as sums: they are learned last.
"""

from __future__ import annotations

import random

from shoestring.data.synthetic.annotated import drawn_sum
from shoestring.data.synthetic.arithmetic import SIGNS, evaluate, problem
from shoestring.data.synthetic.exercise import Draw, Exercise

_ASK = (
    "Calculate: {}", "Solve these: {}", "What are {}?", "{}", "Compute {}.", "One line for each, please: {}",
    "Work these out: {}", "Give the results of {}.",
)  # fmt: skip
_LEAST, _MOST = 3, 10
_ALONE = 0.15  # asked one by one: of longer lists hardly any is held out as a whole


def sums() -> Draw:
    """Draws three to ten, or one, of two-digit numbers mostly."""
    return _list


def _list(rng: random.Random) -> Exercise:
    count = 1 if rng.random() < _ALONE else rng.randint(_LEAST, _MOST)
    found = [drawn_sum(rng, ("add", "subtract", "subtract")) for _ in range(count)]
    asked = [f"{a} {SIGNS[operation]} {b}" for a, operation, b in found]
    lines = [f"{sum_} = {evaluate(*values)}" for sum_, values in zip(asked, found, strict=True)]
    problems = tuple(dict.fromkeys(problem(*values) for values in found))
    question = rng.choice(_ASK).format(", ".join(asked))
    return Exercise("sums", question, "\n".join(lines), str(evaluate(*found[-1])), problems)
