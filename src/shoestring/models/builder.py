"""The one place that looks at kinds: from a `ModelConfig` to a `Decoder` of ready parts.

To add a kind: give it a config in `nn/`, a module in `nn/`, a place in `ModelConfig`, and a row in a table
here. Tables go from config class to module class; modules of one table are built and called alike.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from shoestring.core.seeds import generator
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.attention.mla import MultiHeadLatentAttention
from shoestring.nn.attention.mtla import TemporalLatentAttention
from shoestring.nn.attention.value_residual import (
    ValueResidualAttention,
    ValueResidualBlock,
    ValueResidualStack,
)
from shoestring.nn.block import SequentialBlock
from shoestring.nn.bottleneck import Bottleneck
from shoestring.nn.cache import Cache, KVCache
from shoestring.nn.config import FactorizedConfig, GQAConfig, LinearConfig, RopeConfig, block_order
from shoestring.nn.convolution import EmbeddingConvolution, Unmixed, holding_embeddings
from shoestring.nn.feed_forward import GELU, SquaredReLU, SwiGLU
from shoestring.nn.feed_forward_config import GELUConfig, MoEConfig, SquaredReLUConfig, SwiGLUConfig
from shoestring.nn.head import Head
from shoestring.nn.input_adapter import InputAdapter
from shoestring.nn.latent_cache import LatentCache
from shoestring.nn.linear import Linear
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.memory.attention import MemoryAttention
from shoestring.nn.memory.bank import MemoryBank
from shoestring.nn.memory.cache import MemoryCache
from shoestring.nn.moe import MixtureOfExperts
from shoestring.nn.norm import RMSNorm
from shoestring.nn.position import LearnedPositions
from shoestring.nn.reversible import ReversibleBlock, ReversibleStack
from shoestring.nn.rope import RotaryEmbedding
from shoestring.nn.stack import SequentialStack, Stack
from shoestring.nn.temporal_cache import TemporalCache

# Kind(config, width, epsilon, make_linear): (x_BTD, context, cache) -> y_BTD
ATTENTION: dict[type, Callable[..., nn.Module]] = {
    GQAConfig: GroupedQueryAttention,
    MLAConfig: MultiHeadLatentAttention,
    MTLAConfig: TemporalLatentAttention,
}
# Kind(config, width, make_linear): x_BTD -> (y_BTD, aux)
FEED_FORWARD: dict[type, Callable[..., nn.Module]] = {
    SwiGLUConfig: SwiGLU,
    GELUConfig: GELU,
    SquaredReLUConfig: SquaredReLU,
    MoEConfig: MixtureOfExperts,
}
BLOCK: dict[str, Callable[..., nn.Module]] = {"sequential": SequentialBlock, "reversible": ReversibleBlock}
STACKS: dict[str, Callable[..., Stack]] = {"sequential": SequentialStack, "reversible": ReversibleStack}
# (config, layers) -> what makes a cache of (batch, capacity, device, dtype)
CACHE: dict[type, Callable[..., Callable[..., Cache]]] = {
    GQAConfig: lambda config, layers: functools.partial(
        KVCache, layers=layers, kv_heads=config.kv_heads, head_width=config.head_width
    ),
    MLAConfig: lambda config, layers: functools.partial(
        LatentCache, layers=layers, numbers=config.latent_rank + config.rotary_width
    ),
    MTLAConfig: lambda config, layers: functools.partial(
        TemporalCache,
        layers=layers,
        rank=config.latent_rank,
        numbers=config.latent_rank + config.rotary_width,
        stride=config.stride,
        rollback=config.rollback,
    ),
}


def build(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> Decoder:
    """A decoder of this shape. Without a seed its weights are allocated but meaningless: fill them before use.

    device "meta" gives shapes only: every parameter must then be replaced.
    """
    with torch.device("meta"):
        decoder = _assemble(config)
    decoder = decoder.to(dtype)
    if torch.device(device).type == "meta":
        return decoder
    allocate(decoder, device)
    if seed is not None:
        initialize(decoder, seed)
    return decoder


def allocate(root: nn.Module, device: torch.device | str) -> None:
    """Give every parameter and buffer below `root` memory on `device`, what is shared once; its content is arbitrary.

    As `Module.to_empty`, which separates a tied head and makes torch import sympy: a second and a half.
    """
    made: dict[int, torch.Tensor] = {}
    for module in root.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for own in tables:
            for name, old in own.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device=device)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                own[name] = made[id(old)]


def build_block(config: ModelConfig, index: int = 0) -> nn.Module:
    """Block `index`, on the current default device; all have one shape, but for those that search the memory, and where
    each matrix has a rank of its own."""
    attention, feed_forward = config.attention, config.feed_forward
    make_linear = linear_maker(config.linear)
    make_attention = ATTENTION[type(attention)]
    kind = ValueResidualBlock if config.value_residual else BLOCK[config.block]
    if config.value_residual:
        make_attention = ValueResidualAttention
    if config.memory is not None and index in config.memory.layers:
        make_attention = functools.partial(MemoryAttention, memory=config.memory)
    block = kind(
        attention_bottleneck=_bottleneck(config),
        feed_forward_bottleneck=_bottleneck(config),
        attention_norm=RMSNorm(config.width, config.norm_epsilon),
        attention=make_attention(
            attention, width=config.width, epsilon=config.norm_epsilon, make_linear=make_linear
        ),
        feed_forward_norm=RMSNorm(config.width, config.norm_epsilon),
        feed_forward=FEED_FORWARD[type(feed_forward)](feed_forward, config.width, make_linear),
    )
    if isinstance(config.linear, FactorizedConfig):
        put_factors(block, config.linear.of_block(index))
    return block


def put_factors(block: nn.Module, ranks: Mapping[str, int]) -> None:
    """Replace the dense linears of these names by empty factors of these ranks."""
    for name, rank in ranks.items():
        parent, _, last = name.rpartition(".")
        owner = block.get_submodule(parent)
        dense = getattr(owner, last)
        setattr(owner, last, LowRankLinear(dense.in_features, dense.out_features, rank, dense.bias is not None))


def _bottleneck(config: ModelConfig) -> nn.Module:
    return nn.Identity() if config.bottleneck is None else Bottleneck(config.bottleneck, config.width)


def linear_maker(config: LinearConfig) -> Callable[..., nn.Module]:
    """make_linear(inputs, outputs, bias=False) -> a linear of the configured kind."""

    def make_linear(inputs: int, outputs: int, bias: bool = False) -> nn.Module:
        rank = config.rank_of(inputs, outputs)
        if rank is None:
            return Linear(inputs, outputs, bias=bias)
        return LowRankLinear(inputs, outputs, rank, bias=bias)

    return make_linear


def _assemble(config: ModelConfig) -> Decoder:
    attention = config.attention
    # Given a weight, because drawing one on the meta device makes torch import its compiler: two seconds for nothing.
    # `empty_like` there imports sympy, for half a second.
    shape = config.vocabulary, config.width
    embedding = nn.Embedding(*shape, _weight=torch.empty(shape))
    weight = embedding.weight if config.tied_head else nn.Parameter(torch.empty(shape))
    rotary = None
    if isinstance(config.position, RopeConfig):
        rotary = RotaryEmbedding(config.position, attention.rotary_width)
    inputs: dict[str, nn.Module] = {}
    if config.has_learned_positions:
        inputs["positions"] = LearnedPositions(config.context, config.width)
    if config.input_adapter is not None:
        inputs["adapter"] = InputAdapter(config.input_adapter, config.width)
    order = block_order(config.layers, config.sharing)
    make_cache: Callable[..., Cache]
    make_cache, make_memory = CACHE[type(attention)](attention, config.layers), None
    if config.memory is not None:
        assert isinstance(attention, GQAConfig)
        kv_heads, head_width = attention.kv_heads, attention.head_width
        searching = config.searching_layers
        make_cache = functools.partial(
            MemoryCache, layers=config.layers, searching=searching, kv_heads=kv_heads, head_width=head_width
        )
        make_memory = functools.partial(
            MemoryBank, config.memory, slots=len(searching), kv_heads=kv_heads, head_width=head_width
        )
    mix: nn.Module = Unmixed()
    if config.embedding_convolution is not None:
        mix = EmbeddingConvolution(config.embedding_convolution, config.width)
        make_cache = functools.partial(_make_holding, make_cache, config.width)
    return Decoder(
        config,
        embedding=embedding,
        mix=mix,
        inputs=inputs,
        blocks=[build_block(config, index) for index in range(config.unique_layers)],
        stack=(ValueResidualStack if config.value_residual else STACKS[config.block])(order),
        norm=RMSNorm(config.width, config.norm_epsilon),
        head=Head(weight, config.logit_softcap),
        rotary=rotary,
        make_cache=make_cache,
        make_memory=make_memory,
    )


def _make_holding(make_cache: Callable[..., Cache], width: int, **settings: Any) -> Cache:
    return holding_embeddings(make_cache(**settings), width)


# What begins by adding nothing: a fresh adapter changes no output.
_ZERO = re.compile(r"inputs\.adapter\.up|blocks\.\d+\.\w+_bottleneck\.up")
# Projections into the residual stream, of whatever linear kind.
INTO_RESIDUAL = re.compile(r"blocks\.\d+\.(attention\.output|feed_forward\.(.+\.)?down)")


@torch.no_grad()
def initialize(decoder: Decoder, seed: int, whole: Decoder | None = None) -> None:
    """Fresh weights: normal with the config's range, projections into the residual stream narrower by √(2L).

    The narrowing is GPT-2's (Radford et al. 2019, section 2.3): the stream's variance stays put as depth
    grows. Norms are one, biases zero. A module with a method `initialize(random, std)` fills all of its own
    parameters instead. whole: on the meta device, the model of which the decoder is a part: what is missing is drawn
    too, and dropped, so that the part begins as it would in the whole.
    """
    config = decoder.config
    random = generator(seed, "initialize")
    narrow = 0.0 if config.zero_init_output else config.initializer_range / math.sqrt(2 * config.layers)
    filled: set[int] = set()
    for name, module in (whole or decoder).named_modules():
        std = narrow if INTO_RESIDUAL.fullmatch(name) else config.initializer_range
        std = 0.0 if _ZERO.fullmatch(name) else std
        own, fresh = getattr(module, "initialize", None), dict(module.named_parameters(recurse=False))
        if own is None and all(id(parameter) in filled for parameter in fresh.values()):
            continue
        here = module if whole is None else _counterpart(decoder, name, module)
        if own is not None:
            here.initialize(random, std)  # type: ignore[operator]
            filled.update(id(parameter) for parameter in module.parameters())
        for last, parameter in fresh.items():
            if id(parameter) not in filled:
                filled.add(id(parameter))
                _fill(f"{name}.{last}", here.get_parameter(last), random, std)


def _counterpart(decoder: Decoder, name: str, module: nn.Module) -> nn.Module:
    """The decoder's module of that name, or where it has none another one, to be filled and dropped."""
    try:
        found = decoder.get_submodule(name)
    except AttributeError:
        found = nn.Module()
    if type(found) is not type(module):
        found = copy.deepcopy(module)
        allocate(found, "cpu")
    return found


def _fill(name: str, parameter: torch.Tensor, random: torch.Generator, std: float) -> None:
    if name.endswith("norm.weight"):
        parameter.fill_(1.0)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=random)
        parameter.copy_(values)
