"""The config of a decoder: sizes, one config for each kind of part, and options. Torch-free.

Parts are told apart by `kind`; an attention without one is `gqa`, a feed-forward `swiglu`, positions
`rope`. Combinations that make no sense are refused here, with the reason. `parameters()` counts from the
shapes alone, so that a recipe can be sized and refused before torch is imported; a test holds it to what
the builder really allocates.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config, usual_kind
from shoestring.nn.adapter_config import BottleneckConfig, InputAdapterConfig
from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.config import (
    DenseConfig,
    FactorizedConfig,
    GQAConfig,
    LearnedPositionConfig,
    LinearConfig,
    PositionConfig,
    RopeConfig,
    RopeLearnedConfig,
    SharingConfig,
    block_order,
)
from shoestring.nn.feed_forward_config import FeedForwardConfig, SwiGLUConfig
from shoestring.nn.memory.config import MemoryBankConfig

AttentionPart = Annotated[
    Annotated[GQAConfig | MLAConfig | MTLAConfig, Field(discriminator="kind")], usual_kind("gqa")
]
FeedForwardPart = Annotated[FeedForwardConfig, usual_kind("swiglu")]
PositionPart = Annotated[PositionConfig, usual_kind("rope")]
LinearPart = Annotated[LinearConfig, usual_kind("dense")]


class ModelConfig(Config):
    """A pre-norm decoder, built by `models.builder.build`."""

    vocabulary: int = Field(gt=0, description="rows V of the embedding")
    width: int = Field(gt=0, description="model width D")
    layers: int = Field(gt=0)
    context: int = Field(gt=0, description="longest sequence that the model is meant for, in tokens")
    attention: AttentionPart
    feed_forward: FeedForwardPart
    position: PositionPart = RopeConfig()
    block: Literal["sequential", "reversible"] = Field(
        "sequential", description="reversible: activation memory that does not grow with depth (arXiv 2001.04451)"
    )
    sharing: SharingConfig | None = Field(None, description="fewer blocks than layers (arXiv 1909.11942)")
    linear: LinearPart = Field(DenseConfig(), description="kind of the matrices inside blocks")
    input_adapter: InputAdapterConfig | None = Field(
        None, description="adds another model's embeddings to the input (EfficientLM)"
    )
    bottleneck: BottleneckConfig | None = Field(
        None, description="transfer adapters inside blocks (arXiv 1902.00751)"
    )
    memory: MemoryBankConfig | None = Field(
        None, description="some blocks search past keys and values (Memorizing Transformers, arXiv 2203.08913)"
    )
    embedding_convolution: int | None = Field(
        None, ge=2, le=16,
        description="tokens, itself included, whose embeddings each token's is mixed from, component by component"
        " (as in arXiv 2109.08668)",
    )  # fmt: skip
    value_residual: bool = Field(
        False, description="the first layer's values join those of every other (arXiv 2410.17897)"
    )
    norm_epsilon: float = Field(1e-5, gt=0)
    tied_head: bool = Field(True, description="the output head is the embedding matrix (arXiv 1608.05859)")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of fresh weights")
    zero_init_output: bool = Field(
        False, description="projections into the residual stream start at zero (Fixup, arXiv 1901.09321)"
    )
    logit_softcap: float | None = Field(
        None, gt=0, description="logits become cap·tanh(logits/cap) (Gemma 2, arXiv 2408.00118)"
    )

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.sharing is not None and self.sharing.unique_layers > self.layers:
            raise ValueError(
                f"sharing.unique_layers ({self.sharing.unique_layers}) must be at most layers ({self.layers})"
            )
        if self.embedding_convolution is not None and isinstance(self.attention, MTLAConfig):
            raise ValueError(
                "embedding_convolution keeps every token's embedding in the cache, where attention of kind mtla has one"
                " place for several: use another kind"
            )
        if self.memory is not None:
            if not isinstance(self.attention, GQAConfig):
                raise ValueError(
                    f"memory searches keys and values, which attention of kind {self.attention.kind} does not keep:"
                    " use gqa"
                )
            if max(self.memory.layers) >= self.unique_layers:
                raise ValueError(
                    f"memory.layers ({list(self.memory.layers)}) must be below {self.unique_layers}, the number of"
                    " blocks"
                )
        if self.value_residual:
            if not isinstance(self.attention, GQAConfig):
                raise ValueError(
                    f"value_residual mixes values, which attention of kind {self.attention.kind} does not keep: use gqa"
                )
            if self.block == "reversible":
                raise ValueError(
                    "value_residual keeps a tensor of the first layer to the end, which reversible blocks exist to"
                    " avoid: use block sequential"
                )
            if self.memory is not None:
                raise ValueError("value_residual and memory exclude each other: a memory holds a layer's own values")
        return self

    @model_validator(mode="after")
    def _factorized(self) -> ModelConfig:
        if not isinstance(self.linear, FactorizedConfig):
            return self
        matrices = self.named_matrices()
        if len(self.linear.ranks) != self.unique_layers:
            raise ValueError(f"linear.ranks has {len(self.linear.ranks)} rows for {self.unique_layers} blocks")
        for column, name in enumerate(self.linear.names):
            if name not in matrices:
                known = ", ".join(matrices) or "none in blocks of these kinds"
                raise ValueError(f"linear.names: {name!r} cannot be factorized by name; there are: {known}")
            if max(row[column] for row in self.linear.ranks) > min(matrices[name]):
                raise ValueError(f"linear.ranks: above {min(matrices[name])}, the full rank of {name}")
        return self

    def named_matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the matrices of a block by name, where each stands alone: in grouped-query attention and
        SwiGLU."""
        found: dict[str, tuple[int, int]] = {}
        if isinstance(self.attention, GQAConfig):
            names = ("query", "key", "value", "output")
            shapes = self.attention.linears(self.width)
            found |= {f"attention.{name}": shape for name, shape in zip(names, shapes, strict=True)}
        if isinstance(self.feed_forward, SwiGLUConfig):
            shapes = self.feed_forward.linears(self.width)
            found |= {f"feed_forward.{name}": shape for name, shape in zip(("gate", "up", "down"), shapes, strict=True)}
        return found

    def factors_more(self, part: str = "") -> int:
        """Parameters that matrices of ranks of their own have more than whole ones (less: below zero), over all blocks.
        part: the beginning of their names."""
        if not isinstance(self.linear, FactorizedConfig):
            return 0
        shapes, more = self.named_matrices(), 0
        for index in range(self.unique_layers):
            for name, rank in self.linear.of_block(index).items():
                inputs, outputs = shapes[name]
                more += (rank * (inputs + outputs) - inputs * outputs) * name.startswith(part)
        return more

    @property
    def unique_layers(self) -> int:
        """Blocks that exist; with sharing fewer than the positions they fill."""
        return self.layers if self.sharing is None else self.sharing.unique_layers

    @property
    def searching_layers(self) -> list[int]:
        """Positions whose block searches the memory."""
        searching = () if self.memory is None else self.memory.layers
        return [at for at, block in enumerate(block_order(self.layers, self.sharing)) if block in searching]

    def parameters(self) -> dict[str, int]:
        """Parameters by part; the values add up to the whole model. A shared block counts once."""
        parts = {
            "embedding": self.vocabulary * self.width,
            "positions": self.context * self.width * self.has_learned_positions,
            "convolution": ((self.embedding_convolution or 1) - 1) * self.width,
            "input adapter": 0 if self.input_adapter is None else self.input_adapter.parameters(self.width),
            "attention": self.unique_layers * (self._part(self.attention) + self.value_residual)
            + self.factors_more("attention."),
            "feed-forward": self.unique_layers * self._part(self.feed_forward) + self.factors_more("feed_forward."),
            "bottlenecks": 0
            if self.bottleneck is None
            else 2 * self.unique_layers * self.bottleneck.parameters(self.width),
            "norms": (2 * self.unique_layers + 1) * self.width,
            "memory": 0 if self.memory is None else self.memory.parameters(self.attention.heads),
            "head": 0 if self.tied_head else self.vocabulary * self.width,
        }
        optional = ("positions", "convolution", "input adapter", "bottlenecks", "memory")
        return {name: count for name, count in parts.items() if count or name not in optional}

    def parameter_count(self) -> int:
        return sum(self.parameters().values())

    @property
    def has_learned_positions(self) -> bool:
        return isinstance(self.position, (LearnedPositionConfig, RopeLearnedConfig))

    def _part(self, part: Any) -> int:
        """Parameters of one attention or feed-forward, its matrices of the configured linear kind."""
        count = part.parameters(self.width)
        if isinstance(self.linear, DenseConfig):
            return count
        for inputs, outputs in part.linears(self.width):
            rank = self.linear.rank_of(inputs, outputs)
            if rank is not None:
                count += rank * (inputs + outputs) - inputs * outputs
        return count
