"""Python functions to write: of a given name and arguments, and such as do what is asked.

The problem of one of a given form is its name with its arguments, in order; of the others it is what they do. Names,
arguments and tasks are not those of the suite that evaluates.
"""

from __future__ import annotations

import random

from shoestring.data.synthetic.exercise import Draw, Exercise

_VERBS = ("apply", "choose", "clean", "combine", "convert", "create", "draw", "estimate", "filter", "format", "load",
"look_up",
          "measure", "pick", "prepare", "rank", "remove", "show", "sum", "trim", "update", "wrap")  # fmt: skip
_THINGS = ("balance", "box", "colour", "cost", "date", "distance", "entry", "field", "grade", "index", "key", "length",
"level",
           "line", "message", "name", "order", "page", "point", "rank", "row", "tax", "time", "token", "volume",
           "word")  # fmt: skip
# How an argument is used, by what it holds.
_NUMBERS = (
    "x",
    "y",
    "first",
    "second",
    "depth",
    "factor",
    "amount",
    "minutes",
    "speed",
    "count",
    "offset",
    "base",
    "top",
)
_TEXTS = ("name", "line", "word", "message", "prefix", "sentence", "label", "title")
_LISTS = ("values", "numbers", "rows", "entries", "words", "scores", "points")
_SPACED = ' + " " + '  # between texts
_FORMS = (
    "Define a Python function called `{name}`. Parameters, in order: {listed}. It must return a value. Code only.",
    "I need `{name}` in Python, taking {joined} and returning something sensible.",
    "Code a function `{name}({plain})` that gives back a result.",
    "Please write `def {name}` with {number} parameter{s} ({listed}) and a return value. No explanation.",
    "In Python: a function named `{name}` that takes {joined} and returns a result.",
    "Function `{name}`, argument{s} {listed}, Python. Return something; only the code, please.",
)
# name, arguments, what it does, body. {k}: a number.
_TASKS = (
    ("triple", "x", "multiplies a number by three", "return 3 * x"),
    ("halve", "x", "divides a number by two", "return x / 2"),
    ("cube", "x", "raises a number to the third power", "return x ** 3"),
    ("negate", "x", "changes the sign of a number", "return -x"),
    ("distance", "x, y", "tells how far apart two numbers are", "return abs(x - y)"),
    ("difference", "x, y", "takes the second number from the first", "return x - y"),
    ("product", "x, y", "multiplies two numbers", "return x * y"),
    ("mean_of_two", "x, y", "tells the middle between two numbers", "return (x + y) / 2"),
    ("smallest", "values", "finds the lowest value of a list", "return min(values)"),
    ("total", "values", "adds up a list", "return sum(values)"),
    ("spread", "values", "tells the highest minus the lowest value of a list", "return max(values) - min(values)"),
    ("odds", "values", "keeps the odd numbers of a list", "return [x for x in values if x % 2 == 1]"),
    ("positives", "values", "keeps the numbers of a list that are above zero", "return [x for x in values if x > 0]"),
    ("squares", "values", "squares each number of a list", "return [x * x for x in values]"),
    ("descending", "values", "sorts a list from high to low", "return sorted(values, reverse=True)"),
    ("last", "values", "gives the last entry of a list", "return values[-1]"),
    ("without_first", "values", "gives a list without its first entry", "return values[1:]"),
    ("backwards", "values", "gives a list in the opposite order", "return values[::-1]"),
    ("last_word", "line", "gives the last word of a line", "return line.split()[-1]"),
    ("lower", "line", "puts a string into small letters", "return line.lower()"),
    ("title", "line", "puts a capital at the beginning of each word", "return line.title()"),
    ("trim", "line", "strips white space from both ends of a string", "return line.strip()"),
    ("count_letter", "line, letter", "counts how often a letter stands in a string", "return line.count(letter)"),
    ("starts_with", "line, prefix", "tells whether a string begins with another", "return line.startswith(prefix)"),
    ("greet", "name", "says hello to a name", 'return "Hello, " + name + "!"'),
    ("join_words", "words", "joins words with spaces between them", 'return " ".join(words)'),
    ("shortest", "words", "finds the shortest word of a list", "return min(words, key=len)"),
    ("lengths", "words", "tells the length of each word of a list", "return [len(word) for word in words]"),
    ("shout", "words", "puts each word of a list into capitals", "return [word.upper() for word in words]"),
    ("minutes", "hours", "turns hours into minutes", "return 60 * hours"),
    ("is_negative", "x", "tells whether a number is below zero", "return x < 0"),
    ("is_between", "x, low, high", "tells whether a number lies from low to high", "return low <= x <= high"),
    ("power_sum", "x", "adds up the squares of the whole numbers from 1 to x",
     "total = 0\n    for number in range(1, x + 1):\n        total += number ** 2\n    return total"),
    ("count_down", "x", "lists the whole numbers from x down to 1", "return list(range(x, 0, -1))"),
    ("digits", "x", "lists the digits of a whole number", "return [int(digit) for digit in str(x)]"),
    ("count_value", "values, wanted", "counts how often a value stands in a list",
     "found = 0\n    for value in values:\n        if value == wanted:\n            found += 1\n    return found"),
    ("divide_by", "x", "divides a number by {k}", "return x / {k}"),
    ("last_entries", "values", "gives the last {k} entries of a list", "return values[-{k}:]"),
    ("first_entries", "values", "gives the first {k} entries of a list", "return values[:{k}]"),
    ("every", "values", "gives each entry of a list whose place is divisible by {k}", "return values[::{k}]"),
    ("pad", "line", "fills a string with spaces up to {k} characters", "return line.ljust({k})"),
    ("dashes", "line", "puts {k} dashes before and behind a string", 'return "-" * {k} + line + "-" * {k}'),
    ("at_most", "x", "gives back a number, or {k} where it is larger", "return min(x, {k})"),
    ("at_least", "x", "gives back a number, or {k} where it is smaller", "return max(x, {k})"),
    ("raised", "values", "adds {k} to each number of a list", "return [x + {k} for x in values]"),
    ("has_length", "line", "tells whether a string has exactly {k} characters", "return len(line) == {k}"),
    ("equals", "x", "tells whether a number is {k}", "return x == {k}"),
    ("skip", "line", "leaves out the first {k} characters of a string", "return line[{k}:]"),
)  # fmt: skip
_ORDERS = (
    "Python, please: `{call}`, which {what}.", "Code `{call}`. The function {what}. No explanation.",
    "Can you write a function `{call}` that {what}?",
    "A Python function is wanted. Its head: `{call}`. What it does: it {what}.",
)  # fmt: skip


def functions() -> Draw:
    """Draws a function of a given form, or, in two of five, one that does what is asked."""
    return lambda rng: _task(rng) if rng.random() < 0.4 else _form(rng)


def _form(rng: random.Random) -> Exercise:
    name = f"{rng.choice(_VERBS)}_{rng.choice(_THINGS)}"
    kinds: list[tuple[str, ...]] = [rng.choice((_NUMBERS, _NUMBERS, _TEXTS, _LISTS)) for _ in range(rng.randint(1, 3))]
    arguments: list[str] = []
    for kind in kinds:
        arguments.append(rng.choice([one for one in kind if one not in arguments]))
    quoted = [f"`{one}`" for one in arguments]
    joined = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    question = rng.choice(_FORMS).format(
        name=name, listed=", ".join(quoted), joined=joined, plain=", ".join(arguments), number=len(arguments),
        s="s" * (len(arguments) > 1),
    )  # fmt: skip
    answer = _code(name, ", ".join(arguments), _body(rng, kinds, arguments))
    return Exercise("functions", question, answer, answer, (f"function {name} {arguments}",))


def _body(rng: random.Random, kinds: list[tuple[str, ...]], arguments: list[str]) -> str:
    """All arguments are used, each as what its name says."""
    if all(kind is _NUMBERS for kind in kinds):
        return f"return {rng.choice((' + ', ' * ', ' - ')).join(arguments)}"
    if all(kind is _LISTS for kind in kinds):
        return f"return {' + '.join(arguments)}"
    if all(kind is _TEXTS for kind in kinds):
        return f"return {rng.choice((' + ', _SPACED)).join(arguments)}"
    if len(kinds) == 2 and kinds[0] is _LISTS and kinds[1] is _NUMBERS:
        return f"return [entry * {arguments[1]} for entry in {arguments[0]}]"
    if len(kinds) == 2 and kinds[0] is _TEXTS and kinds[1] is _NUMBERS:
        return f"return {arguments[0]} * {arguments[1]}"
    return f"return {{{', '.join(f'{one!r}: {one}' for one in arguments)}}}"


def _task(rng: random.Random) -> Exercise:
    k = str(rng.randint(2, 12))
    name, arguments, what, body = (text.replace("{k}", k) for text in rng.choice(_TASKS))
    question = rng.choice(_ORDERS).format(call=f"{name}({arguments})", what=what)
    answer = _code(name, arguments, body)
    return Exercise("functions", question, answer, answer, (f"program {name} {what}",))


def _code(name: str, arguments: str, body: str) -> str:
    return f"```python\ndef {name}({arguments}):\n    {body}\n```"
