"""Days, dates and units."""

from __future__ import annotations

import datetime
import random

from shoestring.data.synthetic.formatting import MONTHS
from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Question, ask

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_UNITS = (  # larger, smaller, how many
    ("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60), ("weeks", "days", 7), ("years", "months", 12), ("litres", "millilitres", 1000),
    ("days", "hours", 24), ("feet", "inches", 12), ("euros", "cents", 100), ("centimetres", "millimetres", 10),
)  # fmt: skip


def _weekday(rng: random.Random) -> Question:
    first, days = rng.randrange(7), rng.randint(1, 30)
    back = rng.random() < 0.3
    result = _DAYS[(first - days if back else first + days) % 7]
    way = "was it" if back else "will it be"
    when = f"{days} day{'s' * (days > 1)} {'ago' if back else 'from now'}"
    text = f"Today is {_DAYS[first]}. Which day of the week {way} {when}?"
    wrong = [day for day in _DAYS if day != result]
    return ask(f"weekday {first} {-days if back else days}", text, result, checks.chooses(result, wrong), options=_DAYS)


def _date(rng: random.Random) -> datetime.date:
    return datetime.date.fromordinal(rng.randint(datetime.date(1950, 1, 1).toordinal(), 766644))


def _written(rng: random.Random) -> Question:
    date = _date(rng)
    words = f"{date.day} {MONTHS[date.month - 1]} {date.year}"
    if rng.random() < 0.5:
        text = f"Write the date {words} in the form YYYY-MM-DD."
        return ask(f"date {date.isoformat()}", text, date.isoformat(), checks.says(date.isoformat()))
    text = f"Write the date {date.isoformat()} in words, day first, as in 5 May 2001."
    return ask(f"date {date.isoformat()}", text, words, checks.says(words))


def _next_date(rng: random.Random) -> Question:
    date, days = _date(rng), rng.randint(1, 9)
    result = (date + datetime.timedelta(days=days)).isoformat()
    text = f"Which date is {days} day{'s' * (days > 1)} after {date.isoformat()}? Answer in the form YYYY-MM-DD."
    return ask(f"date {date.isoformat()} {days}", text, result, checks.says(result))


def _units(rng: random.Random) -> Question:
    large, small, each = rng.choice(_UNITS)
    count = rng.randint(2, 30)
    if rng.random() < 0.6:
        text, result = f"How many {small} are {count} {large}?", count * each
    else:
        text, result = f"How many {large} are {count * each} {small}?", count
    return ask(f"units {small} {count}", text, str(result), checks.number(result))


def _clock(rng: random.Random) -> Question:
    start, minutes = rng.randrange(0, 24 * 60, 5), rng.randrange(5, 180, 5)
    end = (start + minutes) % (24 * 60)
    shown, result = (f"{at // 60:02d}:{at % 60:02d}" for at in (start, end))
    text = f"It is {shown}. What time is it {minutes} minutes later? Answer in the form HH:MM."
    return ask(f"clock {start} {minutes}", text, result, checks.says(result))


CATEGORIES = (
    Category("weekdays", "dates and units", "which day it is some days from now", _weekday, 0.17),
    Category("dates written", "dates and units", "in figures and in words", _written),
    Category("dates counted", "dates and units", "some days after a date", _next_date),
    Category("units", "dates and units", "metres to centimetres, hours to minutes", _units),
    Category("clock times", "dates and units", "some minutes later", _clock),
)
