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


QuantizedConfig = Annotated[Int8Config | Int4Config | NF4Config, Field(discriminator="kind")]
