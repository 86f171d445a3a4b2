"""Configs of quantized linears, told apart by `kind`. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shoestring.core.config import Config


class Int8Config(Config):
    """8 bits, one scale for each output row, built by `nn.quantized.int8.Int8Linear`.

    compute: what products run in. "float" changes nothing but the weights; "int8" rounds the rows of activations and
    gradients too, for products of integers.
    """

    kind: Literal["int8"] = "int8"
    compute: Literal["float", "int8"] = "float"


class Int4Config(Config):
    """4 bits, evenly spaced between the lowest and highest weight of each group, built by `four_bit.Int4Linear`."""

    kind: Literal["int4"] = "int4"
    group: int = Field(32, ge=8, multiple_of=2, description="inputs that share a scale and a lowest value")


class NF4Config(Config):
    """4 bits at the quantiles of a normal distribution (QLoRA, arXiv 2305.14314), built by `four_bit.NF4Linear`."""

    kind: Literal["nf4"] = "nf4"
    group: int = Field(64, ge=8, multiple_of=2, description="inputs that share a scale")


class PackedConfig(Config):
    """2 to 8 bits on an even grid for each group of inputs, laid out as compressed-tensors has them; built by
    `packed.PackedLinear`.

    group: inputs that share a scale; None is a whole row. symmetric: zero is the middle of the grid, else each group
    has a zero point of its own. activations: "int8" rounds each row of the inputs to 8 bits as well. scale: the format
    in which scales are kept.
    """

    kind: Literal["packed"] = "packed"
    bits: int = Field(4, ge=2, le=8)
    group: int | None = Field(32, ge=1)
    symmetric: bool = True
    activations: Literal["int8"] | None = None
    scale: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def groups(self, inputs: int) -> int:
        """Of a row of so many inputs."""
        return 1 if self.group is None else inputs // self.group


class FakeQuantizedConfig(Config):
    """Weights that are trained as floats and rounded to `grid` for each product, built by `fake.FakeQuantized`."""

    kind: Literal["fake"] = "fake"
    grid: PackedConfig = PackedConfig()


QuantizedConfig = Annotated[Int8Config | Int4Config | NF4Config, Field(discriminator="kind")]
