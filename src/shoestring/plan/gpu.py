"""What of a model is not predicted on a GPU. Torch-free."""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.nn.attention.config import MTLAConfig
from shoestring.nn.feed_forward_config import MoEConfig


def unpredicted_on_gpu(config: ModelConfig) -> list[str]:
    """In words, what computes otherwise there than the walk does (`plan.model`); empty where all is predicted."""
    kinds = {
        "attention of kind mtla, whose scores a GPU holds in blocks": isinstance(config.attention, MTLAConfig),
        "a mixture of experts": isinstance(config.feed_forward, MoEConfig),
        "a memory bank": config.memory is not None,
    }
    return [kind for kind, is_there in kinds.items() if is_there]
