"""The same content in a given form: JSON, tables, lists, headings."""

from __future__ import annotations

import json
import random

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Question, ask

_ITEMS = ("apricots", "bricks", "cups", "drums", "envelopes", "forks", "gloves", "hats", "irons", "jars", "keys", "lamps",
          "maps", "nails", "oars", "pots", "quills", "rakes", "socks", "towels", "vans", "wheels")  # fmt: skip
_PEOPLE = ("Aki", "Bruno", "Celia", "Dario", "Elif", "Farid", "Greta", "Hana", "Igor", "Jana")
_TOWNS = ("Bremen", "Ghent", "Lyon", "Malmo", "Porto", "Riga", "Siena", "Turku", "Uppsala", "Verona")


def _array(rng: random.Random) -> Question:
    items = rng.sample(_ITEMS, rng.randint(2, 5))
    text = f"Write these words as a JSON array of strings, and nothing else: {', '.join(items)}"
    return ask(f"items {' '.join(sorted(items))}", text, json.dumps(items), checks.as_json(items), max_tokens=80)


def _object(rng: random.Random) -> Question:
    name, age, town = rng.choice(_PEOPLE), rng.randint(5, 95), rng.choice(_TOWNS)
    record = {"name": name, "age": age, "town": town}
    told = rng.choice((f"{name} is {age} years old and lives in {town}.", f"{name}, aged {age}, comes from {town}."))
    text = f"Write this as a JSON object with the keys name, age and town, the age as a number: {told}"
    return ask(f"record {name} {age} {town}", text, json.dumps(record), checks.as_json(record), max_tokens=80)


def _nested(rng: random.Random) -> Question:
    stock = {item: rng.randint(1, 50) for item in rng.sample(_ITEMS, 2)}
    town = rng.choice(_TOWNS)
    told = " and ".join(f"{count} {item}" for item, count in stock.items())
    text = (
        f'The shop in {town} has {told}. Write this as JSON with the key "shop" for the town and the key "stock" for an'
        " object that has the number of each thing."
    )
    record = {"shop": town, "stock": stock}
    return ask(f"stock {town} {sorted(stock.items())}", text, json.dumps(record), checks.as_json(record), max_tokens=96)


def _bullets(rng: random.Random) -> Question:
    items = rng.sample(_ITEMS, rng.randint(2, 5))
    lines = [f"- {item}" for item in items]
    text = f'Write these as a list, each on a line of its own that begins with "- ": {", ".join(items)}'
    return ask(f"items {' '.join(sorted(items))}", text, "\n".join(lines), checks.as_lines(lines), max_tokens=80)


def _numbered(rng: random.Random) -> Question:
    items = rng.sample(_ITEMS, rng.randint(2, 5))
    lines = [f"{n}. {item}" for n, item in enumerate(items, 1)]
    text = f'Write these as a numbered list, one on each line, as in "1. first": {", ".join(items)}'
    return ask(f"items {' '.join(sorted(items))}", text, "\n".join(lines), checks.as_lines(lines), max_tokens=80)


def _table(rng: random.Random) -> Question:
    names = rng.sample(_PEOPLE, rng.randint(2, 3))
    rows = [[name, str(rng.randint(5, 95))] for name in names]
    told = ", ".join(f"{name} is {age}" for name, age in rows)
    text = f"Write this as a Markdown table with the columns Name and Age: {told}."
    lines = ["| Name | Age |", "|---|---|", *(f"| {name} | {age} |" for name, age in rows)]
    check = checks.as_table(["Name", "Age"], rows)
    return ask(f"table {sorted(map(tuple, rows))}", text, "\n".join(lines), check, max_tokens=96)


def _csv(rng: random.Random) -> Question:
    name, age, town = rng.choice(_PEOPLE), rng.randint(5, 95), rng.choice(_TOWNS)
    line = f"{name},{age},{town}"
    text = (
        f"Write this as one CSV line with the columns name, age, town: {name} lives in {town} and is {age} years old."
    )
    check = checks.as_lines([line])
    return ask(
        f"record {name} {age} {town}", text, line, lambda r: check(type(r)(r.text.replace(", ", ","), r.stopped))
    )


def _markup(rng: random.Random) -> Question:
    word, other = rng.sample(_ITEMS, 2)
    kind, result = rng.choice((
        ("a Markdown heading of the second level", f"## {word} and {other}"), ("bold Markdown text", f"**{word} and {other}**"),
        ("Markdown code between backticks", f"`{word} and {other}`"), ("a Markdown quotation", f"> {word} and {other}"),
        ("italic Markdown text between asterisks", f"*{word} and {other}*"),
    ))  # fmt: skip
    text = f"Write the words {word} and {other} as {kind}, and nothing else."
    return ask(f"markup {word} {other}", text, result, checks.exactly(result))


CATEGORIES = (
    Category("JSON arrays", "structure", "words as strings", _array),
    Category("JSON objects", "structure", "a record with a number", _object),
    Category("nested JSON", "structure", "an object within an object", _nested),
    Category("bullet lists", "structure", "- one on each line", _bullets),
    Category("numbered lists", "structure", "1. one on each line", _numbered),
    Category("tables", "structure", "Markdown of two columns", _table),
    Category("CSV", "structure", "a line of three values", _csv),
    Category("Markdown", "structure", "headings, bold, code, quotations", _markup),
)
