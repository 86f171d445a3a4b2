"""Where text comes from: the standard library, text files, folders, rows of files, the hub; one document at a time.

A source is opened once: its files are listed and sorted, so that order, names and the split into train and
validation depend on the content alone. Memory stays bounded: JSONL is read by lines, Parquet by groups of rows, and a
text file above PIECE_BYTES becomes several documents, cut at line ends.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import zstandard

from shoestring.core import console
from shoestring.core.errors import DataError
from shoestring.core.foreign import parse_json
from shoestring.data.hub import HUB, hub_files
from shoestring.data.parquet import parquet_rows
from shoestring.data.standard_library import MOST_NUMBERS, MOST_REPEATED, is_generated, standard_library
from shoestring.data.tables import is_json, is_table, json_list, table_names, table_rows
from shoestring.data.utf8 import UTF8_HINT, not_utf8, rest_of_character

PIECE_BYTES = 4 * 2**20
LINE_LIMIT = 64 * 2**20  # a JSONL line longer than this is not a line of text

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
Row = tuple[int, str, Callable[[], Any]]  # number, place, and what gives its content or raises DataError
_SKIP_HINT = "--on-bad-line skip leaves such lines out and counts them"


@dataclass(frozen=True)
class Document:
    """name: unique and stable within its source. split: "train" or "validation"."""

    name: str
    text: str
    split: str


@dataclass
class Skipped:
    """What was left out while reading, by reason, with the first place of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def __str__(self) -> str:
        return "; ".join(self.sentences())

    def sentences(self) -> list[str]:
        """One for each reason."""
        return [f"{n:,} {reason} (first: {self.first[reason]})" for reason, n in self.counts.items()]


def split(name: str, validation: float) -> str:
    """Which split a document belongs to, by a hash of its name: the same on every machine."""
    return "validation" if _hash(name) < validation else "train"


def documents(
    source: str | Path,
    text_field: str = "text",
    validation: float = 0.05,
    on_bad_line: str = "stop",
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """All documents of a source. See Source."""
    return Source(source, text_field, validation, on_bad_line).documents(skipped)


class Source:
    """A listed source: "stdlib", hf:OWNER/NAME, or the path of a text file, a file of rows or a folder of both.

    Rows are the lines of JSONL, the rows of Parquet, the entries of a .json file that is a list of objects, and the
    lines of a table (.csv, .tsv); in a folder, lists and tables count as rows if they have the field `text_field`, else
    as text.

    Raises DataError when there is nothing to read, and while reading for text that cannot be read, unless
    on_bad_line is "skip". In folders, hidden files are left out, and binary files are left out and counted.
    """

    def __init__(
        self,
        source: str | Path,
        text_field: str = "text",
        validation: float = 0.05,
        on_bad_line: str = "stop",
    ) -> None:
        assert on_bad_line in ("stop", "skip")
        self.source = str(source)
        self.text_field = text_field
        self.validation = validation
        self.on_bad_line = on_bad_line
        if self.source.startswith(HUB):
            self.files = hub_files(self.source, console.say)
        else:
            self.files = standard_library() if self.source == "stdlib" else _list(Path(source))
        self._forced = self._validation_file()
        self._fingerprint: str | None = None

    def documents(self, skipped: Skipped | None = None) -> Iterator[Document]:
        """Each document in a fixed order. Raises DataError if there is none."""
        skipped = Skipped() if skipped is None else skipped
        found = False
        for name, file in self.files:
            for document in self._file(name, file, skipped):
                found = True
                yield document
        if not found:
            left_out = f"; left out: {skipped}" if skipped.counts else ""
            raise DataError(f"no text in this source{left_out}", self.source, "give files that hold text")

    def size(self) -> int:
        """Bytes of all files as they lie on the disk."""
        return sum(file.stat().st_size for _, file in self.files)

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of all files, and the settings that decide what is read. Read once."""
        if self._fingerprint is None:
            self._fingerprint = self._hash_everything()
        return self._fingerprint

    def _hash_everything(self) -> str:
        settings = [self.text_field, self.validation, self.on_bad_line]
        if any(is_json(file) or is_table(file) for _, file in self.files):
            settings.append("rows")  # such files were text until rows were read from them
        if self.source == "stdlib":
            settings += [MOST_NUMBERS, MOST_REPEATED]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, file in self.files:
            try:
                digest.update(f"\0{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
                with open(file, "rb") as content:
                    while block := content.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror or error}", str(file)) from error
        return digest.hexdigest()

    def _validation_file(self) -> str | None:
        """Few text files can miss validation by chance: then the one with the lowest hash goes there."""
        names = [name for name, file in self.files if not _has_rows(file)]
        if self.validation == 0 or len(names) != len(self.files) or len(names) < 2:
            return None
        if any(split(name, self.validation) == "validation" for name in names):
            return None
        return min(names, key=_hash)

    def _split(self, name: str) -> str:
        return "validation" if name == self._forced else split(name, self.validation)

    def _file(self, name: str, file: Path, skipped: Skipped) -> Iterator[Document]:
        try:
            if _is_jsonl(file):
                yield from self._from_rows(name, self._jsonl(file), skipped)
            elif (rows := self._rows(file)) is not None:
                yield from self._from_rows(name, rows, skipped)
            elif self.source == "stdlib":
                yield from self._python(name, file, skipped)
            elif len(self.files) == 1:
                yield from self._one_file(name, file, skipped)
            elif _is_binary(file):
                skipped.add("binary files", str(file))
            else:
                where = self._split(name)
                for n, (_, text) in enumerate(self._pieces(file, skipped)):
                    yield Document(f"{name}#{n}" if n else name, text, where)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", str(file)) from error

    def _python(self, name: str, file: Path, skipped: Skipped) -> Iterator[Document]:
        try:
            with tokenize.open(file) as content:  # obeys the encoding that the file declares
                text = content.read()
        except (SyntaxError, UnicodeDecodeError):
            skipped.add("files of unknown encoding", str(file))
            return
        if is_generated(text):
            skipped.add("generated files", str(file))
        elif text.strip():
            yield Document(name, text, self._split(name))

    def _one_file(self, name: str, file: Path, skipped: Skipped) -> Iterator[Document]:
        """A single text file is split by position: its last part is held out."""
        if _is_binary(file):
            raise DataError(
                "a binary file, not text", str(file), "give a text file, a .jsonl file or a folder"
            )
        size = file.stat().st_size
        border = size - round(size * self.validation)
        for n, (offset, text) in enumerate(self._pieces(file, skipped, border)):
            yield Document(f"{name}#{n}" if n else name, text, "train" if offset < border else "validation")

    def _pieces(self, file: Path, skipped: Skipped, border: int | None = None) -> Iterator[tuple[int, str]]:
        """(offset, text) of pieces of about PIECE_BYTES, cut at line ends and at `border`."""
        with open(file, "rb") as content:
            offset = 0
            while True:
                size = (
                    PIECE_BYTES if border is None or offset >= border else min(PIECE_BYTES, border - offset)
                )
                piece = content.read(size)
                if len(piece) == size:
                    # To the end of the line, but a file without line ends must not come in whole.
                    piece += content.readline(PIECE_BYTES)
                    piece += rest_of_character(content, piece)
                if not piece:
                    return
                try:
                    text = piece.decode("utf-8-sig" if offset == 0 else "utf-8")
                except UnicodeDecodeError as error:
                    if self.on_bad_line == "skip":
                        skipped.add("files that are not UTF-8", str(file))
                        return
                    raise not_utf8(error, file, offset, piece) from error
                if text.strip():
                    yield offset, text
                offset += len(piece)

    def _jsonl(self, file: Path) -> Iterator[Row]:
        for number, line in enumerate(jsonl_lines(file), 1):
            if not line.isspace():
                where = f"{file}:{number}"
                yield number, where, functools.partial(_parse, line, where)

    def _rows(self, file: Path) -> Iterator[Row] | None:
        """The rows of a Parquet file, a JSON list or a table, None for text."""
        alone = len(self.files) == 1
        if _is_parquet(file):
            return (
                (number, f"{file}: row {number}", functools.partial(_given, row))
                for number, row in enumerate(parquet_rows(file, (self.text_field, "id")), 1)
            )
        if is_json(file) and (entries := _objects(file, alone)) is not None:
            if alone or all(isinstance(entry.get(self.text_field), str) for entry in entries):
                return (
                    (number, f"{file}: entry {number}", functools.partial(_given, entry))
                    for number, entry in enumerate(entries, 1)
                )
        if is_table(file) and (alone or self.text_field in _names(file)):
            return ((line, f"{file}:{line}", functools.partial(_given, row)) for line, row in table_rows(file))
        return None

    def _from_rows(self, name: str, rows: Iterator[Row], skipped: Skipped) -> Iterator[Document]:
        for number, where, row in rows:
            try:
                text, identity = _text_of(row(), self.text_field, where)
            except DataError as error:
                if self.on_bad_line == "skip":
                    skipped.add("bad lines", where)
                    continue
                raise error
            if text:
                document = f"{name}:{number}"
                yield Document(
                    document, text, split(document if identity is None else identity, self.validation)
                )


def _given(row: Any) -> Any:
    if isinstance(row, DataError):
        raise DataError(row.message, row.where, f"{row.hint}\n{_SKIP_HINT}")
    return row


def _objects(file: Path, alone: bool) -> list[dict[str, Any]] | None:
    """The entries of a JSON list of objects, None for other JSON. Raises DataError for a broken list that stands alone.

    In a folder, what cannot be read as JSON is text.
    """
    with open(file, encoding="utf-8-sig", errors="replace") as content:
        if "".join(content.read(8192).split())[:2] != "[{":
            return None
    try:
        entries = json_list(file)
    except DataError:
        if alone:
            raise
        return None
    return entries if all(isinstance(entry, dict) for entry in entries) else None


def _names(file: Path) -> list[str]:
    """Of a table's columns; none where it cannot be read as one, and is text."""
    try:
        return table_names(file)
    except DataError:
        return []


def _parse(line: bytes, where: str) -> Any:
    if len(line) > LINE_LIMIT:
        raise DataError(f"a line longer than {LINE_LIMIT // 2**20} MiB", where, _SKIP_HINT)
    is_list = "\na list of all rows goes into a .json file" if line.lstrip().startswith(b"[") else ""
    try:
        return parse_json(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}", where, UTF8_HINT
        ) from error
    except json.JSONDecodeError as error:
        message = f"not a JSON object: {error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(message, where, _SKIP_HINT + is_list) from error
    except ValueError as error:
        raise DataError(f"not a readable JSON object: {error}", where, _SKIP_HINT) from error


def _text_of(entry: Any, text_field: str, where: str) -> tuple[str, str | None]:
    """The text of a row, and its `id` when it has one."""
    expected = f'expected {{"{text_field}": "..."}}; data.text_field names another field\n{_SKIP_HINT}'
    if not isinstance(entry, dict):
        is_list = "\na list of all rows goes into a .json file" if isinstance(entry, list) else ""
        raise DataError("not a JSON object", where, expected + is_list)
    if text_field not in entry:
        raise DataError(
            f"no field {text_field!r}; it has {', '.join(map(repr, entry)) or 'none'}", where, expected
        )
    text = entry[text_field]
    if not isinstance(text, str):
        raise DataError(f"the field {text_field!r} is not a string", where, expected)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError("the text holds half of a surrogate pair", where, _SKIP_HINT) from error
    identity = entry.get("id")
    return text, str(identity) if isinstance(identity, (str, int)) else None


def jsonl_lines(file: Path) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstd file; one that is longer than LINE_LIMIT comes cut off there."""
    try:
        with open(file, "rb") as raw:
            content: IO[bytes] = raw
            if file.name.endswith(".gz"):
                content = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
            elif file.name.endswith(".zst"):
                reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
                content = io.BufferedReader(reader)  # type: ignore[arg-type,assignment]
            while line := content.readline(LINE_LIMIT + 1):
                yield line
                while len(line) > LINE_LIMIT and not line.endswith(b"\n") and line:
                    line = content.readline(LINE_LIMIT + 1)
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"damaged compression: {error}", str(file)) from error


def _is_jsonl(file: Path) -> bool:
    return file.name.lower().endswith(JSONL_SUFFIXES)


def _is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(".parquet")


def _has_rows(file: Path) -> bool:
    return _is_jsonl(file) or _is_parquet(file)


def _is_binary(file: Path) -> bool:
    with open(file, "rb") as content:
        return b"\0" in content.read(8192)


def _list(path: Path) -> list[tuple[str, Path]]:
    """(name, file) of a file or of all files under a folder, sorted by name; hidden ones are left out."""
    if os.path.isfile(path):
        return [(path.name, path)]
    if not os.path.isdir(path):
        raise DataError(
            "no such file or folder",
            str(path),
            "data.source is stdlib, a text file, a .jsonl or .parquet file, a folder, or hf:OWNER/NAME",
        )
    found = []
    for parent, folders, names in os.walk(path):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        files = [Path(parent) / name for name in names if not name.startswith(".")]
        found += [(file.relative_to(path).as_posix(), file) for file in files if file.is_file()]
    if not found:
        raise DataError("this folder holds no files", str(path), "give a folder with text files")
    return sorted(found)


def _hash(name: str) -> float:
    """In [0, 1)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
