"""What a model costs, from its config alone: weights, cache, activations, operations. Torch-free.

Numbers are per token; formulas are derived in docs/architectures.md and held by tests to what torch really allocates,
keeps and counts. An operation is a multiplication or an addition: a product with an [n, m] matrix costs 2nm per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.models.config import ModelConfig
from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.config import FactorizedConfig, GQAConfig, Recompute
from shoestring.nn.feed_forward_config import MoEConfig, SwiGLUConfig


@dataclass(frozen=True)
class Operations:
    """Per token at one sequence length. again: what the backward pass computes a second time, at most (a checkpoint
    stops before the last product of a block, which nothing needs)."""

    matrices: float
    attention: float
    head: float
    again: float

    @property
    def forward(self) -> float:
        return self.matrices + self.attention + self.head

    @property
    def training(self) -> float:
        """Forward, twice that backward, and what is computed again."""
        return 3 * self.forward + self.again


@dataclass(frozen=True)
class Activations:
    """Numbers per token that are kept for the backward pass. outside: of the blocks; again: while one block is
    computed a second time."""

    layers: float
    outside: float
    again: float

    @property
    def total(self) -> float:
        return self.layers + self.outside + self.again


def operations(config: ModelConfig, tokens: int, recompute: Recompute = "selective") -> Operations:
    """Of one token in a sequence of this many; the causal half of attention alone is counted."""
    matrices = config.layers * _block_matrices(config)
    attention = config.layers * attention_operations(config.attention) * keys_per_query(config.attention, tokens)
    attention += len(config.searching_layers) * _memory_operations(config, tokens)
    if isinstance(config.attention, MTLAConfig):
        rank = config.attention.latent_rank
        matrices += config.layers * 2 * rank * (rank // 4) / config.attention.stride  # one chunk's half of the gate
    outside = 0
    if config.input_adapter is not None:
        outside = 2 * config.input_adapter.parameters(config.width)
    repeated = config.block == "reversible" or recompute == "full"
    return Operations(
        matrices=matrices + outside,
        attention=attention,
        head=2 * config.vocabulary * config.width,
        again=matrices + attention if repeated else 0.0,
    )


def _memory_operations(config: ModelConfig, tokens: int) -> float:
    """Of one layer that searches its own sequence: a score for each entry, then attention to the k best."""
    memory, attention = config.memory, config.attention
    if memory is None or not isinstance(attention, GQAConfig):
        return 0
    entries = sum(min(token // memory.block * memory.block, memory.capacity) for token in range(tokens)) / tokens
    return 2 * attention.heads * attention.head_width * (entries + 2 * memory.top_k)


def _block_matrices(config: ModelConfig) -> float:
    width, attention, feed_forward = config.width, config.attention, config.feed_forward
    total = float(sum(_matrix(config, *shape) for shape in attention.linears(width)))
    if isinstance(attention, (MLAConfig, MTLAConfig)):
        total += 2 * attention.latent_rank * attention.heads * (attention.content_width + attention.value_width)
    if isinstance(attention, MTLAConfig):
        total += 2 * attention.latent_rank * (attention.latent_rank // 4)
    if isinstance(feed_forward, MoEConfig):
        expert, shared = (SwiGLUConfig(width=w) for w in (feed_forward.width, feed_forward.shared_width or 1))
        total += feed_forward.active * sum(_matrix(config, *shape) for shape in expert.linears(width))
        total += sum(_matrix(config, *shape) for shape in shared.linears(width)) * (feed_forward.shared_width > 0)
        total += 2 * width * (feed_forward.experts + feed_forward.active)  # the router, and the weighted sum
    else:
        total += sum(_matrix(config, *shape) for shape in feed_forward.linears(width))
    if config.bottleneck is not None:
        total += 2 * 2 * 2 * width * config.bottleneck.width
    return total + 2 * config.factors_more() / config.unique_layers


def _matrix(config: ModelConfig, inputs: int, outputs: int) -> int:
    rank = config.linear.rank_of(inputs, outputs)
    return 2 * inputs * outputs if rank is None else 2 * rank * (inputs + outputs)


def attention_operations(attention: GQAConfig | MLAConfig | MTLAConfig) -> int:
    """For one pair of a query and a key that it sees, over all heads: the score, and the sum of values."""
    if isinstance(attention, GQAConfig):
        return 4 * attention.heads * attention.head_width
    return 2 * attention.heads * (attention.content_width + attention.rotary_width + attention.value_width)


def keys_per_query(attention: GQAConfig | MLAConfig | MTLAConfig, tokens: int) -> float:
    """Keys that a query of a sequence of this many tokens sees, on average."""
    if isinstance(attention, MTLAConfig):  # the ends of the chunks before, and its own
        return sum(token // attention.stride for token in range(tokens)) / tokens + 1
    window = getattr(attention, "window", None)
    if window is not None and window < tokens:
        return (window * (window + 1) / 2 + (tokens - window) * window) / tokens
    return (tokens + 1) / 2


def cache_numbers(config: ModelConfig) -> float:
    """Numbers that one token of context takes, over all layers; every position of a shared block has its own."""
    attention, embeddings = config.attention, config.width * (config.embedding_convolution is not None)
    if isinstance(attention, GQAConfig):
        keys = attention.kv_heads * attention.head_width
        return (2 * config.layers + len(config.searching_layers)) * keys + embeddings
    return config.layers * attention.cache_numbers() + embeddings


def activations(config: ModelConfig, recompute: Recompute = "selective") -> Activations:
    """Numbers per token kept for the backward pass of one microbatch.

    In float32 each takes 4 bytes. The head and loss hold the hidden states once more for their gradient, and a chunk of
    logits of constant size, which is not counted here.
    """
    whole = _kept_by_block(config, "none")
    searching = len(config.searching_layers) * _kept_by_search(config)
    outside = 2 * config.width + 1  # the final norm's input and factor, the head's input
    outside += config.width * (config.embedding_convolution is not None)  # the embedding
    if config.input_adapter is not None:
        outside += config.input_adapter.external_width + 2 * config.input_adapter.width
    if config.block == "reversible":
        return Activations(layers=2 * config.width, outside=outside, again=whole)
    if recompute == "full":
        return Activations(layers=config.layers * config.width, outside=outside, again=whole)
    return Activations(config.layers * _kept_by_block(config, recompute) + searching, outside, again=0)


def _kept_by_block(config: ModelConfig, recompute: Recompute) -> float:
    width, everything = config.width, recompute == "none"
    kept: float = 2 * (width + 1) + 2 * width * everything  # each norm's input and factor; its output
    kept += _kept_by_attention(config) + _kept_by_feed_forward(config, everything)
    if config.bottleneck is not None:
        kept += 2 * (width + 2 * config.bottleneck.width)
    ranks = [config.linear.rank_of(*shape) for shape in config.attention.linears(width)]
    return kept + sum(rank for rank in ranks if rank is not None) + _kept_between_factors(config)


def _kept_between_factors(config: ModelConfig) -> float:
    """Of matrices with ranks of their own, on average over blocks."""
    if not isinstance(config.linear, FactorizedConfig):
        return 0
    return sum(map(sum, config.linear.ranks)) / config.unique_layers


def _kept_by_search(config: ModelConfig) -> float:
    """Besides what attention keeps: queries, what was recalled, the mix, keys unrotated, places of hits (8 bytes)."""
    memory, attention = config.memory, config.attention
    if memory is None or not isinstance(attention, GQAConfig):
        return 0
    heads = attention.heads
    keys = attention.kv_heads * attention.head_width
    return 4 * heads * attention.head_width + keys + heads + 2 * heads * memory.top_k + 1


def _kept_by_attention(config: ModelConfig) -> float:
    attention, heads = config.attention, config.attention.heads
    if isinstance(attention, GQAConfig):
        keys = attention.kv_heads * attention.head_width
        kept = 2 * heads * attention.head_width + 2 * keys + heads  # q and output, k and v, the log-sum-exp
        if attention.qk_norm:
            kept += heads * attention.head_width + keys + heads + attention.kv_heads
        kept += keys * config.value_residual  # how far the first layer's values are from this one's
        return kept
    content, value = attention.content_width, attention.value_width
    queries = content + attention.rotary_width
    rank, columns = attention.latent_rank, attention.latent_rank + attention.rotary_width
    kept = columns + 1  # the latent before its norm, and the norm's factor
    if attention.query_rank is not None:
        kept += 2 * attention.query_rank + 1
    if isinstance(attention, MLAConfig):
        kept += columns + heads
        if value != queries:  # queries, keys, values and outputs padded to one width, and what they come to
            return kept + 4 * heads * max(queries, value) + heads * value
        return kept + 2 * heads * queries + heads * (content + value) + heads * value
    # q and k; what holds v, and the output; normed and merged latents; the gate
    kept += 2 * heads * queries + heads * (content + value) + heads * value + 2 * heads
    kept += 2 * rank + 2 * (rank // 4) + 1
    if attention.part_norms:
        kept += heads * queries + 2 * heads + 1
    if attention.rotary_scale:
        kept += heads * attention.rotary_width
    return kept


def _kept_by_feed_forward(config: ModelConfig, everything: bool) -> float:
    width, feed_forward = config.width, config.feed_forward
    if isinstance(feed_forward, MoEConfig):
        active, experts = feed_forward.active, feed_forward.experts
        expert = SwiGLUConfig(width=feed_forward.width)
        # Tokens in the experts' order and back, the router's probabilities, weights, and indices of 8 bytes.
        kept = active * 2 * width + active * _kept_by_dense(config, expert, everything) + experts + 8 * active + 1
        if feed_forward.shared_width:
            kept += _kept_by_dense(config, SwiGLUConfig(width=feed_forward.shared_width), everything)
        return kept
    return _kept_by_dense(config, feed_forward, everything)


def _kept_by_dense(config: ModelConfig, feed_forward, everything: bool) -> float:
    gated = isinstance(feed_forward, SwiGLUConfig)
    ranks = [config.linear.rank_of(*shape) for shape in feed_forward.linears(config.width)]
    return (1 + gated + everything) * feed_forward.width + sum(rank for rank in ranks if rank is not None)
