"""What `quantize` is told. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.compression.text_config import TextConfig
from shoestring.core.config import load_config
from shoestring.core.given import GIVEN
from shoestring.core.yaml_document import YamlDocument
from shoestring.nn.quantized.config import PackedConfig

Method = Literal["gptq", "rtn", "awq", "learned"]


class QuantizeConfig(TextConfig):
    """Built by `compression.job.quantize`."""

    bits: Literal[3, 4, 8] = Field(4, description="of a weight in the linears of the blocks")
    group: int = Field(32, ge=0, description="inputs that share a scale, such as 32, 64 or 128; 0: a whole row")
    symmetric: bool = Field(True, description="zero in the middle of each group's grid, else a zero point for each")
    activations: Literal["int8"] | None = Field(None, description="int8: the linears' inputs in 8 bits for each token")
    method: Method = Field(
        "gptq",
        description="rtn: to nearest; by calibration text: gptq, arXiv 2210.17323, making up for the layers before too,"
        " 2504.02692; awq: inputs scaled, 2306.00978; learned: 2309.05516, from what gptq gives",
    )
    steps: int = Field(100, ge=1, description="learned: of each block, a batch of the text in each")
    damping: float = Field(0.01, gt=0, le=1, description="gptq: added to the diagonal, as a part of its mean")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of what is not quantized: embedding, head, norms; auto: as the model has them"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> QuantizeConfig:
        if self.method != "rtn" and self.calibrate is None:
            raise ValueError(f"{self.method} needs text to calibrate with: give calibrate a source, or take method rtn")
        if self.method != "learned" and "steps" in self.model_fields_set:
            raise ValueError("steps are of method learned")
        if self.activations is not None and (self.bits, self.group, self.symmetric) != (8, 0, True):
            raise ValueError("activations int8 goes with bits 8, group 0 and a symmetric grid")
        return self

    @property
    def follows(self) -> bool:
        """Whether weights make up for what the quantized layers before them changed: the dense model runs beside."""
        return self.method in ("gptq", "learned")

    def packed(self, scale: Literal["float32", "bfloat16", "float16"]) -> PackedConfig:
        """How a linear is kept. scale: the format of scales."""
        return PackedConfig(
            bits=self.bits, group=self.group or None, symmetric=self.symmetric, activations=self.activations,
            scale=scale,
        )  # fmt: skip


def quantize_config(given: dict[str, Any]) -> QuantizeConfig:
    """Of settings by name, those that are None left to their defaults. Raises ConfigError."""
    settings = {name: value for name, value in given.items() if value is not None}
    return load_config(QuantizeConfig, YamlDocument(settings, dict.fromkeys(settings, GIVEN.get()), GIVEN.get()))
