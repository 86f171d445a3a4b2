"""The strict reader of GGUF files: header, metadata and tensor infos; no weights are touched here.

A GGUF file is `magic, version, tensor count, pair count, pairs, tensor infos, padding, tensor data`.
The file may be hostile, so every count, length and offset is compared with the bytes that are really
there before anything is allocated, and each fault is one sentence that names the file and the thing.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shoestring.core.errors import ModelFileError
from shoestring.core.files import LFS_HINT, LFS_POINTER, is_lfs_pointer

# Generous for every real model, small enough that a header made to hurt cannot take much memory.
MOST_HEADER_BYTES = 256 * 2**20
MOST_ARRAY_ITEMS = 2**22
MOST_PAIRS = 2**16
MOST_TENSORS = 2**18
MOST_KEY_BYTES = 2**16 - 1
MOST_TENSOR_NAME_BYTES = 64
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), _BOOL: np.dtype("<u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
# The least that one pair (key length, type, one byte) and one tensor info (no name, one dimension) take.
_LEAST_PAIR, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8

Value = int | float | bool | str | list[str] | np.ndarray


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. shape: slowest dimension first, as torch has it; offset: bytes from the start; part: of a
    model in several files, 0 the one that is read."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int
    part: int = 0


class GGUFFile:
    """An open GGUF file: `metadata` (key to value) and `tensors` (name to TensorInfo), read on construction.

    Numeric arrays are numpy arrays, string arrays lists. Use as a context manager; `raw` views the bytes
    of a tensor without copying them and must not outlive it. Raises ModelFileError for any broken file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        self._others: list[GGUFFile] = []
        try:
            with open(self.path, "rb") as stream:
                self.size = stream.seek(0, 2)
                if is_lfs_pointer(self.path):
                    raise self.error(LFS_POINTER, LFS_HINT)
                if self.size < 24:
                    raise self.error("too short to be a GGUF file")
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from error
        try:
            header = _Header(self, self._map)
            self.version = header.version
            self.metadata = header.metadata
            self.tensors = header.tensors
        except BaseException:
            self.close()
            raise

    def error(self, message: str, hint: str | None = None) -> ModelFileError:
        """The error that says `message` about this file; names from the file stay on one line and short."""
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message[:400])
        return ModelFileError(plain, where=str(self.path), hint=hint)

    def raw(self, info: TensorInfo) -> memoryview:
        """The bytes of a tensor, as they lie in the file."""
        if info.part:
            return self._others[info.part - 1].raw(replace(info, part=0))
        assert self._map is not None, "the file is closed"
        return memoryview(self._map)[info.offset : info.offset + info.nbytes]

    def join(self, others: list[GGUFFile]) -> None:
        """Take in the tensors of the other files of this model, which are closed with it. Raises ModelFileError."""
        for number, other in enumerate(others, 1):
            if twice := sorted(self.tensors.keys() & other.tensors.keys()):
                raise other.error(f"tensor {twice[0]!r} is in another part too")
            self.tensors |= {name: replace(info, part=number) for name, info in other.tensors.items()}
        expected = self.integer("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            raise self.error(f"the parts hold {len(self.tensors)} tensors, and split.tensors.count is {expected}")
        self._others = others

    def close(self) -> None:
        for other in self._others:
            other.close()
        if self._map is not None:
            # Where work on a slice failed, the error on its way up still holds a view of the map. The map
            # then goes with that view; complaining about it here would hide the error.
            with suppress(BufferError):
                self._map.close()
            self._map = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Metadata by key, with the type checked. A default of None means: not there is None.

    def integer(self, key: str, default: int | None = None) -> int | None:
        value = self.metadata.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.error(f"metadata {key} must be an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.metadata.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"metadata {key} must be a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"metadata {key} must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.error(f"metadata {key} must be a string")
        return value

    def strings(self, key: str) -> list[str] | None:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, list):
            raise self.error(f"metadata {key} must be an array of strings")
        return value

    def integers(self, key: str) -> np.ndarray | None:
        value = self.metadata.get(key)
        if value is not None and not (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
            raise self.error(f"metadata {key} must be an array of integers")
        return value


class _Header:
    """One pass over the header; `at` is the next byte to read."""

    def __init__(self, file: GGUFFile, data: mmap.mmap):
        self.file, self.data, self.at = file, data, 0
        self.end = min(file.size, MOST_HEADER_BYTES)
        self.items_left = MOST_ARRAY_ITEMS
        self.read()

    def read(self) -> None:
        if self.take(4, "the magic") != b"GGUF":
            raise self.file.error("not a GGUF file (it does not begin with GGUF)")
        self.version = self.uint32("the version")
        if self.version not in (2, 3):
            if self.version & 0xFFFF == 0 and self.version:
                raise self.file.error("this GGUF file is big-endian, which is not supported")
            raise self.file.error(f"GGUF version {self.version} is not supported (2 and 3 are)")
        tensors = self.count("tensors", _LEAST_TENSOR, MOST_TENSORS)
        pairs = self.count("metadata pairs", _LEAST_PAIR, MOST_PAIRS)
        self.metadata: dict[str, Any] = {}
        for index in range(pairs):
            key = self.string(f"the key of metadata pair {index}", MOST_KEY_BYTES)
            if key in self.metadata:
                raise self.file.error(f"metadata {key} is there twice")
            self.metadata[key] = self.value(f"metadata {key!r}")
        alignment = self.file_alignment()
        infos = [self.tensor(index, alignment) for index in range(tensors)]
        start = -(-self.at // alignment) * alignment
        self.tensors = self.placed(infos, start)

    # Primitive reads. `what` names the thing for the sentence.

    def take(self, length: int, what: str) -> bytes:
        if length > self.end - self.at:
            if self.end < self.file.size and length <= self.file.size - self.at:
                raise self.file.error(f"the header is larger than {MOST_HEADER_BYTES} bytes at {what}")
            raise self.file.error(f"the file ends within {what} ({length} bytes wanted at byte {self.at})")
        self.at += length
        return self.data[self.at - length : self.at]

    def uint32(self, what: str) -> int:
        return _UINT32.unpack(self.take(4, what))[0]

    def uint64(self, what: str) -> int:
        return _UINT64.unpack(self.take(8, what))[0]

    def count(self, what: str, least_bytes: int, most: int) -> int:
        number = self.uint64(f"the number of {what}")
        if number > most or number * least_bytes > self.end - self.at:
            raise self.file.error(f"the header claims {number} {what}, more than the file can hold")
        return number

    def string(self, what: str, most: int | None = None) -> str:
        length = self.uint64(what)
        if most is not None and length > most:
            raise self.file.error(f"{what} claims {length} bytes (at most {most} are allowed)")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.file.error(f"{what} is not valid UTF-8") from None

    # Metadata values.

    def value(self, what: str) -> Value:
        kind = self.uint32(what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        return self.scalars(kind, 1, what)[0].item()

    def scalars(self, kind: int, length: int, what: str) -> np.ndarray:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self.file.error(f"{what} has the unknown value type {kind}")
        values = np.frombuffer(self.take(length * dtype.itemsize, what), dtype)
        if kind == _BOOL:
            if (values > 1).any():
                raise self.file.error(f"{what} holds a truth value that is neither 0 nor 1")
            return values.astype(bool)
        return values

    def array(self, what: str) -> list[str] | np.ndarray:
        kind, length = self.uint32(what), self.uint64(what)
        if kind == _ARRAY:
            raise self.file.error(f"{what} is an array of arrays, which is not supported")
        if kind != _STRING and kind not in _SCALARS:
            raise self.file.error(f"{what} is an array of the unknown value type {kind}")
        width = 8 if kind == _STRING else _SCALARS[kind].itemsize
        if length * width > self.end - self.at or length > self.items_left:
            raise self.file.error(f"{what} claims {length} items, more than the file can hold")
        self.items_left -= length
        return self.string_array(length, what) if kind == _STRING else self.scalars(kind, length, what)

    def string_array(self, length: int, what: str) -> list[str]:
        # Vocabularies have 10^5 strings: one tight loop over local names, the checks kept.
        data, at, end, unpack = self.data, self.at, self.end, _UINT64.unpack_from
        strings: list[str] = []
        for index in range(length):
            start = at + 8
            if start > end or (at := start + unpack(data, start - 8)[0]) > end:
                raise self.file.error(f"the file ends within item {index} of {what}")
            try:
                strings.append(data[start:at].decode("utf-8"))
            except UnicodeDecodeError:
                raise self.file.error(f"item {index} of {what} is not valid UTF-8") from None
        self.at = at
        return strings

    # Tensors.

    def file_alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        power = isinstance(alignment, int) and alignment >= 1 and alignment & (alignment - 1) == 0
        if isinstance(alignment, bool) or not power or alignment > 2**20:
            raise self.file.error(f"general.alignment must be a power of two, not {alignment!r:.40}")
        return alignment

    def tensor(self, index: int, alignment: int) -> TensorInfo:
        """One info, checked by itself; its offset still counts from the start of the tensor data."""
        name = self.string(f"the name of tensor {index}", MOST_TENSOR_NAME_BYTES)
        what = f"tensor {name!r}"
        dimensions = self.uint32(what)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.file.error(f"{what} has {dimensions} dimensions (1 to {MOST_DIMENSIONS} are allowed)")
        shape = tuple(reversed([self.uint64(what) for _ in range(dimensions)]))
        number = math.prod(shape)
        if number == 0:
            raise self.file.error(f"{what} has a dimension of zero")
        type_number = self.uint32(what)
        try:
            kind = GGMLQuantizationType(type_number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise self.file.error(f"{what} has the unknown type {type_number}") from None
        if shape[-1] % block:
            raise self.file.error(
                f"{what}: rows of {shape[-1]} values do not divide into {kind.name} blocks of {block}"
            )
        nbytes = number // block * block_bytes
        if nbytes > self.file.size:
            raise self.file.error(f"{what} claims {number} values, more than the file can hold")
        offset = self.uint64(what)
        if offset % alignment:
            raise self.file.error(f"{what} begins at {offset}, which is not a multiple of {alignment}")
        return TensorInfo(name, shape, kind, offset, nbytes)

    def placed(self, infos: list[TensorInfo], start: int) -> dict[str, TensorInfo]:
        """The infos with offsets from the file's start; none outside of the file, none over another."""
        tensors: dict[str, TensorInfo] = {}
        for info in infos:
            offset = start + info.offset
            if offset + info.nbytes > self.file.size:
                raise self.file.error(
                    f"tensor {info.name!r} ends at byte {offset + info.nbytes}, past the end of the file "
                    f"({self.file.size} bytes)",
                    hint="the file is truncated or damaged: fetch it again",
                )
            if info.name in tensors:
                raise self.file.error(f"tensor {info.name!r} is there twice")
            tensors[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.nbytes)
        before = None
        for info in sorted(tensors.values(), key=lambda info: info.offset):
            if before is not None and before.offset + before.nbytes > info.offset:
                raise self.file.error(f"tensors {before.name!r} and {info.name!r} overlap")
            before = info
        return tensors
