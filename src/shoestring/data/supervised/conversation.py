"""One conversation out of a row, to be gone on with: messages as a template takes them, and nothing else."""

from __future__ import annotations

from typing import Any

from shoestring.core.errors import DataError
from shoestring.data.supervised.formats import SKIP, to_example


def conversation_of(row: Any, where: str) -> list[dict[str, Any]]:
    """The messages of {"messages": [...]}, opened by its "system" where it has one. Raises DataError at `where`."""
    try:
        example = to_example(row, "messages", where)
    except DataError as error:
        raise DataError(error.message, error.where, (error.hint or "").replace(f"\n{SKIP}", "") or None) from None
    if example.tools:
        raise DataError("it has tools, which are not told to a model here", where, 'leave "tools" out')
    return example.messages
