"""A JSON file that holds one list, entry by entry, in the memory of its largest entry.

Only strings and brackets are followed, in bytes, to find where an entry ends; what stands between is then parsed by
itself, within the limits of `core.foreign`. So an entry that is no JSON is one bad row, as a line of JSONL is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shoestring.core.errors import DataError
from shoestring.data.reading import streams
from shoestring.data.reading.json_rows import parsed
from shoestring.data.reading.row import Row

_AT_ONCE = 2**18
_SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*")
_INNER = re.compile(rb'["\[\]{}]')  # what matters within an object or a list
_OUTER = re.compile(rb'["\[\]{},]')
_END = re.compile(rb"\}[ \t\r\n]*[,\]]")  # of an object in a list
_MARK = b"\xef\xbb\xbf"
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _LEFT, _RIGHT = b'"\\[]{}'
_JSONL = "a file with one object per line is .jsonl"


def begins_as_list_of_objects(file: Path) -> bool:
    """By its first bytes."""
    with streams.opened(file) as content:
        return b"".join(content.read(8192).removeprefix(_MARK).split())[:2] == b"[{"


def list_rows(file: Path, fields: tuple[str, ...] | None = None) -> Iterator[Row]:
    """A row for each entry, numbered from 1. fields: those that are read, None for all.

    Raises DataError for a file that holds no list, whose list does not end, or with an entry larger than LINE_LIMIT.
    """
    text = _Text()
    with streams.opened(file, lambda: f"{file}:{text.line}") as text.content:
        if text.next_byte() != _OPEN:
            raise DataError("not a list of objects", str(file), "give a .json file with a list, or a .jsonl file")
        text.take(1)
        number = 0
        while text.next_byte() != _CLOSE or number:  # a list without entries, else each ends with a comma or its end
            number += 1
            line = text.line
            where = f"{file}:{line}, entry {number}"
            size = text.flat_object()
            content = parsed(text.peek(size), where, fields) if size else None
            if size and not isinstance(content, DataError):  # an object is whole at one place alone: this is its end
                text.take(size)
                text.next_byte()  # past what space stands before the comma or the end
                yield Row(number, where, content)
                if text.take(1) == b"]":
                    break
                continue
            size = text.entry()
            if size < 0:
                long = len(text.held) - text.at > streams.LINE_LIMIT
                what = f"an entry longer than {streams.LINE_LIMIT >> 20} MiB" if long else "the list does not end"
                raise DataError(f"not valid JSON: {what}", f"{file}:{line}", _JSONL)
            entry = text.take(size).rstrip(_SPACE)
            if not entry:
                raise DataError("not valid JSON: a comma and no entry beside it", where, "remove the comma")
            yield Row(number, where, parsed(entry, where, fields))
            if text.take(1) == b"]":
                break
        else:
            text.take(1)
        if text.next_byte() >= 0:
            raise DataError("not valid JSON: there is more behind the list's end", f"{file}:{text.line}", _JSONL)


class _Text:
    """What of a file was read and not yet taken: `held` from `at` on, which begins in `line`."""

    content: streams.Content

    def __init__(self) -> None:
        self.held, self.at, self.line = bytearray(), 0, 1
        self._begun = False

    def peek(self, size: int) -> bytes:
        """So many bytes of what is held."""
        return bytes(self.held[self.at : self.at + size])

    def take(self, size: int) -> bytes:
        """The same, and goes on behind them."""
        taken = self.peek(size)
        self.line += taken.count(b"\n")
        self.at += size
        return taken

    def next_byte(self) -> int:
        """The next byte that is no space, to which this goes; -1 at the end of the file."""
        while True:
            end = _SPACES.match(self.held, self.at).end()  # type: ignore[union-attr]
            self.take(end - self.at)
            if self.at < len(self.held):
                return self.held[self.at]
            if not self._more():
                return -1

    def flat_object(self) -> int:
        """The size of the object that begins here, if it is held whole and no other seems to be in it; else 0.

        A guess, several times faster than `entry`, for the commonest rows: whoever takes it parses it.
        """
        found = _END.search(self.held, self.at)
        end = found.end() - 1 if found else 0
        if not found or any(self.held.count(brace, self.at, end) != 1 for brace in (b"{", b"}")):
            return 0
        return found.start() + 1 - self.at

    def entry(self) -> int:
        """The size of the entry that begins here: up to the comma or bracket behind it.

        -1 where the file ends before, or LINE_LIMIT is passed.
        """
        size, depth, quoted = 0, 0, False
        while True:
            begin = self.at + size
            if quoted:
                found = self.held.find(b'"', begin)
            else:
                match = (_INNER if depth else _OUTER).search(self.held, begin)
                found = -1 if match is None else match.start()
            if found < 0:
                size = len(self.held) - self.at
                if size > streams.LINE_LIMIT or not self._more():
                    return -1
                continue
            size = found + 1 - self.at
            byte = self.held[found]
            if quoted:
                quoted = self._escaped(found)
            elif byte == _QUOTE:
                quoted = True
            elif byte in (_OPEN, _LEFT):
                depth += 1
            elif depth:
                depth -= 1
            elif byte != _RIGHT:
                return size - 1

    def _escaped(self, quote: int) -> bool:
        """Whether a quotation mark within a string does not end it: an odd number of backslashes stands before it."""
        first = quote
        while self.held[first - 1] == _BACKSLASH:
            first -= 1
        return (quote - first) % 2 == 1

    def _more(self) -> bool:
        del self.held[: self.at]
        self.at = 0
        data = self.content.read(_AT_ONCE)
        self.held += data if self._begun else data.removeprefix(_MARK)
        self._begun = True
        return bool(data)
