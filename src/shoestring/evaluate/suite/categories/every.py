"""All categories, in the order in which they are shown."""

from __future__ import annotations

from shoestring.evaluate.suite.categories import (
    arithmetic,
    code,
    conversation,
    dates,
    facts,
    instructions,
    reading,
    sequences,
    structure,
    text,
)
from shoestring.evaluate.suite.question import Category

_MODULES = (facts, arithmetic, sequences, text, dates, code, structure, instructions, conversation, reading)
CATEGORIES: tuple[Category, ...] = tuple(category for module in _MODULES for category in module.CATEGORIES)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(category.group for category in CATEGORIES))
