"""A conversation on disk: a line of JSONL that fine-tuning reads, and what the cache holds of it in a file beside.

FILE is the conversation; FILE.cache holds keys and values, so that it goes on without being read again. The second is
worth nothing without the model that made it, and can be deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError, RunError
from shoestring.core.files import atomic_write
from shoestring.data.reading.json_rows import jsonl_rows
from shoestring.data.supervised.conversation import conversation_of


def cache_beside(file: str | Path) -> Path:
    """Where the cache of the conversation in `file` is kept."""
    return Path(f"{file}.cache")


def write_conversation(file: str | Path, messages: list[dict[str, Any]]) -> None:
    """One line. Raises RunError where something else than a conversation stands there."""
    if Path(file).exists():
        try:
            read_conversation(file)
        except DataError:
            message = "this file is no conversation, and would be lost"
            raise RunError(message, str(file), "choose another name") from None
    with atomic_write(file) as lines:
        lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def read_conversation(file: str | Path) -> list[dict[str, Any]]:
    """The messages of the one conversation in a file. Raises DataError with its line."""
    found = None
    try:
        for row in jsonl_rows(Path(file)):
            if found is not None:
                raise DataError("there is a second conversation in this file", row.where, "keep one line of it")
            if isinstance(row.content, DataError):
                raise row.content
            found = conversation_of(row.content, row.where)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", str(file)) from None
    if found is None:
        raise DataError("there is no conversation in this file", str(file))
    return found
