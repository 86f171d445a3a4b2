"""How streamed weights are kept on disk. Torch-free."""

from __future__ import annotations

from typing import Literal, get_args

from shoestring.core.errors import ConfigError
from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config

# source: the model's own files as they are; the others are made once, beside a manifest (`offload.store`).
StoreFormat = Literal["source", "float32", "bfloat16", "int8", "int4", "nf4"]

QUANTIZED: dict[str, Int8Config | Int4Config | NF4Config] = {
    "int8": Int8Config(),
    "int4": Int4Config(),
    "nf4": NF4Config(),
}


def store_format(weights: str) -> StoreFormat:
    """How layers that are streamed are kept, for `--weights` beside a memory budget. Raises ConfigError."""
    asked = "bfloat16" if weights == "bf16" else weights
    for known in get_args(StoreFormat):
        if asked == known:
            return known
    raise ConfigError(
        f"weights {weights} are not had within a memory budget", hint=f"there: {', '.join(get_args(StoreFormat))}"
    )
