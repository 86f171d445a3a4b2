"""Safetensors files read straight into the memory where the weights will live.

A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data. Reading
into memory that is already allocated costs no second copy; a memory map would count towards the process's
resident set beside the weights. The header is checked as strictly as the reference does, so that a broken
file gives a sentence.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import torch as reference
from torch import Tensor

from shoestring.core.direct import DirectFile
from shoestring.core.errors import ModelFileError
from shoestring.core.files import LFS_HINT, LFS_POINTER, is_lfs_pointer
from shoestring.core.foreign import parse_json

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # the reference's limit
_CHUNK = 1 << 20  # elements converted at a time


class TensorInfo(NamedTuple):
    """Where a tensor lies: byte offset in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class TensorFile:
    """An open safetensors file, `infos` by name; a context manager. Raises ModelFileError if it is broken.

    metadata: texts by name, which may be missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._direct = DirectFile(self.path)
        try:
            self._file = open(self.path, "rb", buffering=0)
        except OSError as error:
            raise ModelFileError(f"cannot be opened: {error.strerror}", str(self.path)) from error
        try:
            self.infos = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._direct.close()
        self._file.close()

    def again(self) -> TensorFile:
        """The same file, opened once more: for another thread, or to stay open longer."""
        return TensorFile(self.path)

    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target` (same shape, any dtype and device) with a tensor, converting piece by piece."""
        info = self.infos[name]
        assert tuple(target.shape) == info.shape, (name, target.shape, info.shape)
        if target.device.type == "cpu" and target.dtype == info.dtype and target.is_contiguous():
            self._fill(info.offset, target.detach())
            return
        flat = target.detach().view(-1)
        size = info.dtype.itemsize
        piece = torch.empty(min(info.elements, _CHUNK), dtype=info.dtype)
        for start in range(0, info.elements, _CHUNK):
            part = piece[: min(_CHUNK, info.elements - start)]
            self._fill(info.offset + start * size, part)
            flat[start : start + len(part)].copy_(part)

    def read(self, name: str) -> Tensor:
        """A new CPU tensor, in the dtype of the file."""
        info = self.infos[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        self._fill(info.offset, tensor)
        return tensor

    def read_rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows start to end of a matrix as a new CPU tensor, in the dtype of the file."""
        info = self.infos[name]
        rows = torch.empty((end - start, *info.shape[1:]), dtype=info.dtype)
        self.read_rows_into(name, start, rows)
        return rows

    def read_rows_into(self, name: str, start: int, target: Tensor) -> None:
        """Fill `target`, in the file's dtype, with the rows from `start` on."""
        info = self.infos[name]
        row = info.elements // max(info.shape[0], 1) * info.dtype.itemsize
        self._fill(info.offset + start * row, target)

    def stream_rows(self, name: str, target: Tensor, start: int = 0) -> None:
        """The same, as `stream` reads."""
        info = self.infos[name]
        row = info.elements // max(info.shape[0], 1) * info.dtype.itemsize if info.shape else 0
        self.stream(info.offset + start * row, target)

    def stream(self, offset: int, target: Tensor) -> None:
        """Fill `target` with the file's bytes from `offset` on, and leave nothing in the system's page cache: for what
        is read again and again, from one thread."""
        memory = target.detach().view(-1).view(torch.uint8)
        if not self._direct.read_into(offset, memory.numpy()):
            self._fill(offset, memory)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), offset, len(memory), os.POSIX_FADV_DONTNEED)

    def read_part(self, name: str, start: int, target: Tensor) -> None:
        """Fill `target`, of any dtype and device, with the rows from `start` on."""
        target = target.detach()
        if target.device.type == "cpu" and target.dtype == self.infos[name].dtype and target.is_contiguous():
            self.read_rows_into(name, start, target)
        else:
            target.copy_(self.read_rows(name, start, start + len(target)))

    def forget(self, name: str, start: int = 0, end: int | None = None) -> None:
        """Let the system drop these rows of a tensor from its page cache, where it can be told."""
        if hasattr(os, "posix_fadvise"):
            info = self.infos[name]
            rows = info.shape[0] if info.shape else 1
            row = info.elements // max(rows, 1) * info.dtype.itemsize
            begin, size = info.offset + start * row, ((rows if end is None else end) - start) * row
            os.posix_fadvise(self._file.fileno(), begin, size, os.POSIX_FADV_DONTNEED)

    def _fill(self, offset: int, tensor: Tensor) -> None:
        if tensor.numel() == 0:
            return
        memory = tensor.view(-1).view(torch.uint8).numpy().data
        self._file.seek(offset)
        while memory:
            count = self._file.readinto(memory)  # at most 2 GiB at once on Linux
            if not count:
                raise ModelFileError("the file became shorter while it was read", str(self.path))
            memory = memory[count:]

    def _fail(self, message: str) -> ModelFileError:
        return ModelFileError(message, str(self.path), "fetch or save the model again")

    def _read_header(self) -> dict[str, TensorInfo]:
        if is_lfs_pointer(self.path):
            raise ModelFileError(LFS_POINTER, str(self.path), LFS_HINT)
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8 or length > _LONGEST_HEADER:
            raise self._fail(f"not a whole safetensors file: {size:,} bytes cannot hold its header")
        raw = self._file.read(length)
        try:
            header = parse_json(raw, _without_duplicates)
        except ValueError as error:
            raise self._fail(f"not a safetensors file: its header is not valid JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._fail("not a safetensors file: its header is not an object")
        texts = header.pop("__metadata__", None)
        if isinstance(texts, dict):
            self.metadata = {name: text for name, text in texts.items() if isinstance(text, str)}
        infos, spans = {}, []
        for name, entry in header.items():
            info, end = self._info(name, entry)
            infos[name] = info._replace(offset=info.offset + 8 + length)
            spans.append((info.offset, end, name))
        self._check_spans(sorted(spans), size - 8 - length)
        return infos

    def _info(self, name: str, entry: Any) -> tuple[TensorInfo, int]:
        try:
            kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
        except (TypeError, KeyError, ValueError) as error:
            raise self._fail(f"broken header: tensor {name!r} has no dtype, shape and offsets") from error
        if any(type(n) is not int or not 0 <= n < 2**63 for n in numbers) or len(shape) > 16:
            raise self._fail(f"broken header: tensor {name!r} has impossible sizes")
        if not isinstance(kind, str) or kind not in DTYPES:
            raise self._fail(f"tensor {name!r} has a number format that is not supported: {kind!r}")
        info = TensorInfo(DTYPES[kind], tuple(shape), begin)
        if begin + info.elements * info.dtype.itemsize != end:
            raise self._fail(f"broken header: tensor {name!r} has a shape that does not match its bytes")
        return info, end

    def _check_spans(self, spans: list[tuple[int, int, str]], available: int) -> None:
        reached = 0
        for begin, end, name in spans:
            if begin != reached:
                raise self._fail(
                    f"broken header: tensor {name!r} overlaps another or leaves a hole before it"
                )
            reached = end
        if reached > available:
            raise self._fail(
                f"the file is cut short: {reached - available:,} bytes of its tensors are missing"
            )
        if reached < available:
            raise self._fail(f"broken file: {available - reached:,} bytes belong to no tensor")


def save_file(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """As safetensors' own, whose file only its owner can read: this one has the rights of any new file."""
    path = Path(path)
    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    reference.save_file(tensors, path, metadata)
    path.chmod(rights)


def write_tensors(out: IO[bytes], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The bytes of a safetensors file, of tensors anywhere and laid out in any way; one at a time is copied."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_one_by_one(out, shapes, tensors.__getitem__, metadata)


def write_one_by_one(
    out: IO[bytes],
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    metadata: dict[str, str],
) -> None:
    """The bytes of a safetensors file whose tensors are made when their turn comes, and then let go."""
    header: dict[str, Any] = {"__metadata__": metadata}
    names, end = {dtype: name for name, dtype in DTYPES.items()}, 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for name in shapes:
        out.write(tensor_bytes(make(name)))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they stand in a file."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name appears twice")
    return content
