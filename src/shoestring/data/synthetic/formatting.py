"""The same content in another form: JSON, bullet and numbered lists, CSV, capitals, written dates.

The answer is the form alone, without a word around it, which is what small models find hardest. The problem is the
set of items, whatever their order and the form asked for.
"""

from __future__ import annotations

import datetime
import json
import random

from shoestring.data.synthetic.exercise import Draw, Exercise

_ITEMS = (
    *("apple", "bread", "cheese", "dates", "eggs", "figs", "grapes", "honey", "ink", "jam", "kettle", "lemon", "milk"),
    *("nuts", "olives", "paper", "quilt", "rice", "salt", "tea", "umbrella", "vase", "water", "yarn", "zip"),
)
_NAMES = ("Ann", "Ben", "Clara", "David", "Ella", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kim", "Lena")
_CITIES = ("Berlin", "Cairo", "Lima", "London", "Oslo", "Paris", "Quito", "Rome", "Tokyo", "Vienna")
MONTHS = tuple(datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13))
_FORMS = {
    "a JSON array": lambda items: json.dumps(items),
    "a bullet list": lambda items: "\n".join(f"- {item}" for item in items),
    "a numbered list": lambda items: "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)),
    "a comma-separated line": lambda items: ", ".join(items),
    "capital letters, one per line": lambda items: "\n".join(item.upper() for item in items),
}


def formatting() -> Draw:
    """Draws a list, a record or a date to be written in a given form."""
    kinds = (_list, _record, _date)
    return lambda rng: rng.choice(kinds)(rng)


def _list(rng: random.Random) -> Exercise:
    items = rng.sample(_ITEMS, rng.randint(2, 5))
    form = rng.choice(list(_FORMS))
    question = rng.choice(("Write as {form}: {items}", "Give these items as {form}: {items}"))
    answer = _FORMS[form](items)
    shown = question.format(form=form, items=" ".join(items))
    return Exercise("format", shown, answer, answer, (f"items {' '.join(sorted(items))}",))


def _record(rng: random.Random) -> Exercise:
    name, age, city = rng.choice(_NAMES), rng.randint(5, 95), rng.choice(_CITIES)
    told = rng.choice(("{n} is {a} years old and lives in {c}.", "{n}, aged {a}, comes from {c}."))
    if rng.random() < 0.7:
        asked = "Write this as JSON with the keys name, age and city:"
        answer = json.dumps({"name": name, "age": age, "city": city})
    else:
        asked = "Write this as a CSV line with the columns name, age, city:"
        answer = f"{name},{age},{city}"
    return Exercise(
        "format", f"{asked} {told.format(n=name, a=age, c=city)}", answer, answer, (f"record {name} {age} {city}",)
    )


def _date(rng: random.Random) -> Exercise:
    date = datetime.date.fromordinal(rng.randint(datetime.date(1950, 1, 1).toordinal(), 766644))
    written = f"{date.day} {MONTHS[date.month - 1]} {date.year}"
    if rng.random() < 0.5:
        question, answer = f"Write the date {written} in the form YYYY-MM-DD.", date.isoformat()
    else:
        question, answer = f"Write the date {date.isoformat()} in words, day first.", written
    return Exercise("format", question, answer, answer, (f"date {date.isoformat()}",))
