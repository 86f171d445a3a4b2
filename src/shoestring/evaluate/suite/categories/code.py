"""Python: what a program prints, a function of a given form, functions that pass tests."""

from __future__ import annotations

import random

from shoestring.data.synthetic.arithmetic import problem
from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Check, Question, Reply, ask
from shoestring.evaluate.suite.sandbox import passes

_WORDS = "anchor bottle copper dollar engine finger guitar hammer jungle ladder magnet oyster".split()
_NAMES = "x y n total value count".split()
_VERBS = "compute find make get check build read join split scale merge count".split()
_THINGS = "area price label score path ratio total angle speed weight title margin".split()
_ARGUMENTS = "a b items text width height rate start end limit value size".split()
_NUMBER = r"-?\b\d+\b"


def _prints(program: str, result: str, name: str, check: Check) -> Question:
    return ask(name, f"What does this Python code print?\n```python\n{program}\n```", result, check)


def _sums(rng: random.Random) -> Question:
    a, b, name = rng.randrange(10, 100), rng.randrange(2, 100), rng.choice(_NAMES)
    operation, sign = rng.choice((("add", "+"), ("subtract", "-")))
    result = a + b if operation == "add" else a - b
    program = rng.choice((f"{name} = {a}\n{name} {sign}= {b}\nprint({name})", f"print({a} {sign} {b})"))
    return _prints(program, str(result), problem(a, operation, b), checks.continues(str(result), _NUMBER))


def _texts(rng: random.Random) -> Question:
    word = rng.choice(_WORDS)[: rng.randint(3, 6)]
    at = rng.randrange(1, len(word))
    program, result = rng.choice((
        (f'print("{word}".upper())', word.upper()), (f'print("{word}"[::-1])', word[::-1]),
        (f'print("{word}"[{at}])', word[at]), (f'print("{word}"[:{at}])', word[:at]),
        (f'print("{word}" + "{word[:2]}")', word + word[:2]), (f'print("-".join("{word}"))', "-".join(word)),
    ))  # fmt: skip
    return _prints(program, result, f"text {word}", checks.says(result))


def _lists(rng: random.Random) -> Question:
    items = [rng.randint(0, 30) for _ in range(rng.randint(3, 5))]
    results = {"max": max(items), "min": min(items), "len": len(items), "sum": sum(items), "sorted": sorted(items)}
    name = rng.choice(list(results))
    result = str(results[name])
    check = checks.says(result) if name == "sorted" else checks.continues(result, _NUMBER)
    return _prints(f"print({name}({items}))", result, f"list {sorted(items)}", check)


def _structure(rng: random.Random) -> Question:
    name = f"{rng.choice(_VERBS)}_{rng.choice(_THINGS)}"
    arguments = rng.sample(_ARGUMENTS, rng.randint(1, 3))
    shown = " and ".join(f"`{argument}`" for argument in arguments)
    text = (
        f"Write a Python function `{name}` with the argument{'s' * (len(arguments) > 1)} {shown}, in this order, that"
        " returns something. Give only the code."
    )
    answer = f"```python\ndef {name}({', '.join(arguments)}):\n    return {arguments[0]}\n```"
    return ask(f"function {name} {arguments}", text, answer, checks.defines(name, arguments), max_tokens=128)


# name, arguments, what it is to do ({k}: a number), a right body, arguments of calls that are tried
_TASKS = (
    ("add", "a, b", "returns the sum of two numbers", "return a + b", ("2, 3", "-1, 1")),
    ("is_even", "n", "returns True if a whole number is even and False if not", "return n % 2 == 0", ("4", "7")),
    ("largest", "items", "returns the largest number of a list", "return max(items)", ("[3, 9, 2]", "[-5, -2]")),
    ("reverse", "text", "returns a string turned round", "return text[::-1]", ("'abc'", "''")),
    ("count_vowels", "text", "returns how many of the letters a, e, i, o, u a lower-case string has",
     "return sum(c in 'aeiou' for c in text)", ("'banana'", "'xyz'")),
    ("square", "n", "returns the square of a number", "return n * n", ("5", "-3")),
    ("average", "items", "returns the mean of a list of numbers", "return sum(items) / len(items)", ("[2, 4]", "[5]")),
    ("first_word", "text", "returns the first word of a sentence", "return text.split()[0]",
     ("'red green blue'", "'one'")),
    ("is_palindrome", "text", "returns whether a string reads the same backwards", "return text == text[::-1]",
     ("'level'", "'abc'")),
    ("factorial", "n", "returns the product of the whole numbers from 1 to n, 1 for 0",
     "result = 1\n    for k in range(2, n + 1):\n        result *= k\n    return result", ("5", "0")),
    ("sum_of_digits", "n", "returns the sum of the digits of a positive whole number", "return sum(map(int, str(n)))",
     ("123", "40")),
    ("without_duplicates", "items", "returns a list with each value once, in the order of first appearance",
     "return list(dict.fromkeys(items))", ("[1, 2, 1]", "[]")),
    ("to_upper", "text", "returns a string in capital letters", "return text.upper()", ("'abc'", "'aB'")),
    ("count_words", "text", "returns how many words a sentence has", "return len(text.split())", ("'a b c'", "''")),
    ("is_prime", "n", "returns whether a whole number above 1 is prime", "return all(n % k for k in range(2, n))",
     ("7", "9")),
    ("longest_word", "words", "returns the longest string of a list", "return max(words, key=len)",
     ("['a', 'abc', 'ab']", "['x']")),
    ("fibonacci", "n", "returns the n-th Fibonacci number, the first two being 0 (n = 0) and 1 (n = 1)",
     "a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a", ("6", "0")),
    ("celsius", "f", "turns degrees Fahrenheit into Celsius", "return (f - 32) * 5 / 9", ("212", "32")),
    ("evens", "items", "returns the even numbers of a list", "return [n for n in items if n % 2 == 0]",
     ("[1, 2, 4]", "[3]")),
    ("clip", "n, low, high", "returns n, but low if it is below low and high if it is above high",
     "return max(low, min(n, high))", ("5, 0, 3", "-1, 0, 3", "2, 0, 3")),
    ("common", "a, b", "returns a sorted list of the values that are in both of two lists",
     "return sorted(set(a) & set(b))",
     ("[1, 2, 3], [3, 1]", "[1], [2]")),
    ("initials", "name", "returns the first letters of the words of a name, as in 'AL' for 'Ada Lovelace'",
     "return ''.join(word[0] for word in name.split())", ("'Ada Lovelace'", "'Bo'")),
    ("more", "n", "returns a number plus {k}", "return n + {k}", ("5", "-20")),
    ("less", "n", "returns a number minus {k}", "return n - {k}", ("5", "0")),
    ("times", "n", "returns {k} times a number", "return {k} * n", ("3", "-2")),
    ("is_multiple", "n", "returns True if a whole number can be divided by {k} and False if not", "return n % {k} == 0",
     ("{k}", "{k} * 7", "{k} * 7 + 1")),
    ("remainder", "n", "returns what is left when a whole number is divided by {k}", "return n % {k}", ("100", "{k}")),
    ("above", "items", "returns how many numbers of a list are greater than {k}", "return sum(n > {k} for n in items)",
     ("[1, {k}, 40]", "[]")),
    ("below", "items", "returns a list of the numbers of a list that are less than {k}",
     "return [n for n in items if n < {k}]",
     ("[1, {k}, 40]", "[50]")),
    ("multiples", "items", "returns a list with every number of a list multiplied by {k}",
     "return [{k} * n for n in items]",
     ("[1, 2]", "[]")),
    ("beginning", "text", "returns the first {k} characters of a string", "return text[:{k}]",
     ("'a long sentence'", "'ab'")),
    ("ending", "text", "returns the last {k} characters of a string", "return text[-{k}:]",
     ("'a long sentence'", "'a longer sentence'")),
    ("repeated", "text", "returns a string repeated {k} times", "return text * {k}", ("'ab'", "''")),
    ("is_longer", "text", "returns whether a string has more than {k} characters", "return len(text) > {k}",
     ("'a' * {k}", "'a' * {k} + 'b'")),
)  # fmt: skip
_ORDERS = ("Write a Python function `{call}` that {what}. Give only the code.", "Define `{call}` in Python: it {what}.",
           "I need a Python function `{call}` which {what}. Just the code, please.")  # fmt: skip


def _tested(rng: random.Random) -> Question:
    name, arguments, what, body, calls = rng.choice(_TASKS)
    k = str(rng.randint(2, 12))
    what, body, *tried = (text.replace("{k}", k) for text in (what, body, *calls))
    text = rng.choice(_ORDERS).format(call=f"{name}({arguments})", what=what)
    right = f"def right({arguments}):\n    {body}\n"
    tests = right + "\n".join(f"assert {name}({given}) == right({given})" for given in tried)

    def check(reply: Reply) -> bool:
        return passes(checks.fenced(reply.text), tests)

    return ask(
        f"program {name} {what}", text, f"```python\ndef {name}({arguments}):\n    {body}\n```", check, max_tokens=128
    )


CATEGORIES = (
    Category("printed sums", "reading code", "what a line of arithmetic prints", _sums),
    Category("printed texts", "reading code", "slices, capitals, joins", _texts),
    Category("printed lists", "reading code", "max, min, len, sum, sorted", _lists),
    Category(
        "functions of a given form",
        "code structure",
        "Python that parses, with this name and these arguments",
        _structure,
    ),
    Category("functions that pass tests", "code that works", "run in a sandbox", _tested, needs_code=True, share=0.5),
)
