"""How much memory a streamed step will take: buffers, inputs of layers, one block's work, adapters. Torch-free."""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.offload.config import StoreFormat
from shoestring.train.predict import (
    FLOAT,
    Job,
    Line,
    block_numbers,
    head_rows,
    libraries_line,
    trained_line,
    work_lines,
)

_BYTES: dict[str, float] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 5 / 8, "nf4": 4.25 / 8}


def stored_bytes(config: ModelConfig, kept: str) -> int:
    """Bytes of one layer on disk. kept: a store's format, or the source's dtype."""
    return int(block_numbers(config) * _BYTES[kept])


def head_bytes(config: ModelConfig, source: str, integers: bool = False) -> int:
    """Of two blocks as they come, and one in float32 where they are of halves; integers: of codes, and all scales."""
    weights = head_rows(config.width) * config.width
    if integers:
        return 2 * weights + FLOAT * config.vocabulary
    return int(weights * (2 * _BYTES[source] + (FLOAT if source != "float32" else 0)))


def predict(job: Job, weights: StoreFormat, source: str, slots: int = 2, spilled: bool = False) -> list[Line]:
    """Lines of a streamed step. source: dtype of the model's files, as "bfloat16". spilled: inputs go to the disk."""
    config = job.config
    kept = source if weights == "source" else weights
    dense = kept in ("bfloat16", "float16")
    buffers = slots * stored_bytes(config, kept) + dense * FLOAT * block_numbers(config)
    return [
        ("process, before the model", job.process),
        libraries_line(job),
        (f"{slots} layers of {config.unique_layers} in {kept}" + (", one in float32" if dense else ""), buffers),
        trained_line(job),
        ("inputs of the layers", (2 if spilled else config.layers) * job.tokens * config.width * FLOAT),
        *work_lines(job, True, job.tokens, head_bytes(config, source, job.integers)),
    ]


def predict_decoding(
    config: ModelConfig, weights: StoreFormat, source: str, slots: int, process: int, tokens: int
) -> list[Line]:
    """Lines of streamed decoding. tokens: of the cache, and of one pass that reads a prompt."""
    inner = 4 * getattr(config.feed_forward, "width", config.width) + 8 * config.width
    job = Job(config, tokens, tokens, 0, 0, 0, process)
    return [
        *predict(job, weights, source, slots)[:3],
        ("blocks of the head", head_bytes(config, source)),
        ("cache of keys and values", int(cache_numbers(config) * tokens * FLOAT)),
        ("one block's working set", inner * tokens * FLOAT),
        ("logits", 4 * config.vocabulary * FLOAT),
    ]
