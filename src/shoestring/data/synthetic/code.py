"""Small Python programs: what they print, and programs that print what is asked for.

The problem is what is computed from which values, not the names of variables or the order of operands that may be
exchanged.
"""

from __future__ import annotations

import random

from shoestring.data.synthetic.arithmetic import evaluate, number, problem
from shoestring.data.synthetic.exercise import Draw, Exercise

_WORDS = ("planet", "silver", "garden", "window", "bridge", "forest", "candle", "yellow", "market", "python", "rocket")
_VARIABLES = ("x", "y", "n", "total", "value", "count")
_ASK = ("What does this Python code print?", "What is the output of this Python code?", "Run this in your head:")


def code() -> Draw:
    """Draws a program to read or one to write."""
    kinds = (_expression, _variables, _loop, _list, _text, _write)
    return lambda rng: rng.choice(kinds)(rng)


def _reading(rng: random.Random, program: str, result: str, problem: str) -> Exercise:
    question = f"{rng.choice(_ASK)}\n```python\n{program}\n```"
    return Exercise("code", question, f"It prints {result}.", result, (problem,))


def _expression(rng: random.Random) -> Exercise:
    a, b = number(rng, 2), number(rng, 2)
    operation = rng.choice(("add", "subtract", "multiply"))
    if operation == "multiply":
        b %= 10
    sign = {"add": "+", "subtract": "-", "multiply": "*"}[operation]
    return _reading(rng, f"print({a} {sign} {b})", str(evaluate(a, operation, b)), problem(a, operation, b))


def _variables(rng: random.Random) -> Exercise:
    a, b = number(rng, 2), number(rng, 2)
    name = rng.choice(_VARIABLES)
    operation, sign = rng.choice((("add", "+="), ("subtract", "-=")))
    program = f"{name} = {a}\n{name} {sign} {b}\nprint({name})"
    return _reading(rng, program, str(evaluate(a, operation, b)), problem(a, operation, b))


def _loop(rng: random.Random) -> Exercise:
    step, times, name = rng.randint(1, 9), rng.randint(2, 6), rng.choice(_VARIABLES)
    start = rng.randint(0, 20)
    program = f"{name} = {start}\nfor _ in range({times}):\n    {name} += {step}\nprint({name})"
    return _reading(rng, program, str(start + step * times), f"loop {start} {min(step, times)} {max(step, times)}")


def _list(rng: random.Random) -> Exercise:
    items = [rng.randint(0, 30) for _ in range(rng.randint(3, 5))]
    function = rng.choice((sum, max, min, len, sorted))
    return _reading(rng, f"print({function.__name__}({items}))", str(function(items)), f"list {sorted(items)}")


def _text(rng: random.Random) -> Exercise:
    word = rng.choice(_WORDS)[: rng.randint(3, 6)]
    at = rng.randrange(len(word))
    program, result = rng.choice(
        (
            (f'print("{word}".upper())', word.upper()),
            (f'print("{word}"[::-1])', word[::-1]),
            (f'print("{word}"[{at}])', word[at]),
            (f'print("{word}"[:{at + 1}])', word[: at + 1]),
            (f'print(len("{word}"))', str(len(word))),
            (f'print("{word}" * {at + 1})', word * (at + 1)),
        )
    )
    return _reading(rng, program, result, f"text {word}")


def _write(rng: random.Random) -> Exercise:
    a, b = number(rng, 2), number(rng, 2)
    word, sign, operation = rng.choice((("sum", "+", "add"), ("product", "*", "multiply")))
    question = rng.choice(
        ("Write Python code that prints the {w} of {a} and {b}.", "Print the {w} of {a} and {b} in Python.")
    ).format(w=word, a=a, b=b)
    program = f"print({a} {sign} {b})"
    return Exercise("code", question, f"```python\n{program}\n```", program, (problem(a, operation, b),))
