"""A GGUF file that was just written, read back by our own reader and compared with the folder that it was made of.

float32, float16 and bfloat16 must read back as the very numbers that rounding gives; blocks may be off by as much as
their format allows. Config, tokenizer and chat template must be the same. What differs is a fault of the export, and
there is no file then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from shoestring.core.errors import ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.gguf.architecture import Architecture, apart
from shoestring.export.gguf.encode import BOUNDS, SMALLEST, rounded
from shoestring.export.gguf.tensors import Source
from shoestring.export.rows import folder_rows
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_named
from shoestring.models.gguf.config import read_config
from shoestring.models.gguf.convert import plan_tensors
from shoestring.models.gguf.dequantize import dequantize
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.gguf.tokenizer import end_ids, read_tokenizer
from shoestring.nn.config import RopeConfig
from shoestring.nn.rope import scaled_frequencies

PROBE = (
    "The quick brown fox's 12 jumps over 3456 lazy dogs.\n\nWe'll see: DON'T?\tdef x_1(y):\n    return x**2  # 3.14\n"
    "  café, Zürich; 你好，世界。 Привет\r\n    \n\U0001f680 ...!!! 2024-01-02 https://a.b/c?d=e&f=1  \n"
)
_SAME = ("vocabulary", "width", "layers", "context", "attention", "feed_forward", "tied_head")


def check_model(
    path: Path, sources: Sequence[Source], architecture: Architecture, tokenizer: Tokenizer, ends: list[int]
) -> None:
    """Raises ModelFileError with what reads back differently. ends: the ids that the file says end an answer."""
    with GGUFFile(path) as file:
        check_tensors(file, sources, of_folder=architecture.experts is None)
        if architecture.experts is None:  # our reader has no mixtures of experts
            _check_config(file, architecture.config)
        found = read_tokenizer(file)
        if sorted(end_ids(file)) != sorted(ends):
            raise _differs("the tokens that end an answer")
    check_tokenizer(found, tokenizer)


def check_tensors(file: GGUFFile, sources: Sequence[Source], of_folder: bool) -> None:
    """of_folder: as a folder would hold it that is made of the file, rows turned back, not as it stands there."""
    if [*file.tensors] != [source.name for source in sources]:
        raise _differs("the list of tensors")
    for source in sources:
        info = file.tensors[source.name]
        if (info.shape, info.type) != (source.shape, source.kind):
            raise _differs(f"the shape or format of tensor {source.name}")
    remaining = list(sources)
    if of_folder:
        named = {source.folder_name: source for source in sources if source.folder_name}
        remaining = [source for source in sources if not source.folder_name]
        planned = plan_tensors(file, read_config(file))
        if {tensor.name for tensor in planned} != set(named):
            raise _differs("what tensors a folder would have")
        for tensor in planned:
            _compare(named[tensor.name], _together(tensor.slices(), named[tensor.name]))
    for source in remaining:
        _compare(source, _as_they_stand(file, source))


def check_tokenizer(found: Tokenizer, wanted: Tokenizer) -> None:
    """Same ids, roles and templates. Raises ModelFileError."""
    added = " ".join(token.content for token in list(wanted.backend.get_added_tokens_decoder().values())[:64])
    for text in (PROBE, added):
        for specials in (False, True):
            if found.encode(text, specials) != wanted.encode(text, specials):
                raise _differs("the token ids of a text")
    roles = [(one.bos_id, one.eos_id, one.pad_id, one.opens_with_bos()) for one in (found, wanted)]
    if wanted.eos_id is None:
        roles = [(role[0], None, *role[2:]) for role in roles]  # another token ends an answer, and is called eos there
    if roles[0] != roles[1]:
        raise _differs("what begins, ends or pads a text")
    if found.chat_template != wanted.chat_template:
        raise _differs("the chat template")


def decoded_parameters(file: GGUFFile, sources: Iterable[Source]) -> Iterator[tuple[str, np.ndarray]]:
    """(the decoder's name, float32 [rows, width], a vector as one row) of every parameter in an open file."""
    for source in sources:
        if source.constant is not None:
            continue
        with file.raw(file.tensors[source.name]) as raw:
            values = dequantize(raw, source.kind, source.shape[-1])
        values = apart(values, source.turned) if source.turned else values
        yield from zip(source.parameters, np.split(values, len(source.parameters)), strict=True)


def _together(slices: Iterable[np.ndarray], source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is read, and as many numbers of the folder, float32 of one shape."""
    (place,) = source.places
    waiting = np.empty(0, np.float32)
    folder = folder_rows(place)
    for part in slices:
        found = np.asarray(part).ravel()
        while len(waiting) < len(found):
            waiting = np.concatenate([waiting, next(folder).ravel()])
        yield found, waiting[: len(found)]
        waiting = waiting[len(found) :]


def _as_they_stand(file: GGUFFile, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    info, width, at = file.tensors[source.name], source.shape[-1], 0
    row_bytes = info.nbytes // math.prod(source.shape[:-1])
    with file.raw(info) as raw:
        for wanted in source.rows():
            end = at + len(wanted) * row_bytes
            with raw[at:end] as part:
                found = dequantize(part, source.kind, width)
            yield found.ravel(), wanted.ravel()
            at = end


def _compare(source: Source, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    lost = held = 0.0
    count = 0
    for found, wanted in pairs:
        exact = rounded(wanted, source.kind)
        if exact is not None:
            if not np.array_equal(found, exact):
                raise _differs(f"tensor {source.name}")
            continue
        difference = (found - wanted).astype(np.float64)
        lost += float(difference @ difference)
        held += float(np.square(wanted, dtype=np.float64).sum())
        count += len(wanted)
    if count and not math.sqrt(lost) <= BOUNDS[source.kind] * math.sqrt(held) + SMALLEST * math.sqrt(count):
        raise _differs(f"what {source.kind.name} leaves of tensor {source.name}")


def _check_config(file: GGUFFile, wanted: ModelConfig) -> None:
    values = read_config(file)
    found, _ = family_named(values["model_type"], str(file.path)).read_config(values, str(file.path))
    for name in _SAME:
        if getattr(found, name) != getattr(wanted, name):
            raise _differs(f"{name} of the config")
    if np.float32(found.norm_epsilon) != np.float32(wanted.norm_epsilon):
        raise _differs("norm_epsilon of the config")
    assert isinstance(found.position, RopeConfig) and isinstance(wanted.position, RopeConfig)
    turns = [scaled_frequencies(one, wanted.attention.rotary_width) for one in (found.position, wanted.position)]
    if not torch.allclose(turns[0][0], turns[1][0], rtol=1e-4, atol=0) or abs(turns[0][1] - turns[1][1]) > 1e-6:
        raise _differs("the rotary positions")


def _differs(what: str) -> ModelFileError:
    return ModelFileError(
        f"the file that was written does not read back as the model: {what} differs, so there is no file",
        hint="this is a fault of the export",
    )
