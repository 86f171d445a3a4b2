"""Files as bytes, plain or compressed (.gz, .zst), in bounded memory: lines have a limit, and so has a zstd window.

A compressed file may come from anyone: a few bytes of it can stand for gigabytes, and its end can be missing. gzip
notices the latter by itself. zstd's streaming reader takes a cut file for a short one, so its frames are followed here
as they pass by (RFC 8878: a frame is a header and blocks whose headers tell their lengths).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import zstandard

from shoestring.core.errors import DataError

COMPRESSED = (".gz", ".zst")
LINE_LIMIT = 64 * 2**20  # a line longer than this is not a line of text
WINDOW_LIMIT = 128 * 2**20  # what zstd itself takes without being told otherwise
_SKIMMED = 2**20
_SKIPPABLE = 0x184D2A50  # and the fifteen above it
_RUN = 1  # the kind of block whose one byte is repeated
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)

Content = io.BufferedReader | gzip.GzipFile


def bare_name(file: Path) -> str:
    """In small letters, without the ending of a compression."""
    name = file.name.lower()
    return name.rpartition(".")[0] if name.endswith(COMPRESSED) else name


@contextmanager
def opened(file: Path, place: Callable[[], str] | None = None) -> Iterator[Content]:
    """The file's bytes, unpacked. Damaged compression raises DataError at `place()` while it is read."""
    try:
        with open(file, "rb") as raw:
            if file.name.lower().endswith(".gz"):
                yield gzip.GzipFile(fileobj=raw)
            elif file.name.lower().endswith(".zst"):
                frames = _Frames(raw, file)
                reader = zstandard.ZstdDecompressor().stream_reader(
                    frames, read_across_frames=True, closefd=False  # type: ignore[arg-type]
                )
                yield io.BufferedReader(reader)  # type: ignore[arg-type]
            else:
                yield raw
    except _DAMAGE as error:
        where = str(file) if place is None else place()
        raise DataError(f"damaged compression: {error}", where, "copy or fetch the file again") from error


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) from 1 on; a line longer than LINE_LIMIT comes cut off behind it, and is not held whole."""
    number = 0
    with opened(file, lambda: f"{file}:{number + 1}") as content:
        while line := content.readline(LINE_LIMIT + 1):
            number += 1
            cut = len(line) > LINE_LIMIT and not line.endswith(b"\n")
            yield number, line
            line = b""
            while cut:
                more = content.readline(_SKIMMED)
                cut = bool(more) and not more.endswith(b"\n")


def is_binary(file: Path) -> bool:
    """Whether its first bytes, unpacked, are those of no text."""
    with opened(file) as content:
        return b"\0" in content.read(8192)


class _Frames:
    """Passes a zstd file on, and raises where it ends within a frame or asks for more memory than there should be."""

    def __init__(self, raw: IO[bytes], file: Path) -> None:
        self._raw, self._walk = raw, _walk(file)
        self._wanted, self._what = next(self._walk)
        self._got = b""

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        if not data and (self._what != "frame" or self._got):
            raise EOFError("it ends in the middle of a zstd frame")
        at = 0
        while at < len(data):
            step = min(self._wanted, len(data) - at)
            if self._what != "content":
                self._got += data[at : at + step]
            at += step
            self._wanted -= step
            while not self._wanted:
                (self._wanted, self._what), self._got = self._walk.send(self._got), b""
        return data


def _walk(file: Path) -> Generator[tuple[int, str], bytes, None]:
    """Asks for (bytes, which) in turn and is sent those that are not content: "frame" begins one, "header" goes on."""
    while True:
        head = yield 5, "frame"
        if int.from_bytes(head[:4], "little") & 0xFFFFFFF0 == _SKIPPABLE:
            head += yield 3, "header"
            yield int.from_bytes(head[4:8], "little"), "content"
            continue
        head += yield zstandard.frame_header_size(head) - len(head), "header"
        frame = zstandard.get_frame_parameters(head)
        if frame.window_size > WINDOW_LIMIT:
            raise DataError(
                f"it takes a window of {frame.window_size / 2**20:,.0f} MiB to unpack, more than {WINDOW_LIMIT >> 20}",
                str(file), "unpack it and compress it anew: zstd -d --long=31 -c FILE | zstd > NEW.zst",
            )  # fmt: skip
        last = 0
        while not last:
            block = int.from_bytes((yield 3, "header"), "little")
            last, kind, length = block & 1, block >> 1 & 3, block >> 3
            yield 1 if kind == _RUN else length, "content"
        if frame.has_checksum:
            yield 4, "content"
