"""The same content in a form that programs read: JSON, tables, CSV, lists, Markdown.

The answer is the form alone. Problems are called as in the suite that evaluates, by the set of words or values; those
themselves, and the wordings, are others.
"""

from __future__ import annotations

import json
import random

from shoestring.data.synthetic.exercise import Draw, Exercise
from shoestring.data.synthetic.vocabulary import NAMES, NOUNS, TOWNS

_FIELDS = ("city", "place", "home")
_MARKUP = (
    ("as a heading of level {level}", lambda text, level: f"{'#' * level} {text}"),
    ("in bold", lambda text, level: f"**{text}**"), ("in italics, with asterisks", lambda text, level: f"*{text}*"),
    ("as inline code", lambda text, level: f"`{text}`"), ("as a block quotation", lambda text, level: f"> {text}"),
    ("crossed out", lambda text, level: f"~~{text}~~"),
)  # fmt: skip


def structure() -> Draw:
    """Draws one of eight forms, each as often."""
    return lambda rng: rng.choice(_KINDS)(rng)


def _exercise(rng: random.Random, phrasings: tuple[str, ...], answer: str, problem: str, **values: object) -> Exercise:
    return Exercise("structure", rng.choice(phrasings).format(**values), answer, answer, (problem,))


def _items(rng: random.Random) -> tuple[list[str], str]:
    items = rng.sample(NOUNS, rng.randint(2, 6))
    return items, f"items {' '.join(sorted(items))}"


def _array(rng: random.Random) -> Exercise:
    items, problem = _items(rng)
    phrasings = (
        "Turn this into a JSON array: {items}",
        "{items}: as a JSON list of strings, please.",
        "JSON array of: {items}. No other text.",
    )
    return _exercise(rng, phrasings, json.dumps(items), problem, items=", ".join(items))


def _bullets(rng: random.Random) -> Exercise:
    items, problem = _items(rng)
    mark = rng.choice(("-", "-", "*", "+"))
    phrasings = (
        'Make a bullet list of {items}. Bullets are "{mark} ".', 'One on each line, after "{mark} ": {items}',
        '{items}. List them with "{mark} " at the beginning of every line.',
    )  # fmt: skip
    return _exercise(
        rng, phrasings, "\n".join(f"{mark} {item}" for item in items), problem, items=", ".join(items), mark=mark
    )


def _numbered(rng: random.Random) -> Exercise:
    items, problem = _items(rng)
    dot = rng.choice((".", ".", ")"))
    phrasings = (
        "Number these, a line each (1{dot} 2{dot} and so on): {items}",
        "A numbered list, please, in the manner of 1{dot}: {items}",
        "{items}. Count them as 1{dot}, 2{dot}, one on each line.",
    )  # fmt: skip
    answer = "\n".join(f"{n}{dot} {item}" for n, item in enumerate(items, 1))
    return _exercise(rng, phrasings, answer, problem, items=", ".join(items), dot=dot)


def _person(rng: random.Random) -> tuple[str, int, str, str]:
    """Name, age, town and a sentence that tells them."""
    name, age, town = rng.choice(NAMES), rng.randint(5, 95), rng.choice(TOWNS)
    told = rng.choice((
        "{n} comes from {t} and is {a}.", "Here is {n}, {a} years of age, of {t}.",
        "In {t} lives {n}, who is {a} years old.",
        "{n} ({a}) has a flat in {t}.",
    )).format(n=name, a=age, t=town)  # fmt: skip
    return name, age, town, told


def _object(rng: random.Random) -> Exercise:
    name, age, town, told = _person(rng)
    key = rng.choice(_FIELDS)
    phrasings = (
        "As a JSON object with name, age (a number) and {key}: {told}",
        "{told} Give it as JSON. Keys: name, age, {key}.",
        'Make JSON of this, with "name", "age" as a number, "{key}": {told}',
    )  # fmt: skip
    answer = json.dumps({"name": name, "age": age, key: town})
    return _exercise(rng, phrasings, answer, f"record {name} {age} {town}", told=told, key=key)


def _csv(rng: random.Random) -> Exercise:
    name, age, town, told = _person(rng)
    phrasings = (
        "As one line of CSV (name, age, city): {told}", "{told} Write name, age and city as comma-separated values.",
        "Make a CSV row of this, the columns being name,age,city: {told}",
    )  # fmt: skip
    return _exercise(rng, phrasings, f"{name},{age},{town}", f"record {name} {age} {town}", told=told)


def _nested(rng: random.Random) -> Exercise:
    stock = {item: rng.randint(1, 50) for item in rng.sample(NOUNS, rng.randint(2, 3))}
    town = rng.choice(TOWNS)
    outer, inner = rng.choice((("town", "goods"), ("place", "counts"), ("store", "items"), ("city", "stock")))
    told = ", ".join(f"{item} {number}" for item, number in stock.items())
    phrasings = (
        'Store in {town}; numbers: {told}. As JSON: "{outer}" is the town, "{inner}" an object with each number.',
        'JSON with "{outer}" ({town}) and "{inner}", an object of {told}.',
        'In {town} they count {told}. As JSON: key "{outer}" for the town, "{inner}" for an object of the numbers.',
    )  # fmt: skip
    problem = f"stock {town} {sorted(stock.items())}"
    return _exercise(
        rng, phrasings, json.dumps({outer: town, inner: stock}), problem, town=town, told=told, outer=outer, inner=inner
    )


def _table(rng: random.Random) -> Exercise:
    rows = [(name, str(rng.randint(5, 95))) for name in rng.sample(NAMES, rng.randint(2, 4))]
    columns = rng.choice((("Name", "Age"), ("Person", "Points"), ("Who", "Years")))
    told = rng.choice((", ".join(f"{a} {b}" for a, b in rows), "; ".join(f"{a} has {b}" for a, b in rows)))
    phrasings = (
        "As a Markdown table ({a} | {b}): {told}", "Make a table in Markdown, columns {a} and {b}, of: {told}",
        "{told}. Show it as a Markdown table headed {a} and {b}.",
    )  # fmt: skip
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return _exercise(rng, phrasings, "\n".join(lines), f"table {sorted(rows)}", a=columns[0], b=columns[1], told=told)


def _markup(rng: random.Random) -> Exercise:
    word, other = rng.sample(NOUNS, 2)
    told, made = rng.choice(_MARKUP)
    level = rng.randint(1, 4)
    phrasings = (
        'Markdown: "{text}" {told}.',
        "Put {text} into Markdown {told}.",
        'Show "{text}" {told} in Markdown, without comment.',
    )
    text = f"{word} {rng.choice(('and', 'or', 'with'))} {other}"
    return _exercise(
        rng, phrasings, made(text, level), f"markup {word} {other}", text=text, told=told.format(level=level)
    )


_KINDS = (_array, _bullets, _numbered, _object, _csv, _nested, _table, _markup)
