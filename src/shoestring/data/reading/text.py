"""Files of text, plain or compressed, in pieces that a person could have cut: at line ends, a few megabytes each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shoestring.core.errors import DataError
from shoestring.data.reading.row import UTF8_HINT
from shoestring.data.reading.streams import Content, bare_name, opened

PIECE_BYTES = 4 * 2**20
_LEAVES_OUT = "--on-bad-line skip leaves it out"


class NotUtf8(DataError):
    """A file of text with bytes that are none; what was before them has been read."""


def text_size(file: Path) -> int:
    """Bytes of the text, which for a compressed file are counted."""
    if bare_name(file) == file.name.lower():
        return file.stat().st_size
    with opened(file) as content:
        return sum(map(len, iter(lambda: content.read(2**20), b"")))


def pieces(file: Path, border: int | None = None) -> Iterator[tuple[int, str]]:
    """(offset, text) of pieces of about PIECE_BYTES, cut at line ends and at the first one from `border` on.

    Pieces of nothing but space are left out. Raises NotUtf8.
    """
    offset = line = 0
    with opened(file, lambda: f"{file}:{line + 1}") as content:
        while True:
            to_border = PIECE_BYTES if border is None or offset >= border else border - offset
            size = min(PIECE_BYTES, to_border)
            piece = content.read(size)
            if len(piece) == size:
                # To the end of the line, but a file without line ends must not come in whole.
                piece += content.readline(PIECE_BYTES)
                piece += _rest_of_character(content, piece)
            if not piece:
                return
            try:
                text = piece.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                start = error.start + len(piece) - len(error.object)  # a mark at the beginning is not in the object
                line += 1 + piece.count(b"\n", 0, start)
                message = f"not UTF-8: byte 0x{piece[start]:02x} at offset {offset + start:,}"
                raise NotUtf8(message, f"{file}:{line}", f"{UTF8_HINT}\n{_LEAVES_OUT}") from error
            if text.strip():
                yield offset, text
            offset += len(piece)
            line += piece.count(b"\n")


def _rest_of_character(content: Content, piece: bytes) -> bytes:
    """Up to three bytes that complete a UTF-8 character at the end of a piece cut without a line end."""
    rest = b""
    if not piece.endswith(b"\n"):
        while len(rest) < 3 and (ahead := content.peek(1)[:1]) and ahead[0] & 0xC0 == 0x80:
            rest += content.read(1)
    return rest
