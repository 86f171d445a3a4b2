"""The output head in int8 for products of integers: made once, in the cache, beside the stores of layers.

    FOLDER/manifest.json       SHA-256 of the source, bytes and CRC-32 of what is in the file
    FOLDER/head.safetensors    codes int8 [V, D] and scale [V], as `Int8Linear` has them

A quarter of the bytes of float32 is read at each step, and nothing is rounded again. It appears whole or not at all.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.core.files import atomic_folder, cache_dir, remove_stale
from shoestring.core.foreign import read_json
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.resolve import Say
from shoestring.models.weight_files import Place
from shoestring.models.weights import TensorFile
from shoestring.nn.head_blocks import block_rows
from shoestring.nn.quantized.int8 import quantize_rows

_FILE, _MANIFEST, _VERSION = "head.safetensors", "manifest.json", 1


@dataclass(frozen=True)
class HeadFile:
    """codes: CRC-32 of all codes."""

    path: Path
    codes: int

    def check(self, found: int) -> None:
        """Raises ModelFileError for codes with another checksum."""
        if found != self.codes:
            raise _broken(self.path.parent, f"{_FILE} is corrupted: its content does not match its checksum")


def open_head(place: Place, source: Fingerprint, say: Say | None = None) -> HeadFile:
    """The int8 copy of the head in `place`, made if it is not there. Raises ModelFileError, RunError (full disk)."""
    folder = cache_dir() / "stores" / f"{source.key}-int8-head"
    if not (folder / _MANIFEST).is_file():
        _make(folder, place, source, say)
    path = folder / _FILE
    try:
        manifest = read_json(folder / _MANIFEST)
        size, codes, scale = (int(manifest[name]) for name in ("bytes", "codes", "scale"))
        if (manifest["version"], manifest["source"]) != (_VERSION, source.digest):
            raise ValueError("it was made by another version, or from other weights")
        if path.stat().st_size != size:
            raise ValueError(f"{_FILE} has {path.stat().st_size:,} bytes instead of {size:,}")
        with TensorFile(path) as content:
            if content.infos["codes"].shape != place.info.shape or _sum(content.read("scale")) != scale:
                raise ValueError(f"{_FILE} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(folder, str(error)) from error
    return HeadFile(path, codes)


def _broken(folder: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"the int8 copy of the head is broken: {what}", str(folder),
        f"delete the folder {folder}: it is made again from the model",
    )  # fmt: skip


def _sum(tensor: Tensor, before: int = 0) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, before)


def _make(folder: Path, place: Place, source: Fingerprint, say: Say | None) -> None:
    """Block by block, so that it takes little memory."""
    if say is not None:
        say(f"making an int8 copy of the head, once: {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    vocabulary, width = place.info.shape
    numbers, rows = vocabulary * width, block_rows(width)
    header = {
        "codes": {"dtype": "I8", "shape": [vocabulary, width], "data_offsets": [0, numbers]},
        "scale": {"dtype": "F32", "shape": [vocabulary], "data_offsets": [numbers, numbers + 4 * vocabulary]},
    }
    text = json.dumps(header).encode()
    scales, codes_sum = torch.empty(vocabulary), 0
    with atomic_folder(folder) as temporary:
        with open(temporary / _FILE, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for first in range(0, vocabulary, rows):
                weight = place.file.read_rows(place.tensor, first, min(first + rows, vocabulary))
                place.file.forget(place.tensor, first, first + len(weight))
                codes, scales[first : first + rows] = quantize_rows(weight.float())
                codes_sum = _sum(codes, codes_sum)
                file.write(codes.numpy().data)
            file.write(scales.numpy().data)
        content = {
            "version": _VERSION,
            "source": source.digest,
            "bytes": (temporary / _FILE).stat().st_size,
            "codes": codes_sum,
            "scale": _sum(scales),
        }
        (temporary / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
