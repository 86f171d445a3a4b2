"""The one place that looks at kinds: from a `ModelConfig` to a `Decoder` of ready parts.

To add a kind: give it a config in `nn/config.py`, a module in `nn/`, and a case here.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from shoestring.core.seeds import generator
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder, Head
from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.block import SequentialBlock
from shoestring.nn.cache import KVCache
from shoestring.nn.feed_forward import SwiGLU
from shoestring.nn.norm import RMSNorm
from shoestring.nn.rope import RotaryEmbedding


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
    decoder.to_empty(device=device)
    if config.tied_head:  # to_empty gave the two modules a tensor each
        decoder.head.weight = decoder.embedding.weight
    if seed is not None:
        initialize(decoder, seed)
    return decoder


def build_block(config: ModelConfig) -> nn.Module:
    """One block, on the current default device; every layer has the same shape."""
    return SequentialBlock(
        attention_norm=RMSNorm(config.width, config.norm_epsilon),
        attention=GroupedQueryAttention(config.attention, config.width, config.norm_epsilon),
        feed_forward_norm=RMSNorm(config.width, config.norm_epsilon),
        feed_forward=SwiGLU(config.feed_forward, config.width),
    )


def _assemble(config: ModelConfig) -> Decoder:
    attention = config.attention
    # Given a weight, because drawing one on the meta device makes torch import its compiler: two seconds for nothing.
    embedding = nn.Embedding(
        config.vocabulary, config.width, _weight=torch.empty(config.vocabulary, config.width)
    )
    weight = embedding.weight if config.tied_head else nn.Parameter(torch.empty_like(embedding.weight))
    make_cache = functools.partial(
        KVCache, layers=config.layers, kv_heads=attention.kv_heads, head_width=attention.head_width
    )
    return Decoder(
        config,
        embedding=embedding,
        blocks=[build_block(config) for _ in range(config.layers)],
        norm=RMSNorm(config.width, config.norm_epsilon),
        head=Head(weight),
        rotary=RotaryEmbedding(config.position, attention.head_width),
        make_cache=make_cache,
    )


@torch.no_grad()
def initialize(decoder: Decoder, seed: int) -> None:
    """Fresh weights: normal with the config's range, projections into the residual stream narrower by √(2L).

    The narrowing is GPT-2's (Radford et al. 2019, section 2.3): the stream's variance stays put as depth grows.
    """
    config = decoder.config
    random = generator(seed, "initialize")
    narrow = config.initializer_range / math.sqrt(2 * config.layers)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            into_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            std = narrow if into_residual else config.initializer_range
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=random)
            parameter.copy_(values)
