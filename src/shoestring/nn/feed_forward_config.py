"""Configs of the feed-forward kinds: SwiGLU, GELU, squared ReLU and a mixture of SwiGLU experts. Torch-free.

Every kind gives its parameter count from the shapes alone (`parameters`), and how many of them one token
passes through (`active_parameters`), which is what a token costs: twice that in operations.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config


class SwiGLUConfig(Config):
    """Gated feed-forward (arXiv 2002.05202), built by `nn.feed_forward.SwiGLU`."""

    kind: Literal["swiglu"] = "swiglu"
    width: int = Field(gt=0, description="inner width F")
    bias: bool = False

    def linears(self, width: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrices that the model's linear kind may replace."""
        return [(width, self.width), (width, self.width), (self.width, width)]

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D: three D × F matrices."""
        return 3 * width * self.width + (2 * self.width + width) * self.bias

    def active_parameters(self, width: int) -> int:
        return self.parameters(width)


class GELUConfig(Config):
    """Two matrices with GELU between (arXiv 1606.08415), built by `nn.feed_forward.GELU`."""

    kind: Literal["gelu"] = "gelu"
    width: int = Field(gt=0, description="inner width F")
    bias: bool = False
    tanh: bool = Field(False, description="GELU's tanh approximation, which GPT-2 was trained with")

    def linears(self, width: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrices that the model's linear kind may replace."""
        return [(width, self.width), (self.width, width)]

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D: two D × F matrices."""
        return 2 * width * self.width + (self.width + width) * self.bias

    def active_parameters(self, width: int) -> int:
        return self.parameters(width)


class SquaredReLUConfig(Config):
    """Two matrices with max(x, 0)² between (Primer, arXiv 2109.08668), built by `SquaredReLU`."""

    kind: Literal["relu2"] = "relu2"
    width: int = Field(gt=0, description="inner width F")
    bias: bool = False

    def linears(self, width: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrices that the model's linear kind may replace."""
        return [(width, self.width), (self.width, width)]

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D: two D × F matrices."""
        return 2 * width * self.width + (self.width + width) * self.bias

    def active_parameters(self, width: int) -> int:
        return self.parameters(width)


class MoEConfig(Config):
    """A mixture of SwiGLU experts (arXiv 2101.03961, 2401.04088), built by `nn.moe.MixtureOfExperts`."""

    kind: Literal["moe"] = "moe"
    width: int = Field(gt=0, description="inner width F of one expert")
    experts: int = Field(gt=0)
    active: int = Field(2, gt=0, description="experts that each token passes through, k")
    shared_width: int = Field(
        0, ge=0, description="inner width of the expert that every token passes through; 0: none"
    )
    normalize: bool = Field(True, description="the k weights of a token are scaled to add up to 1")
    balance: Literal["loss", "bias", "none"] = Field(
        "loss",
        description="loss: Switch's load-balance loss (arXiv 2101.03961);"
        " bias: a bias on the choice alone, moved against the load (arXiv 2408.15664)",
    )
    balance_weight: float = Field(0.01, ge=0, description="factor of the load-balance loss")
    bias_rate: float = Field(0.001, gt=0, description="what the bias moves by at each step")

    @model_validator(mode="after")
    def _choice(self) -> MoEConfig:
        if self.active > self.experts:
            raise ValueError(f"active ({self.active}) must be at most experts ({self.experts})")
        return self

    def linears(self, width: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrices that the model's linear kind may replace: not the router."""
        widths = [self.width] * self.experts + [self.shared_width] * (self.shared_width > 0)
        return [shape for inner in widths for shape in SwiGLUConfig(width=inner).linears(width)]

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D: the experts, the shared one, the router and its bias."""
        return self._matrices(width, self.experts) + self.experts * (self.balance == "bias")

    def active_parameters(self, width: int) -> int:
        """Those that one token passes through: k experts, the shared one and the router."""
        return self._matrices(width, self.active)

    def _matrices(self, width: int, experts: int) -> int:
        return 3 * width * (experts * self.width + self.shared_width) + width * self.experts


FeedForwardConfig = Annotated[
    SwiGLUConfig | GELUConfig | SquaredReLUConfig | MoEConfig, Field(discriminator="kind")
]
