"""How much memory decoding and scoring take, resident or streamed. Torch-free."""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.plan.constants import FLOAT, LIBRARIES
from shoestring.plan.predict import block_numbers, stored_bytes, streamed_head_bytes
from shoestring.plan.shapes import Line, WeightFormat

_BESIDE_RESIDENT = 60_000_000  # of libraries, where nothing is trained


def predict_resident(config: ModelConfig, process: int, tokens: int) -> list[Line]:
    """Weights in float32, a cache of so many tokens, and what one pass over them takes."""
    return [
        ("process, before the model", process),
        ("libraries, loaded when first used", _BESIDE_RESIDENT),
        ("weights", config.parameter_count() * FLOAT),
        ("cache of keys and values", int(cache_numbers(config) * tokens * FLOAT)),
        ("one pass", (tokens * 8 * config.width + config.vocabulary) * FLOAT),
    ]


def predict_streamed(
    config: ModelConfig, weights: WeightFormat, source: str, slots: int, process: int, tokens: int
) -> list[Line]:
    """Lines of streamed decoding. tokens: of the cache, and of one pass that reads a prompt."""
    kept = source if weights == "source" else weights
    dense = kept in ("bfloat16", "float16")
    inner = 4 * getattr(config.feed_forward, "width", config.width) + 8 * config.width
    return [
        ("process, before the model", process),
        ("libraries, loaded when first used", LIBRARIES),
        (f"{slots} layers of {config.unique_layers} in {kept}",
         slots * stored_bytes(config, kept) + dense * FLOAT * block_numbers(config)),
        ("blocks of the head", streamed_head_bytes(config, source)),
        ("cache of keys and values", int(cache_numbers(config) * tokens * FLOAT)),
        ("one block's working set", inner * tokens * FLOAT),
        ("logits", 4 * config.vocabulary * FLOAT),
    ]  # fmt: skip
