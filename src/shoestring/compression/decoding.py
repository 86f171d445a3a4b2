"""How fast a folder is decoded, and what its weights take in memory then: one text, token by token, on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from shoestring.compression.report import Decoding
from shoestring.core.machine import total_memory_bytes
from shoestring.kernels import allocator
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.decoding_weights import load_for_decoding

_PROMPT, _TOKENS = 8, 24
_SHARE = 0.4  # of the memory that is there, which a model in float32 may take
_FLOAT = 4


def decode_both(
    before: Path, after: Path, config: ModelConfig, memory: int | None, weights: str = "file"
) -> tuple[Decoding | None, Decoding | None]:
    """The model in float32, and the smaller one as its files have it, or with other `weights`; None where the first
    does not fit, or the model looks at too few tokens. memory: bytes that the process may take."""
    room = (total_memory_bytes() if memory is None else memory) * _SHARE
    if config.parameter_count() * _FLOAT > room or config.context < _PROMPT + 2:
        return None, None
    try:
        return decode(before, "float32"), decode(after, weights)
    except RuntimeError as error:
        if allocator.refused(error) is None:
            raise
        return None, None


@torch.no_grad()
def decode(folder: Path, weights: str) -> Decoding:
    """weights: float32, file, int8 or another of the formats."""
    decoder = load_for_decoding(folder, weights)
    tokens = min(_TOKENS, decoder.config.context - _PROMPT)
    cache = decoder.new_cache(1, _PROMPT + tokens)
    seconds = []
    ids_BT = torch.arange(1, _PROMPT + 1).remainder(decoder.config.vocabulary).unsqueeze(0)
    for _ in range(tokens):
        started = time.perf_counter()
        logits = decoder.head(decoder(ids_BT, cache=cache)[0][:, -1:])
        ids_BT = logits.argmax(-1)
        seconds.append(time.perf_counter() - started)
    return Decoding(weights, 1 / sorted(seconds[1:])[len(seconds[1:]) // 2], _held(decoder))


def _held(decoder: Decoder) -> int:
    """Bytes of parameters and buffers, each memory once."""
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in [*decoder.parameters(), *decoder.buffers()]
    }
    return sum(found.values())
