"""Sums with the calculation written between << and >>, as GSM8K has it: 7+8=<<7+8=15>>15 (arXiv 2110.14168).

One sum, or several with a line each, which is twice as much to learn from as many tokens. Problems are those of plain
sums, whatever the form: 7 + 8 is held out here where it is held out there, and so is the sum of an example shown.

The suite asks in one wording, with the example of another sum behind it; some of these are near it, none is the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from shoestring.data.synthetic.arithmetic import SIGNS, evaluate, number, problem
from shoestring.data.synthetic.exercise import Draw, Exercise

_SHOWN = (
    "Reckon {sum} in the form {example}.",
    "{sum}, in the annotated form. An example: {example}",
    "Solve {sum} and put the calculation in double angle brackets, like this: {example}",
    "Like {example}, do the same for {sum}.",
    "Give the result of {sum} with a calculation mark. For another sum it looks like this: {example}",
    "How much is {sum}? Mark the calculation with << and >>, for instance {example}",
    "Mark the calculation of {sum} with << and >>. For {other} one would write {example}",
    "{sum}, please, with the calculation in << >>. The form, shown for {other}: {example}",
    "Take {other} as a model: {example}\nNow {sum}.",
)
_TOLD = (
    "What is {sum}? Show the calculation between << and >>, the result after it.",
    "{sum} = ? Annotate the calculation, as GSM8K does.",
    "Compute {sum} in the annotated form of GSM8K.",
    "Solve {sum}: the sum, an equals sign, the calculation in << >>, and the result again.",
)
_LISTED = (
    "Solve each on a line of its own, in the form {example}: {sums}",
    "Annotate the calculations, as in {example}: {sums}",
    "{sums}. One line each, like {example}",
    "Do these with calculation marks (<< and >>): {sums}",
    "Compute in the annotated form of GSM8K: {sums}",
)
_MOST = 7  # sums of a list


def annotated() -> Draw:
    """Draws one sum in half of the cases, else a list: of two-digit numbers mostly, some larger, some products."""
    return lambda rng: _one(rng) if rng.random() < 0.5 else _several(rng)


def written(a: int, operation: str, b: int) -> str:
    sum_, result = f"{a}{SIGNS[operation]}{b}", evaluate(a, operation, b)
    return f"{sum_}=<<{sum_}={result}>>{result}"


def drawn_sum(rng: random.Random, operations: Sequence[str] = ("add", "subtract")) -> tuple[int, str, int]:
    """Two numbers below a hundred; one in eight is larger, one in twelve is of a product. No difference is negative."""
    if rng.random() < 0.08:
        return rng.randint(2, 30), "multiply", rng.randint(2, 12)
    operation = rng.choice(operations)
    if rng.random() < 0.12:
        a, b = rng.randrange(100, 1000), number(rng, 3)
    else:
        a, b = rng.randrange(100), rng.randrange(100)
    return (max(a, b), operation, min(a, b)) if operation == "subtract" else (a, operation, b)


def _example(rng: random.Random) -> tuple[str, str, str]:
    """Of two small numbers, in the form, as it is asked for, and its problem."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    operation = "add" if a < b or rng.random() < 0.6 else "subtract"
    return written(a, operation, b), f"{a} {SIGNS[operation]} {b}", problem(a, operation, b)


def _asked(rng: random.Random, a: int, operation: str, b: int) -> str:
    space = "" if rng.random() < 0.3 else " "
    return f"{a}{space}{SIGNS[operation]}{space}{b}"


def _one(rng: random.Random) -> Exercise:
    a, operation, b = drawn_sum(rng)
    problems = [problem(a, operation, b)]
    if rng.random() < 0.7:
        example, other, own = _example(rng)
        problems.append(own)
        question = rng.choice(_SHOWN).format(sum=_asked(rng, a, operation, b), example=example, other=other)
    else:
        question = rng.choice(_TOLD).format(sum=_asked(rng, a, operation, b))
    answer = written(a, operation, b)
    return Exercise("annotated", question, answer, str(evaluate(a, operation, b)), tuple(dict.fromkeys(problems)))


def _several(rng: random.Random) -> Exercise:
    sums = [drawn_sum(rng) for _ in range(rng.randint(2, _MOST))]
    phrasing, problems = rng.choice(_LISTED), [problem(*sum_) for sum_ in sums]
    example, _, own = _example(rng)
    if "{example}" in phrasing:
        problems.append(own)
    question = phrasing.format(sums=", ".join(_asked(rng, *sum_) for sum_ in sums), example=example)
    answer = "\n".join(written(*sum_) for sum_ in sums)
    return Exercise("annotated", question, answer, str(evaluate(*sums[-1])), tuple(dict.fromkeys(problems)))
