"""Rows as JSON: a line of JSONL each, plain or compressed; also how one JSON text becomes a row's content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.core.foreign import parse_json
from shoestring.data.reading import streams
from shoestring.data.reading.row import UTF8_HINT, Row


def jsonl_rows(file: Path, fields: tuple[str, ...] | None = None) -> Iterator[Row]:
    """A row for each line that is not blank, numbered by lines. fields: those that are read, None for all."""
    for number, line in streams.lines(file):
        if not line.isspace():
            where = f"{file}:{number}"
            yield Row(number, where, parsed(line, where, fields))


def parsed(text: bytes, where: str, fields: tuple[str, ...] | None) -> Any:
    """The value of a line or an entry, or the DataError that it is.

    With all fields read (None), half a surrogate pair in any of them is an error, as it could never be written again.
    """
    if len(text) > streams.LINE_LIMIT:
        return DataError(f"a line longer than {streams.LINE_LIMIT // 2**20} MiB", where)
    try:
        value = parse_json(text)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        return DataError(f"not UTF-8: byte 0x{byte:02x} at column {error.start + 1}", where, UTF8_HINT)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        row = f" of its line {error.lineno}" if error.lineno > 1 else ""
        reason = "unexpected end of line" if cut else f"{error.msg.removesuffix(' at')} at column {error.colno}{row}"
        return DataError(f"not a JSON object: {reason}", where, _hint(text))
    except ValueError as error:
        return DataError(f"not a readable JSON object: {error}", where)
    if fields is None and b"\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return DataError("the text holds half of a surrogate pair", where)
    return value


def _hint(line: bytes) -> str | None:
    if line.lstrip().startswith(b"["):
        return "a list of all rows goes into a .json file"
    if line.strip() == b"{":
        return "a row stands on one line; objects over several lines go into a .json file, as a list"
    return None
