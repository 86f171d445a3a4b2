"""What `quantize` is told. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from shoestring.compression.text_config import TextConfig
from shoestring.core.config import load_config
from shoestring.core.given import GIVEN
from shoestring.core.yaml_document import YamlDocument
from shoestring.nn.quantized.config import PackedConfig

# Linears that share their inputs, in the order in which they run.
STAGES = (
    ("attention.query", "attention.key", "attention.value"),
    ("attention.output",),
    ("feed_forward.gate", "feed_forward.up"),
    ("feed_forward.down",),
)
LINEARS = tuple(name for stage in STAGES for name in stage)
WIDE = 8  # bits of the linears that are named so

Method = Literal["gptq", "rtn", "awq", "learned"]
Part = Literal["query", "key", "value", "output", "gate", "up", "down"]
PARTS: tuple[Part, ...] = get_args(Part)


class QuantizeConfig(TextConfig):
    """Built by `compression.job.quantize`."""

    bits: Literal[3, 4, 8] = Field(4, description="of a weight in the linears of the blocks")
    group: int = Field(32, ge=0, description="inputs that share a scale, such as 32, 64 or 128; 0: a whole row")
    wide: tuple[Part, ...] = Field((), description="linears of each block that are kept in 8 bits all the same")
    symmetric: bool = Field(True, description="zero in the middle of each group's grid, else a zero point for each")
    activations: Literal["int8"] | None = Field(None, description="int8: the linears' inputs in 8 bits for each token")
    method: Method = Field(
        "gptq",
        description="rtn: to nearest; by calibration text: gptq, arXiv 2210.17323, making up for the layers before too,"
        " 2504.02692; awq: inputs scaled, 2306.00978; learned: 2309.05516, from what gptq gives",
    )
    steps: int = Field(100, ge=1, description="learned: of each block, a batch of the text in each")
    damping: float = Field(0.01, gt=0, le=1, description="gptq: added to the diagonal, as a part of its mean")
    embedding: Literal[8] | None = Field(None, description="8: embedding and head too, in 8 bits by rows")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of what is not quantized: embedding, head, norms; auto: as the model has them"
    )

    @field_validator("wide")
    @classmethod
    def _in_order(cls, wide: tuple[Part, ...]) -> tuple[Part, ...]:
        """Each once, as they run: the same linears are the same settings."""
        return tuple(name for name in PARTS if name in wide)

    @model_validator(mode="after")
    def _goes_together(self) -> QuantizeConfig:
        if self.method != "rtn" and self.calibrate is None:
            raise ValueError(f"{self.method} needs text to calibrate with: give calibrate a source, or take method rtn")
        if self.method != "learned" and "steps" in self.model_fields_set:
            raise ValueError("steps are of method learned")
        if self.activations is not None and (self.bits, self.group, self.symmetric) != (8, 0, True):
            raise ValueError("activations int8 goes with bits 8, group 0 and a symmetric grid")
        if self.wide and self.bits == WIDE:
            raise ValueError("wide keeps linears in 8 bits, and bits 8 keeps all so: leave one of them out")
        if self.wide and self.method not in ("rtn", "gptq"):
            raise ValueError(f"wide goes with the methods rtn and gptq, not with {self.method}")
        return self

    @property
    def follows(self) -> bool:
        """Whether weights make up for what the quantized layers before them changed: the dense model runs beside."""
        return self.method in ("gptq", "learned")

    def packed(self, scale: Literal["float32", "bfloat16", "float16"]) -> PackedConfig:
        """How a linear is kept that is not in `wide`. scale: the format of scales."""
        return PackedConfig(
            bits=self.bits, group=self.group or None, symmetric=self.symmetric, activations=self.activations,
            scale=scale,
        )  # fmt: skip

    def each(self, packed: PackedConfig) -> dict[str, PackedConfig]:
        """How every linear of a block is kept. packed: those that are not in `wide`."""
        wide = packed.model_copy(update={"bits": WIDE})
        return {name: wide if name.rpartition(".")[2] in self.wide else packed for name in LINEARS}


def told(bits: int, group: int, wide: Sequence[str], embedding: int | None = None) -> str:
    """Such as "4 bits in groups of 32, value, down and embedding in 8"."""
    each = f"groups of {group}" if group else "whole rows"
    others = [*wide, *(["embedding"] if embedding else [])]
    named = ", ".join(others[:-1]) + (" and " if others[1:] else "") + "".join(others[-1:])
    return f"{bits} bits in {each}" + (f", {named} in {WIDE}" if others else "")


def quantize_config(given: dict[str, Any]) -> QuantizeConfig:
    """Of settings by name, those that are None left to their defaults. Raises ConfigError."""
    settings = {name: value for name, value in given.items() if value is not None}
    return load_config(QuantizeConfig, YamlDocument(settings, dict.fromkeys(settings, GIVEN.get()), GIVEN.get()))
