"""Configs of the parts of a decoder, one class per kind, told apart by `kind`.

Torch-free on purpose: a wrong recipe must be reported in well under a second, and importing torch alone
takes longer. The module that each config builds is named in its docstring.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config
from shoestring.nn.feed_forward_config import SwiGLUConfig as SwiGLUConfig


class LinearScaling(Config):
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(ge=1.0)


class Llama3Scaling(Config):
    """Long wavelengths stretched by `factor`, short ones kept, smooth in between (Llama 3.1)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(ge=1.0)
    low_frequency_factor: float = Field(1.0, gt=0)
    high_frequency_factor: float = Field(4.0, gt=0)
    original_context: int = Field(8192, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError("high_frequency_factor must be above low_frequency_factor")
        return self


class YarnScaling(Config):
    """Interpolation ramped over the rotary dimensions, with a temperature (YaRN, arXiv 2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(ge=1.0)
    original_context: int = Field(gt=0)
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    attention_factor: float | None = Field(None, gt=0, description="null: 0.1 ln(factor) + 1")
    truncate: bool = True


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="kind")]


class RopeConfig(Config):
    """Rotary positions (arXiv 2104.09864), built by `nn.rope.RotaryEmbedding`."""

    kind: Literal["rope"] = "rope"
    theta: float = Field(10_000.0, gt=1, description="base of the wavelengths")
    scaling: RopeScaling | None = None


class LearnedPositionConfig(Config):
    """One learned vector for each position up to the model's context, built by `nn.position.LearnedPositions`."""

    kind: Literal["learned"] = "learned"


class RopeLearnedConfig(RopeConfig):
    """Rotary positions in the attention and learned ones on the embedding, together (EfficientLM)."""

    kind: Literal["rope_learned"] = "rope_learned"  # type: ignore[assignment]


class NoPositionConfig(Config):
    """No positions: causal attention alone tells earlier from later (arXiv 2305.19466)."""

    kind: Literal["none"] = "none"


PositionConfig = Annotated[
    RopeConfig | LearnedPositionConfig | RopeLearnedConfig | NoPositionConfig, Field(discriminator="kind")
]


class DenseConfig(Config):
    """One matrix, built by `nn.linear.Linear`."""

    kind: Literal["dense"] = "dense"

    def rank_of(self, inputs: int, outputs: int) -> int | None:
        """None: not factorized."""
        return None

    def usual_rank(self, name: str, inputs: int, outputs: int) -> int | None:
        return None


class LowRankConfig(Config):
    """W ≈ B·A of rank r (arXiv 1406.3269's factorization), built by `nn.low_rank.LowRankLinear`.

    A matrix that two factors of this rank would not make smaller stays dense.
    """

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(gt=0)

    def rank_of(self, inputs: int, outputs: int) -> int | None:
        """The rank of the factors of a matrix of this shape; None where it stays dense."""
        return self.rank if self.rank * (inputs + outputs) < inputs * outputs else None

    def usual_rank(self, name: str, inputs: int, outputs: int) -> int | None:
        """Of the matrix of this name in a block, over all blocks."""
        return self.rank_of(inputs, outputs)


class FactorizedConfig(Config):
    """W ≈ B·A of a rank of its own for each matrix, as `compression.factorize` finds them; built by
    `nn.low_rank.LowRankLinear`."""

    kind: Literal["factorized"] = "factorized"
    names: tuple[str, ...] = Field(description="of matrices in a block, as attention.query")
    ranks: tuple[tuple[int, ...], ...] = Field(description="for each block, in the order of names; 0: one matrix")

    @model_validator(mode="after")
    def _whole(self) -> FactorizedConfig:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names has a matrix twice")
        if any(len(row) != len(self.names) or min(row, default=0) < 0 for row in self.ranks):
            raise ValueError(f"ranks needs {len(self.names)} whole numbers for each block, one for each of names")
        return self

    def rank_of(self, inputs: int, outputs: int) -> int | None:
        """None: ranks are not told by shape; `of_block` has them."""
        return None

    def of_block(self, index: int) -> dict[str, int]:
        """Ranks by name; what is not named is one matrix."""
        return {name: rank for name, rank in zip(self.names, self.ranks[index], strict=True) if rank}

    def usual_rank(self, name: str, inputs: int, outputs: int) -> int | None:
        """A rank at which factors would take what the matrices of this name take on average over all blocks; None: as
        much as whole ones."""
        if name not in self.names:
            return None
        rows = [row[self.names.index(name)] for row in self.ranks]
        total = sum(rank * (inputs + outputs) if rank else inputs * outputs for rank in rows)
        rank = -(-total // (len(rows) * (inputs + outputs)))
        return rank if rank * (inputs + outputs) < inputs * outputs else None


LinearConfig = Annotated[DenseConfig | LowRankConfig | FactorizedConfig, Field(discriminator="kind")]


class SharingConfig(Config):
    """Fewer blocks than layers: `unique_layers` blocks fill all positions (ALBERT, arXiv 1909.11942)."""

    unique_layers: int = Field(gt=0)
    order: Literal["cycle", "repeat"] = Field("cycle", description="cycle: 0 1 0 1; repeat: 0 0 1 1")


def block_order(layers: int, sharing: SharingConfig | None) -> tuple[int, ...]:
    """The block at each position: 0 1 2 0 1 2 for cycle, 0 0 1 1 2 2 for repeat."""
    if sharing is None:
        return tuple(range(layers))
    unique = sharing.unique_layers
    if sharing.order == "cycle":
        return tuple(position % unique for position in range(layers))
    return tuple(position * unique // layers for position in range(layers))


Recompute = Literal["none", "selective", "full"]


class GQAConfig(Config):
    """Grouped-query attention (arXiv 2305.13245), built by `nn.attention.GroupedQueryAttention`.

    `kv_heads == heads` is multi-head, `kv_heads == 1` multi-query attention.
    """

    kind: Literal["gqa"] = "gqa"
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_width: int = Field(gt=0)
    qkv_bias: bool = Field(False, description="biases on query, key and value (Qwen2)")
    output_bias: bool = False
    qk_norm: bool = Field(False, description="RMSNorm over each query and key head (Qwen3)")
    window: int | None = Field(None, gt=0, description="tokens that a token sees, itself included; null: all (Mistral)")

    @model_validator(mode="after")
    def _shapes(self) -> GQAConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even: rotary positions turn pairs")
        return self

    @property
    def rotary_width(self) -> int:
        """Components of a head that rotary positions turn."""
        return self.head_width

    def linears(self, width: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of each of its matrices."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return [(width, queries), (width, keys), (width, keys), (queries, width)]

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D, its matrices dense."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_width * self.qkv_bias + width * self.output_bias
        matrices = sum(inputs * outputs for inputs, outputs in self.linears(width))
        return matrices + biases + 2 * self.head_width * self.qk_norm
