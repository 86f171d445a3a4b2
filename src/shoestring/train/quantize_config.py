"""Quantization-aware training, in a recipe: in which few bits the trained weights will be kept. Torch-free."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config
from shoestring.nn.quantized.config import PackedConfig


def switched(value: Any) -> Any:
    """true and false as the setting's name suggests, and a number of bits alone."""
    if isinstance(value, bool):
        return {} if value else None
    return {"bits": value} if isinstance(value, int) else value


class QuantizeSection(Config):
    """The grid that the blocks' linears are rounded to for each product: that of `quantize --method rtn` with the same
    settings. Applied by `models.fake_quantization`."""

    bits: Literal[3, 4, 8] = Field(4, description="of a weight in the linears of the blocks")
    group: int = Field(32, ge=0, description="inputs that share a scale, such as 32, 64 or 128; 0: a whole row")
    symmetric: bool = Field(True, description="zero in the middle of each group's grid, else a zero point for each")
    activations: Literal["int8"] | None = Field(None, description="int8: the linears' inputs in 8 bits for each token")

    @model_validator(mode="after")
    def _goes_together(self) -> QuantizeSection:
        if self.activations is not None and (self.bits, self.group, self.symmetric) != (8, 0, True):
            raise ValueError("activations int8 goes with bits 8, group 0 and a symmetric grid")
        return self

    def packed(self) -> PackedConfig:
        """How a linear will be kept; scales in bfloat16, as `quantize` has them beside float32 and bfloat16."""
        return PackedConfig(
            bits=self.bits, group=self.group or None, symmetric=self.symmetric, activations=self.activations,
        )  # fmt: skip

    def command(self, model: Path, out: Path, stored: str) -> str:
        """What writes the codes that were trained. stored: the format of the weights that the run began from, in which
        embedding, head and norms are kept again: float16 is not, its scales would be others."""
        words = ["shoestring", "quantize", str(model), "--bits", str(self.bits), "--group", str(self.group)]
        words += ["--method", "rtn", *(() if self.symmetric else ("--asymmetric",))]
        words += [] if self.activations is None else ["--activations", self.activations]
        words += [] if stored == "float32" else ["--dtype", "bfloat16"]
        return shlex.join([*words, "--out", str(out)])

    def told(self) -> str:
        """For a person."""
        each = f"groups of {self.group}" if self.group else "whole rows"
        kind = "" if self.symmetric else ", asymmetric"
        inputs = "" if self.activations is None else ", and their inputs to 8 bits"
        return f"weights of the blocks' linears rounded to {self.bits} bits in {each}{kind}{inputs}, in every product"
