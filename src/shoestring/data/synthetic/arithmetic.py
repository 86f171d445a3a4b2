"""Sums, differences and products in words and signs, and short stories of several steps.

Plain questions are answered by the whole equation, "7 + 8 = 15": the operands stand next to the result, where
attention finds them easily, and the answer is short. Lists ask for several at once, a line each
in the answer: twice as much to learn from as many tokens. Stories are answered in the manner of GSM8K (Cobbe et al.
2021, arXiv 2110.14168): "7+8=<<7+8=15>>15", the result after "####".
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from shoestring.core.errors import ConfigError
from shoestring.data.synthetic.exercise import Draw, Exercise

SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}

_ANY = (
    "What is {a} {s} {b}?",
    "{a} {s} {b} = ?",
    "{a} {s} {b}",
    "Calculate {a} {s} {b}.",
    "Compute {a} {s} {b}.",
    "Solve: {a} {s} {b}",
    "Tell me what {a} {s} {b} is.",
    "What does {a} {s} {b} equal?",
)
_WORDED = {
    "add": (
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "How much is {a} plus {b}?",
    ),
    "subtract": (
        "What is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Take {b} away from {a}. What is left?",
        "How much is {a} minus {b}?",
    ),
    "multiply": (
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "What is the product of {a} and {b}?",
        "How much is {a} times {b}?",
    ),
}
_LISTED = ("Calculate: {}", "Solve these: {}", "What are {}?", "{}", "Compute {}.")
_LONGEST_LIST = 6
_WHOLE_NUMBER = re.compile(r"-?\d[\d,]*")
_NAMES = ("Ann", "Ben", "Clara", "David", "Ella", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kim", "Lena")
_THINGS = ("apples", "books", "stamps", "marbles", "pencils", "shells", "coins", "stickers", "cards", "beads")


def arithmetic(
    digits: int = 2,
    operations: Sequence[str] = ("add", "subtract"),
    stories: float = 0.1,
    negative: bool = False,
    lists: float = 0.0,
) -> Draw:
    """Draws exercises of operands with 1 to `digits` digits, each number of digits equally often.

    operations: one that stands there twice is drawn twice as often.

    stories: share of problems in words. negative: differences below zero too. lists: share of the other questions that
    ask for several, in signs; they are for training, as hardly one is held out as a whole. Raises ConfigError.
    """
    unknown = [operation for operation in operations if operation not in SIGNS]
    if unknown or not operations:
        raise ConfigError(f"unknown operation {', '.join(unknown) or '(none)'}", hint=f"known: {', '.join(SIGNS)}")
    if not 0 <= lists <= 1:
        raise ConfigError(f"lists {lists}", hint="a share up to 1")
    if not 1 <= digits <= 12 or not 0 <= stories <= 1:
        raise ConfigError(f"digits {digits}, stories {stories}", hint="digits from 1 to 12, stories a share up to 1")
    known = tuple(operations)

    def draw(rng: random.Random) -> Exercise:
        if rng.random() < stories:
            return _story(rng, digits, known)
        if lists and rng.random() < lists:
            return _list(rng, digits, known, negative)
        return _plain(rng, digits, rng.choice(known), negative)

    return draw


def evaluate(a: int, operation: str, b: int) -> int:
    return a + b if operation == "add" else a - b if operation == "subtract" else a * b


def is_right(text: str, result: str) -> bool:
    """Whether the last whole number in an answer is the result: "47 + 38 = 85", "The sum is 1,085."."""
    found = _WHOLE_NUMBER.findall(text)
    return bool(found) and found[-1].replace(",", "") == result


def problem(a: int, operation: str, b: int) -> str:
    """The same text for a and b in either order."""
    return f"{min(a, b)} {SIGNS[operation]} {max(a, b)}"


def number(rng: random.Random, digits: int) -> int:
    """With 1 to `digits` digits; 0 is one of the one-digit numbers."""
    size = rng.randint(1, digits)
    return rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size)


def _plain(rng: random.Random, digits: int, operation: str, negative: bool) -> Exercise:
    a, b = _operands(rng, digits, operation, negative)
    # Signs and words equally often, as there are twice as many phrasings with signs.
    phrasing = rng.choice(_ANY + _WORDED[operation] * 2)
    result = evaluate(a, operation, b)
    return Exercise(
        "arithmetic",
        phrasing.format(a=a, b=b, s=SIGNS[operation]),
        f"{a} {SIGNS[operation]} {b} = {result}",
        str(result),
        (problem(a, operation, b),),
    )


def _list(rng: random.Random, digits: int, operations: Sequence[str], negative: bool) -> Exercise:
    """Two to six problems; those of two one-digit numbers, of which there are few, are left to plain questions."""
    asked, problems, result = [], [], 0
    for _ in range(rng.randint(2, _LONGEST_LIST)):
        operation = rng.choice(operations)
        a, b = _operands(rng, digits, operation, negative)
        while max(a, b) < 10 and digits > 1:
            a, b = _operands(rng, digits, operation, negative)
        result = evaluate(a, operation, b)
        asked.append((f"{a} {SIGNS[operation]} {b}", result))
        problems.append(problem(a, operation, b))
    question = rng.choice(_LISTED).format(", ".join(sum_ for sum_, _ in asked))
    answer = "\n".join(f"{sum_} = {value}" for sum_, value in asked)
    return Exercise("list", question, answer, str(result), tuple(dict.fromkeys(problems)))


def _operands(rng: random.Random, digits: int, operation: str, negative: bool) -> tuple[int, int]:
    a, b = number(rng, digits), number(rng, digits)
    if operation == "subtract" and a < b and not negative:
        a, b = b, a
    return a, b


def _story(rng: random.Random, digits: int, operations: Sequence[str]) -> Exercise:
    """One to three steps, each of which changes how many things somebody has."""
    name, friend = rng.sample(_NAMES, 2)
    things = rng.choice(_THINGS)
    have = number(rng, digits)
    sentences, lines, problems = [f"{name} has {have} {things}."], [], []
    for step in range(rng.randint(1, 3)):
        operation = rng.choice(operations)
        if operation == "multiply" and have >= 10**digits:
            operation = "add"  # results stay within a few digits
        amount = rng.randint(2, 9) if operation == "multiply" else number(rng, digits)
        if operation == "subtract":
            amount = rng.randint(0, min(have, 10**digits - 1))
        told = {
            "add": (f"{friend} gives {name} {amount} more.", f"Then {name} finds {amount} more."),
            "subtract": (f"{name} gives {amount} to {friend}.", f"Then {name} loses {amount}."),
            "multiply": (f"Then {name} gets so many that there are {amount} times as many.",) * 2,
        }[operation]
        sentences.append(told[step % 2])
        result, sign = evaluate(have, operation, amount), SIGNS[operation]
        now = "Then" if step else "First"
        lines.append(f"{now} {name} has {have}{sign}{amount}=<<{have}{sign}{amount}={result}>>{result} {things}.")
        problems.append(problem(have, operation, amount))
        have = result
    question = " ".join([*sentences, f"How many {things} does {name} have now?"])
    answer = "\n".join([*lines, f"#### {have}"])
    return Exercise("story", question, answer, str(have), tuple(dict.fromkeys(problems)))
