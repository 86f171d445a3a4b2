"""Blocks without numbers, of whatever kinds a config names: the tables of `models.builder` once more. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.config import GQAConfig
from shoestring.nn.feed_forward_config import GELUConfig, MoEConfig, SquaredReLUConfig, SwiGLUConfig
from shoestring.plan.adapters import Adapted, Base, FourBitBase, Frozen, Int8Base, LowRankBase, PackedBase
from shoestring.plan.attention import Context, GroupedQueryAttention, MemoryAttention, ValueResidualAttention
from shoestring.plan.feed_forward import Activated, MixtureOfExperts, SwiGLU
from shoestring.plan.latent import LatentAttention, TemporalLatentAttention
from shoestring.plan.parts import Linear, LowRank, Norm, Part, activate, add, parameter, recomputing
from shoestring.plan.shapes import Training
from shoestring.plan.tape import FLOAT, HALF, Tape, Tensor

_GROUPS = {"int4": 32, "nf4": 64}  # weights that share a scale (`nn.quantized.config`)


class Maker:
    """Makes the parts of one block, each under its name there."""

    def __init__(self, tape: Tape, config: ModelConfig, training: Training):
        self.tape, self.config, self.training = tape, config, training
        self.packed = dict(training.packed)

    def weight(self, *shape: int) -> Tensor:
        """One that is small, or outside blocks."""
        self.tape.stored += math.prod(shape) * FLOAT
        return parameter(self.tape, shape, self.training.full)

    def matrix(self, outputs: int, inputs: int) -> Tensor:
        """One of a block, which may be streamed."""
        self.tape.matrices += outputs * inputs * FLOAT
        return parameter(self.tape, (outputs, inputs), self.training.full)

    def norm(self, width: int) -> Norm:
        return Norm(self.weight(width))

    def dense(self, name: str, inputs: int, outputs: int, bias: bool = False) -> Part:
        """A matrix that the config's kind of linear does not replace."""
        if self.training.full:
            return Linear(inputs, outputs, self.matrix(outputs, inputs), self.weight(outputs) if bias else None)
        return self._frozen(name, self._base(name, inputs, outputs, bias))

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = False) -> Part:
        rank = self.config.linear.usual_rank(name, inputs, outputs)
        if rank is None:
            return self.dense(name, inputs, outputs, bias)
        if self.training.full:
            return LowRank(
                Linear(inputs, rank, self.matrix(rank, inputs)),
                Linear(rank, outputs, self.matrix(outputs, rank), self.weight(outputs) if bias else None),
            )
        if self.training.frozen in ("float32", "bfloat16"):
            base: Base = LowRankBase(Base(inputs, rank), Base(rank, outputs, bias=bias))
        else:
            base = self._base(name, inputs, outputs, bias)  # quantized as one matrix
        return self._frozen(name, base)

    def _base(self, name: str, inputs: int, outputs: int, bias: bool = False) -> Base:
        frozen = self.training.frozen
        if name in self.packed:
            return PackedBase(inputs, outputs, self.packed[name], bias)
        if frozen == "int8":
            return Int8Base(inputs, outputs, bias, self.training.integers)
        if frozen in _GROUPS:
            return FourBitBase(inputs, outputs, _GROUPS[frozen], frozen == "int4", bias)
        return Base(inputs, outputs, HALF if frozen == "bfloat16" else FLOAT, bias)

    def _frozen(self, name: str, base: Base) -> Part:
        training = self.training
        adapted = bool(training.rank) and (training.adapted is None or name in training.adapted)
        if not adapted and base.size == HALF:
            base = Base(base.inputs, base.outputs, FLOAT, base.bias)  # only those under adapters are halved
        self.tape.matrices += base.stored
        self.tape.stored += base.bias * base.outputs * FLOAT
        if adapted:
            return Adapted(self.tape, base, training.rank, training.dora, training.dropout)
        if isinstance(base, (Int8Base, FourBitBase, PackedBase)):
            return Frozen(base)
        if isinstance(base, LowRankBase):
            return LowRank(_plain(self.tape, base.first), _plain(self.tape, base.second))
        return _plain(self.tape, base)


def _plain(tape: Tape, base: Base) -> Linear:
    weight, bias = (parameter(tape, shape, False) for shape in ((base.outputs, base.inputs), (base.outputs,)))
    return Linear(base.inputs, base.outputs, weight, bias if base.bias else None)


# --- kinds --------------------------------------------------------------------------------------------------------


def _grouped_query(kind: type[GroupedQueryAttention], make: Maker, config: GQAConfig) -> GroupedQueryAttention:
    width, bias = make.config.width, config.qkv_bias
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    return kind(
        config,
        make.linear("attention.query", width, queries, bias),
        make.linear("attention.key", width, keys, bias),
        make.linear("attention.value", width, keys, bias),
        make.linear("attention.output", queries, width, config.output_bias),
        make.norm(config.head_width) if config.qk_norm else None,
        make.norm(config.head_width) if config.qk_norm else None,
    )


def _latent(kind: type[LatentAttention], make: Maker, config: MLAConfig | MTLAConfig) -> LatentAttention:
    width, heads, rank = make.config.width, config.heads, config.latent_rank
    queries = heads * (config.content_width + config.rotary_width)
    if config.query_rank is None:
        query: Callable[[Tape, Tensor], Tensor] = make.linear("attention.query", width, queries)
    else:
        down = make.linear("attention.query.down", width, config.query_rank, config.bias)
        norm = make.norm(config.query_rank)
        up = make.linear("attention.query.up", config.query_rank, queries)

        def query(tape: Tape, x: Tensor) -> Tensor:
            return up(tape, norm(tape, down(tape, x)))

    return kind(
        make,
        config,
        query,
        make.linear("attention.latent", width, rank + config.rotary_width, config.bias),
        make.norm(rank),
        make.dense("attention.expand", rank, heads * (config.content_width + config.value_width)),
        make.linear("attention.output", heads * config.value_width, width, config.bias),
    )


def _swiglu(make: Maker, config: SwiGLUConfig, name: str = "feed_forward") -> SwiGLU:
    width, inner = make.config.width, config.width
    return SwiGLU(
        make.linear(f"{name}.gate", width, inner, config.bias),
        make.linear(f"{name}.up", width, inner, config.bias),
        make.linear(f"{name}.down", inner, width, config.bias),
    )


def _activated(make: Maker, config: GELUConfig | SquaredReLUConfig) -> Activated:
    width, inner = make.config.width, config.width
    return Activated(
        make.linear("feed_forward.up", width, inner, config.bias),
        make.linear("feed_forward.down", inner, width, config.bias),
    )


def _experts(make: Maker, config: MoEConfig) -> MixtureOfExperts:
    width, expert = make.config.width, SwiGLUConfig(width=config.width)
    router = Linear(width, config.experts, make.matrix(config.experts, width))
    experts = [_swiglu(make, expert, f"feed_forward.experts.{n}") for n in range(config.experts)]
    shared = None
    if config.shared_width:
        shared = _swiglu(make, SwiGLUConfig(width=config.shared_width), "feed_forward.shared")
    return MixtureOfExperts(config, width, router, experts, shared)


ATTENTION: dict[type, tuple[Callable[..., Any], type]] = {
    GQAConfig: (_grouped_query, GroupedQueryAttention),
    MLAConfig: (_latent, LatentAttention),
    MTLAConfig: (_latent, TemporalLatentAttention),
}
FEED_FORWARD: dict[type, Callable[..., Any]] = {
    SwiGLUConfig: _swiglu,
    GELUConfig: _activated,
    SquaredReLUConfig: _activated,
    MoEConfig: _experts,
}


class Bottleneck:
    """y + up(silu(down(y)))."""

    def __init__(self, make: Maker, width: int, inner: int, name: str):
        self.down = make.dense(f"{name}.down", width, inner, bias=True)
        self.up = make.dense(f"{name}.up", inner, width, bias=True)

    def __call__(self, tape: Tape, y: Tensor) -> Tensor:
        return add(tape, y, self.up(tape, activate(tape, self.down(tape, y))))


class Block:
    """x -> x, with whatever a kind passes on beside it."""

    def __init__(self, tape: Tape, config: ModelConfig, training: Training, index: int):
        make, before, tape.in_block = Maker(tape, config, training), len(tape.parameters), True
        build, kind = ATTENTION[type(config.attention)]
        if config.value_residual:
            kind = ValueResidualAttention
        searches = config.memory is not None and index in config.memory.layers
        self.attention_norm, self.feed_forward_norm = make.norm(config.width), make.norm(config.width)
        self.attention = build(MemoryAttention if searches else kind, make, config.attention)
        if config.value_residual:
            self.attention.share = make.weight(1)
        if searches:
            self.attention.memory, self.attention.gate = config.memory, make.weight(config.attention.heads)
        self.feed_forward = FEED_FORWARD[type(config.feed_forward)](make, config.feed_forward)
        inner = None if config.bottleneck is None else config.bottleneck.width
        names = ("attention_bottleneck", "feed_forward_bottleneck")
        self.attention_bottleneck, self.feed_forward_bottleneck = (
            None if inner is None else Bottleneck(make, config.width, inner, name) for name in names
        )
        self.weights, tape.in_block = tape.parameters[before:], False

    def __call__(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        normed = self.attention_norm(tape, x)
        with recomputing(tape, normed, self.attention_norm.again, x):
            y = self.attention(tape, normed, context)
        x = add(tape, x, _through(tape, self.attention_bottleneck, y))
        del y, normed
        return self._feed(tape, x)

    def mixed(self, tape: Tape, x: Tensor, context: Context, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """With value residuals."""
        normed = self.attention_norm(tape, x)
        with recomputing(tape, normed, self.attention_norm.again, x):
            y, first = self.attention.mixed(tape, normed, context, first)
        x = add(tape, x, _through(tape, self.attention_bottleneck, y))
        del y, normed
        return self._feed(tape, x), first

    def _feed(self, tape: Tape, x: Tensor) -> Tensor:
        normed = self.feed_forward_norm(tape, x)
        with recomputing(tape, normed, self.feed_forward_norm.again, x):
            y = self.feed_forward(tape, normed)
        return add(tape, x, _through(tape, self.feed_forward_bottleneck, y))

    def attend(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        """What a reversible block adds to its first stream."""
        return _through(tape, self.attention_bottleneck, self.attention(tape, self.attention_norm(tape, x), context))

    def feed(self, tape: Tape, x: Tensor) -> Tensor:
        """And to its second one."""
        return _through(tape, self.feed_forward_bottleneck, self.feed_forward(tape, self.feed_forward_norm(tape, x)))


def _through(tape: Tape, bottleneck: Bottleneck | None, y: Tensor) -> Tensor:
    return y if bottleneck is None else bottleneck(tape, y)
