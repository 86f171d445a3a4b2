"""How streamed weights are kept on disk. Torch-free."""

from __future__ import annotations

from typing import Literal

from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config

# source: the model's own files as they are; the others are made once, beside a manifest (`offload.store`).
StoreFormat = Literal["source", "float32", "bfloat16", "int8", "int4", "nf4"]

QUANTIZED: dict[str, Int8Config | Int4Config | NF4Config] = {
    "int8": Int8Config(),
    "int4": Int4Config(),
    "nf4": NF4Config(),
}
