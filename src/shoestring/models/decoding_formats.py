"""How a model's weights may be kept for decoding. Torch-free, so that a wrong flag is told at once.

source: as `dtype` says, float32 if nothing does, on a CPU then as `float32` is decoded. file: as the file has them, a
GGUF file's own blocks among them. The others are rounded to when the model is loaded: int8 and int4 in blocks of 32
(`kernels.blocks`).
"""

from __future__ import annotations

from typing import Literal, get_args

from shoestring.core.errors import ConfigError

DecodingFormat = Literal["source", "file", "float32", "bf16", "int8", "int4"]
CacheFormat = Literal["source", "int8"]  # of keys and values: as the model computes, or in int8
FORMATS: tuple[str, ...] = get_args(DecodingFormat)


def check_cache(cache: str, memory: object) -> None:
    """Raises ConfigError for what keys and values cannot be kept in."""
    if cache not in get_args(CacheFormat):
        raise ConfigError(f"cache {cache!r}: keys and values are kept as the model computes, or in int8")
    if cache != "source" and memory is not None:
        raise ConfigError(f"cache {cache} is not had within a memory budget", hint="leave one of them out")


def check_format(weights: str, device: str, dtype: str) -> None:
    """Raises ConfigError for what cannot be served: an unknown format, one beside another number format, or one that is
    not computed on this device."""
    if weights == "source":
        return
    if weights not in FORMATS:
        known = ", ".join(name for name in FORMATS if name != "source")
        raise ConfigError(f"weights {weights!r}: a model in memory is decoded with weights in {known}")
    if dtype != "auto" and (weights, dtype.removeprefix("torch.")) != ("float32", "float32"):
        raise ConfigError(
            f"weights {weights} and dtype {dtype} both say in which numbers the model is kept", hint="give one of them"
        )
    if weights != "float32" and device not in ("auto", "cpu"):
        raise ConfigError(
            f"weights {weights} are multiplied on a CPU, not on {device}", hint="leave weights out there, or give dtype"
        )
