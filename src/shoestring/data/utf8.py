"""Bytes of a text file that is read in pieces: a character at the end of one made whole, and where it is no UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shoestring.core.errors import DataError

UTF8_HINT = (
    "the text must be UTF-8; iconv -f LATIN1 -t UTF-8 FILE converts a Latin-1 file\n"
    "--on-bad-line skip leaves it out"
)


def rest_of_character(content: IO[bytes], piece: bytes) -> bytes:
    """Up to three bytes that complete a UTF-8 character at the end of a piece cut without a line end."""
    rest = b""
    if not piece.endswith(b"\n"):
        while len(rest) < 3 and (following := content.read(1)):
            if following[0] & 0xC0 != 0x80:
                content.seek(-1, os.SEEK_CUR)
                break
            rest += following
    return rest


def not_utf8(error: UnicodeDecodeError, file: Path, offset: int, piece: bytes) -> DataError:
    at = offset + error.start
    with open(file, "rb") as content:
        line = 1 + sum(block.count(b"\n") for block in _blocks(content, at))
    return DataError(
        f"not UTF-8: byte 0x{piece[error.start]:02x} at offset {at:,}", f"{file}:{line}", UTF8_HINT
    )


def _blocks(content: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := content.read(min(size, 1 << 20))):
        size -= len(block)
        yield block
