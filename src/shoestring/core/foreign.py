"""JSON from outside, read within limits of size, depth and numbers; `yaml_document` keeps to the same ones.

A model, an adapter, a row or a run's state may come from anyone. Python's parsers take what they are given: nesting
that ends in a RecursionError here or in whoever walks over the value later, whole numbers that overflow a float, one
megabyte that becomes a hundred. So everything that others may have written is read here. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_DEPTH = 100  # real schemas and configs nest a dozen times
MOST_DIGITS = 100  # of a whole number: 10^100 is still a float
MOST_ITEMS = 2_000_000  # of a file: an empty list of three bytes takes sixty
MOST_BYTES = 64 * 2**20  # the index of a model with 400,000 tensors has a third of that

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def parse_json(
    text: str | bytes,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    most_items: int | None = MOST_ITEMS,
) -> Any:
    """The value that `text` (as bytes: UTF-8) holds. pairs: makes an object of its members, as json.loads has it.

    Raises ValueError in plain words: json.JSONDecodeError for what is no JSON, UnicodeDecodeError, or a limit.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    commas, brackets = text.count(","), text.count("[") + text.count("{")
    if most_items is not None and commas + brackets > most_items:  # in strings they are nothing but characters
        bare = _STRING.sub("", text)
        if bare.count(",") + bare.count("[") + bare.count("{") > most_items:
            raise ValueError(f"more than {most_items:,} items")
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=whole_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if brackets > MOST_DEPTH:
        check_depth(value)
    return value


def read_json(file: str | Path, most_bytes: int = MOST_BYTES, most_items: int | None = MOST_ITEMS) -> Any:
    """The value that a UTF-8 file holds. Raises OSError, and ValueError as `parse_json` and for a file too large.

    Half a surrogate pair, which could never be written again, is refused as well.
    """
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"larger than {most_bytes // 2**20} MiB")
        raw = opened.read(size + 1)  # and no more: it may be a device that never ends
    value = parse_json(raw, most_items=most_items)
    if b"\\ud" in raw.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("the text holds half of a surrogate pair") from None
    return value


def whole_number(text: str) -> int:
    """Digits, perhaps signed. Raises ValueError for more than a float could hold."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; at most {MOST_DIGITS} are possible")
    return int(text)


def check_depth(value: Any) -> None:
    """Raises ValueError where lists and objects stand in one another more than MOST_DEPTH times."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [x for x in item.values() if isinstance(x, (dict, list))]
            elif isinstance(item, list):
                inner += [x for x in item if isinstance(x, (dict, list))]
        level = inner
        if not level:
            return
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"nested more than {MOST_DEPTH} times"
