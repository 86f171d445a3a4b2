"""What models here may be made of and Llama, Qwen and Mixtral are not: other tools lack it, so it is named."""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.nn.config import DenseConfig, GQAConfig, RopeConfig
from shoestring.nn.feed_forward_config import MoEConfig, SwiGLUConfig

LOW_RANK = "low-rank matrices"


def unusual(config: ModelConfig) -> list[str]:
    """In words, what other tools lack; empty for a model that they may have. Shared blocks are none: they can be
    written out layer by layer."""
    parts: dict[str, bool] = {
        "temporal latent attention (mtla)": config.attention.kind == "mtla",
        "latent attention (mla)": config.attention.kind == "mla",
        "a sliding window": isinstance(config.attention, GQAConfig) and config.attention.window is not None,
        "reversible blocks": config.block == "reversible",
        "a memory bank": config.memory is not None,
        "external vectors (input_adapter)": config.input_adapter is not None,
        "bottlenecks in its blocks": config.bottleneck is not None,
        "a convolution over embeddings": config.embedding_convolution is not None,
        "a value residual": config.value_residual,
        "a soft cap on logits": config.logit_softcap is not None,
        LOW_RANK: not isinstance(config.linear, DenseConfig),
        f"positions of kind {config.position.kind}": type(config.position) is not RopeConfig,
        f"feed-forwards of kind {config.feed_forward.kind}": not isinstance(
            config.feed_forward, (SwiGLUConfig, MoEConfig)
        ),
    }
    if isinstance(config.feed_forward, MoEConfig):
        parts["an expert that all tokens pass through"] = config.feed_forward.shared_width > 0
        parts["experts chosen with a bias"] = config.feed_forward.balance == "bias"
    return [name for name, there in parts.items() if there]


def listed(names: list[str]) -> str:
    """As in: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
