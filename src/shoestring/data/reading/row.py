"""What the readers of rows give: one row at a time, with its place, or what is wrong with it.

A row that is bad by itself comes as the error that it is, so that whoever reads may go on with the next. A file that
is damaged, so that nothing behind can be trusted, raises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shoestring.core.errors import DataError

SKIP_HINT = "--on-bad-line skip leaves such lines out and counts them"
UTF8_HINT = "the text must be UTF-8; iconv -f LATIN1 -t UTF-8 FILE converts a Latin-1 file"


class Row(NamedTuple):
    """number: of the row in its file, by which it is named. where: its place, for a person.

    content: a JSON value, cells by name, or the DataError that it is. names: of all columns, where only some were read.
    """

    number: int
    where: str
    content: Any
    names: tuple[str, ...] = ()


def good(row: Row, expected: str) -> Any:
    """The row's content. Raises the DataError that it is, with a hint; expected: what to say where it has none."""
    content = row.content
    if isinstance(content, DataError):
        raise DataError(content.message, content.where, f"{content.hint or expected}\n{SKIP_HINT}")
    return content
