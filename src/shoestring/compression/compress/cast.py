"""A copy of a model whose weights are all in bfloat16, some rows after others: it need not fit in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from shoestring.compression.read_block import check_finite
from shoestring.compression.tensor_stream import Streamed, join, rows_of, write_streamed
from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.families.registry import family_of
from shoestring.models.folder import read_generation_config, rounded_to, write_configs
from shoestring.models.place import Place
from shoestring.models.weight_files import WeightFiles
from shoestring.models.weights import TensorFile

_PART = "part.safetensors"


def cast(folder: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Write the new folder `out`; -> bytes of its weights. Raises ModelFileError for NaN, RunError as a full disk."""
    with WeightFiles(folder) as files, atomic_folder(out) as temporary:
        family = family_of(files.config)
        tensors = [
            Streamed(family.tensor_name(name), dtype, place.info.shape, functools.partial(_rows, place, dtype))
            for name, place in files.places.items()
        ]
        write_configs(temporary, files.config, dtype, read_generation_config(folder))
        Tokenizer.load(folder).save(temporary)
        write_streamed(temporary / _PART, tensors)
        with TensorFile(temporary / _PART) as part:
            total = join([part], temporary)
        (temporary / _PART).unlink()
    return total


def _rows(place: Place, dtype: torch.dtype) -> Iterable[Tensor]:
    for rows in rows_of(place.file, place.tensor):
        check_finite(rows, place)
        yield rounded_to(place.parameter, rows, dtype)
