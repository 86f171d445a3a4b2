"""Random valid configs of tiny decoders over all kinds and options, for the property test.

A draw that ModelConfig refuses is drawn again: which combinations are impossible is the config's to say.
"""

from __future__ import annotations

import random
from typing import Any

from pydantic import ValidationError

from shoestring.models.config import ModelConfig

VOCABULARY, CONTEXT = 61, 32


def draw_config(seed: int) -> ModelConfig:
    """The config of this seed."""
    rng = random.Random(seed)
    for _ in range(100):
        try:
            return ModelConfig.model_validate(_draw(rng))
        except ValidationError:
            continue
    raise AssertionError(f"seed {seed}: no valid config in 100 draws")


def _draw(rng: random.Random) -> dict[str, Any]:
    layers = rng.randint(1, 4)
    linear = rng.choice([{"kind": "dense"}, {"kind": "dense"}, {"kind": "low_rank", "rank": rng.choice([2, 5])}])
    sharing = {"unique_layers": rng.randint(1, layers), "order": rng.choice(["cycle", "repeat"])}
    return {
        "vocabulary": VOCABULARY,
        "width": rng.choice([16, 24, 32]),
        "layers": layers,
        "context": CONTEXT,
        "attention": rng.choice(ATTENTIONS)(rng),
        "feed_forward": rng.choice(FEED_FORWARDS)(rng),
        "position": rng.choice(POSITIONS),
        "block": rng.choice(["sequential", "reversible"]),
        "sharing": rng.choice([None, sharing]),
        "linear": linear,
        "input_adapter": rng.choice([None, None, {"external_width": 6, "width": 4}]),
        "bottleneck": rng.choice([None, None, {"width": 4}]),
        "memory": rng.choice([None, None, _memory(rng, layers)]),
        "embedding_convolution": rng.choice([None, None, 2, 4]),
        "value_residual": rng.random() < 0.3,
        "tied_head": rng.random() < 0.5,
        "logit_softcap": rng.choice([None, None, 5.0]),
        "zero_init_output": rng.random() < 0.2,
        "norm_epsilon": rng.choice([1e-5, 1e-3]),
    }


def _flip(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _gqa(rng: random.Random) -> dict[str, Any]:
    kv_heads = rng.choice([1, 2])
    return {
        "kind": "gqa",
        "heads": kv_heads * rng.choice([1, 2]),
        "kv_heads": kv_heads,
        "head_width": rng.choice([4, 8]),
        "qkv_bias": _flip(rng),
        "output_bias": _flip(rng),
        "qk_norm": _flip(rng),
        "window": rng.choice([None, None, 3]),
    }


def _mla(rng: random.Random) -> dict[str, Any]:
    return {
        "kind": "mla",
        "heads": rng.choice([1, 2, 3]),
        "latent_rank": rng.choice([4, 12]),
        "content_width": rng.choice([4, 6]),
        "rotary_width": rng.choice([2, 4]),
        "value_width": rng.choice([4, 6]),
        "query_rank": rng.choice([None, 8]),
        "bias": _flip(rng),
        "rope_interleave": _flip(rng),
        "mscale": rng.choice([1.0, 1.2]),
    }


def _mtla(rng: random.Random) -> dict[str, Any]:
    return {
        **_mla(rng),
        "kind": "mtla",
        "stride": rng.choice([1, 2, 3, 4]),
        "rotary_scale": _flip(rng),
        "part_norms": _flip(rng),
        "rollback": rng.choice([2, 5]),
    }


def _memory(rng: random.Random, layers: int) -> dict[str, Any]:
    """Refused beside latents, and for blocks that sharing leaves out."""
    return {
        "layers": sorted(rng.sample(range(layers), rng.randint(1, layers))),
        "top_k": rng.choice([1, 3]),
        "block": rng.choice([1, 2, 4]),
        "capacity": rng.choice([2, 5, 50]),
    }


def _swiglu(rng: random.Random) -> dict[str, Any]:
    return {"kind": "swiglu", "width": rng.choice([16, 40]), "bias": _flip(rng)}


def _gelu(rng: random.Random) -> dict[str, Any]:
    return {"kind": "gelu", "width": rng.choice([16, 40]), "bias": _flip(rng), "tanh": _flip(rng)}


def _relu2(rng: random.Random) -> dict[str, Any]:
    return {"kind": "relu2", "width": rng.choice([16, 40]), "bias": _flip(rng)}


def _moe(rng: random.Random) -> dict[str, Any]:
    experts = rng.choice([1, 2, 4])
    return {
        "kind": "moe",
        "width": 16,
        "experts": experts,
        "active": rng.randint(1, experts),
        "shared_width": rng.choice([0, 8]),
        "normalize": _flip(rng),
        "balance": rng.choice(["loss", "bias", "none"]),
    }


ATTENTIONS = [_gqa, _mla, _mtla]
FEED_FORWARDS = [_swiglu, _gelu, _relu2, _moe]
POSITIONS = [
    {"kind": "rope"},
    {"kind": "rope", "theta": 500.0, "scaling": {"kind": "linear", "factor": 2.0}},
    {"kind": "learned"},
    {"kind": "rope_learned"},
    {"kind": "none"},
]
