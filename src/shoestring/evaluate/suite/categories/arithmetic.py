"""Sums by digits and operation, written out in a given form, and problems in words."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence

from shoestring.data.synthetic.arithmetic import SIGNS, evaluate, problem
from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Check, Draw, Question, Reply, ask

_PLAIN = ("What is {a} {s} {b}?", "{a} {s} {b} = ?", "Calculate {a} {s} {b}.", "How much is {a} {s} {b}?")
_NAMES = ("Mara", "Tom", "Yuki", "Omar", "Lucia", "Piet", "Nora", "Sami", "Vera", "Carl")
_THINGS = ("tickets", "stones", "buttons", "oranges", "postcards", "candles", "ribbons", "plates", "bolts", "seeds")


def _sums(operation: str, low: int, high: int) -> Draw:
    """Operands of low … high − 1."""

    def draw(rng: random.Random) -> Question:
        a, b = rng.randrange(low, high), rng.randrange(low, high)
        if operation == "subtract" and a < b:
            a, b = b, a
        result, sign = evaluate(a, operation, b), SIGNS[operation]
        text = rng.choice(_PLAIN).format(a=a, b=b, s=sign)
        return ask(
            problem(a, operation, b), text, f"{a} {sign} {b} = {result}", checks.number(result), result=str(result)
        )

    return draw


def _annotated(rng: random.Random) -> Question:
    """The form that GSM8K uses, 7+8=<<7+8=15>>15, the result being right too."""
    question, wanted = _in_form(rng, rng.choice(("add", "subtract")), 0, 100)
    return question(lambda reply: wanted in reply.text.replace(" ", ""))


def _form(operations: Sequence[str], low: int, high: int) -> Draw:
    """The same form, whatever number is between the marks: it stands behind them again."""

    def draw(rng: random.Random) -> Question:
        question, wanted = _in_form(rng, rng.choice(operations), low, high)
        sum_ = wanted.partition("=")[0]

        def check(reply: Reply) -> bool:
            _, _, rest = reply.text.replace(" ", "").partition(f"{sum_}=<<{sum_}=")
            inside, closed, after = rest.partition(">>")
            return bool(closed) and re.fullmatch(r"-?\d+", inside) is not None and after.startswith(inside)

        return question(check)

    return draw


def _in_form(rng: random.Random, operation: str, low: int, high: int) -> tuple[Callable[[Check], Question], str]:
    """A question that wants its check yet, and the right answer."""
    a, b = rng.randrange(low, high), rng.randrange(low, high)
    if operation == "subtract" and a < b:
        a, b = b, a
    sign, result = SIGNS[operation], evaluate(a, operation, b)
    wanted = f"{a}{sign}{b}=<<{a}{sign}{b}={result}>>{result}"
    text = (
        f"Work out {a} {sign} {b}. Write the calculation between << and >>, as in this example for 2 + 3:"
        " 2+3=<<2+3=5>>5"
    )
    return functools.partial(ask, problem(a, operation, b), text, wanted), wanted


def _story(steps: int) -> Draw:
    def draw(rng: random.Random) -> Question:
        name, friend = rng.sample(_NAMES, 2)
        things, have = rng.choice(_THINGS), rng.randrange(5, 60)
        told, problems = [f"{name} has {have} {things}."], []
        for step in range(steps):
            operation = rng.choice(("add", "subtract"))
            amount = rng.randrange(1, 40) if operation == "add" else rng.randrange(1, max(have, 2))
            told.append({
                "add": (f"{friend} brings {amount} more.", f"Later {name} buys another {amount}."),
                "subtract": (f"{name} gives {amount} of them to {friend}.", f"Later {name} sells {amount}."),
            }[operation][step % 2])  # fmt: skip
            problems.append(problem(have, operation, amount))
            have = evaluate(have, operation, amount)
        text = " ".join([*told, f"How many {things} does {name} have now?"])
        answer = f"{name} has {have} {things} now."
        return Question(
            "; ".join(problems), ({"role": "user", "content": text},), answer, checks.number(have), result=str(have)
        )

    return draw


def _shared(rng: random.Random) -> Question:
    """A product, or an equal share."""
    groups, each = rng.randrange(2, 16), rng.randrange(2, 16)
    things, name = rng.choice(_THINGS), rng.choice(_NAMES)
    if rng.random() < 0.5:
        text = f"{name} has {groups} boxes with {each} {things} in each. How many {things} are there in all?"
        answer, result = f"There are {groups * each} {things}.", groups * each
    else:
        told = f"{name} puts {groups * each} {things} into {groups} boxes, the same number in each."
        text = f"{told} How many are in one box?"
        answer, result = f"In one box are {each}.", each
    return ask(problem(groups, "multiply", each), text, answer, checks.number(result), result=str(result))


CATEGORIES = (
    Category("one-digit addition", "arithmetic", "sums of numbers below 20", _sums("add", 0, 20), 0.1),
    Category("two-digit addition", "arithmetic", "sums of numbers from 10 to 99", _sums("add", 10, 100)),
    Category("three-digit addition", "arithmetic", "sums of numbers from 100 to 999", _sums("add", 100, 1000)),
    Category("one-digit subtraction", "arithmetic", "differences of numbers below 20", _sums("subtract", 0, 20), 0.1),
    Category("two-digit subtraction", "arithmetic", "differences of numbers from 10 to 99", _sums("subtract", 10, 100)),
    Category("multiplication", "arithmetic", "products of numbers from 2 to 30", _sums("multiply", 2, 31)),
    Category("annotated results", "arithmetic", "7+8=<<7+8=15>>15, with the right result", _annotated),
    Category(
        "annotated sums", "arithmetic format", "the same form, whatever the result", _form(("add", "subtract"), 0, 100)
    ),
    Category("annotated products", "arithmetic format", "of numbers from 2 to 30", _form(("multiply",), 2, 31)),
    Category("problems of one step", "word problems", "a story with one sum or difference", _story(1), 0.07),
    Category("problems of two steps", "word problems", "a story with two of them", _story(2), 0.07),
    Category("boxes", "word problems", "a product or an equal share, in words", _shared, 0.1),
)
