"""A GGUF file as a decoder whose matrices keep the file's own blocks, for decoding on a CPU; no folder in between.

Formats with blocks of 32 are laid out anew, not rounded; those with blocks of 256 as `models.gguf.blocks` says. F32,
F16 and BF16 stay what they are.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor, nn

from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels.blocks import COLUMNS, below
from shoestring.kernels.decode import FloatMatrix, Matrix
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.decoding_weights import made_native
from shoestring.models.families.registry import family_named
from shoestring.models.folder import GenerationDefaults
from shoestring.models.gguf.blocks import BLOCKS, parts_of
from shoestring.models.gguf.config import read_config
from shoestring.models.gguf.convert import Source, sources
from shoestring.models.gguf.dequantize import SLICE_BYTES, read_slices
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.gguf.split import open_gguf
from shoestring.models.gguf.tokenizer import end_ids, read_tokenizer, token_id
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.decoding import DecodingEmbedding, DecodingHead, DecodingLinear

_FLOATS: dict[Kind, tuple[str, torch.dtype]] = {
    Kind.F32: ("<f4", torch.float32), Kind.F16: ("<f2", torch.float16), Kind.BF16: ("<i2", torch.bfloat16),
}  # fmt: skip


def load_gguf(path: str | Path) -> tuple[Decoder, Tokenizer, GenerationDefaults]:
    """What a GGUF file holds, or all parts of which it is one.

    Raises ModelFileError and TokenizerError as `convert` does, and ModelFileError for a matrix in a format that has to
    be made dense first.
    """
    with open_gguf(path) as file:
        values = read_config(file)
        found = {source.name: source for source in sources(file, values)}
        tokenizer = read_tokenizer(file)
        count = values["vocab_size"]
        bos, pad = (token_id(file, f"tokenizer.ggml.{name}_token_id", count) for name in ("bos", "padding"))
        defaults = GenerationDefaults(bos, tuple(end_ids(file)), pad)
        family = family_named(values["model_type"], str(path))
        config, _ = family.read_config(values, str(path))
        decoder = build(config, device="meta")
        ours = {name: found[family.tensor_name(name)] for name, _ in decoder.named_parameters()}
        _fill(decoder, file, ours)
    return made_native(decoder.eval()), tokenizer, defaults


def _fill(decoder: Decoder, file: GGUFFile, ours: dict[str, Source]) -> None:
    """ours: by the decoder's names."""
    width, head = decoder.config.width, decoder.head
    embedding = _matrix(file, ours["embedding.weight"])
    decoder.embedding = DecodingEmbedding(embedding, width)  # type: ignore[assignment]
    last = _matrix(file, ours["head.weight"]) if "head.weight" in ours else embedding
    decoder.head = DecodingHead(last, width, head.softcap)
    for home, module in [*decoder.named_modules()]:
        for name, child in [*module.named_children()]:
            if type(child) in (Linear, nn.Linear):
                bias = None if child.bias is None else _values(file, ours[f"{home}.{name}.bias"])
                matrix = _matrix(file, ours[f"{home}.{name}.weight"], bias)
                setattr(module, name, DecodingLinear(matrix, child.in_features))
    for parameter, _ in [*decoder.named_parameters()]:  # what is left: norms
        home, _, name = parameter.rpartition(".")
        setattr(decoder.get_submodule(home), name, nn.Parameter(_values(file, ours[parameter])))


def _values(file: GGUFFile, source: Source) -> Tensor:
    """A vector as float32."""
    return torch.from_numpy(np.concatenate([part.ravel() for part in read_slices(file, source.info)]))


def _matrix(file: GGUFFile, source: Source, bias: Tensor | None = None) -> Matrix:
    """Some rows after others, so that the memory taken besides is that of a slice."""
    info = source.info
    if info.type not in BLOCKS and info.type not in _FLOATS:
        known = ", ".join(sorted(kind.name for kind in (*BLOCKS, *_FLOATS)))
        raise file.error(
            f"tensor {info.name!r} is {info.type.name}, which is not multiplied as it is",
            hint=f"leave --weights out, or take --weights int8; as they are: {known}",
        )
    rows, width = info.shape
    row_bytes, least = info.nbytes // rows, math.lcm(COLUMNS, source.halves or 1)
    step = max(least, SLICE_BYTES // (4 * width) // least * least)
    pieces: list[Any] = []
    with file.raw(info) as raw:
        for row in range(0, rows, step):
            count = min(step, rows - row)
            order = _order(count, source.halves)
            with raw[row * row_bytes : (row + count) * row_bytes] as part:
                if info.type in _FLOATS:
                    pieces.append(_floats(part, info.type, width, order))
                else:
                    pieces.append(parts_of(part, info.type, width).matrix(order))
    return FloatMatrix(torch.cat(pieces), bias) if info.type in _FLOATS else below(pieces, bias)


def _floats(raw: memoryview, kind: Kind, width: int, order: np.ndarray | None) -> Tensor:
    stored, dtype = _FLOATS[kind]
    values = np.frombuffer(raw, stored).reshape(-1, width)
    values = values.copy() if order is None else values[order]
    return torch.from_numpy(values).view(dtype)


def _order(rows: int, halves: int) -> np.ndarray | None:
    """Rows 0, 2, 4, … of each head, then rows 1, 3, 5, …: what llama.cpp's converter interleaved."""
    if not halves:
        return None
    return np.arange(rows).reshape(-1, halves // 2, 2).swapaxes(1, 2).ravel()
