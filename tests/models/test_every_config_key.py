"""Every key of every family's config dropped, nulled and changed: transformers' logits, or a refusal, and nothing else.

A case is a config.json. Where we read it and transformers does too, both models get the same weights, drawn by name and
shape; where transformers itself cannot make or run a model of it there is no judge, and either is right.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.initialization import no_init_weights

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.families.family import NEUTRAL
from shoestring.models.families.registry import family_named
from tests.models.tiny_families import EVERY_FAMILY, SIZES

TOKENS = torch.randint(0, SIZES["vocab_size"], (1, 20), generator=torch.Generator().manual_seed(0))
ROTARY = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False,
        "attention_factor": None,
    },
}  # fmt: skip
# Fields that stand in published configs of some family, or once did.
OTHERS = (
    "attention_bias", "head_dim", "layer_types", "max_window_layers", "mlp_bias", "norm_topk_prob", "num_experts",
    "num_local_experts", "num_nextn_predict_layers", "partial_rotary_factor", "quantization_config", "rope_interleave",
    "rope_scaling", "rope_theta", "rotary_dim", "scoring_func", "sliding_window", "topk_method", "use_sliding_window",
)  # fmt: skip
DROPPED = object()


@functools.cache
def base(family: str, rotary: str = "default") -> dict[str, Any]:
    """config.json of a tiny model as transformers writes it."""
    config_class, _, settings = EVERY_FAMILY[family]
    config = config_class(**{**SIZES, "rms_norm_eps": 1e-3, **settings, "rope_parameters": dict(ROTARY[rotary])})
    values = {**json.loads(config.to_json_string()), "architectures": None}
    return {key: value for key, value in values.items() if key not in ("transformers_version", "_name_or_path")}


def changes(value: Any) -> list[Any]:
    """What a value is changed to; None and DROPPED always."""
    if isinstance(value, bool):
        other: list[Any] = [not value]
    elif isinstance(value, int):
        other = [value + 1, 2 * value, max(value // 2, 1), 0]
    elif isinstance(value, float):
        other = [2 * value + 0.25, value / 2 + 0.125, int(value) + 1]
    elif isinstance(value, str):
        other = ["gelu", "linear", "other"]
    elif isinstance(value, list):
        other = [[], [0], [*value, "sliding_attention"]]
    elif isinstance(value, dict):
        other = [{}]
    else:
        other = [1, 4, 0.5, True, False, "silu", [0], {"a": 1}]
    return [DROPPED, None, *other]


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(family, what was changed, config.json)."""
    for family in EVERY_FAMILY:
        plain = base(family)
        for key in sorted({*plain, *NEUTRAL, *OTHERS} - {"model_type"}):
            for value in changes(plain.get(key)):
                if not (value is DROPPED and key not in plain):
                    yield family, f"{key}: {shown(value)}", changed(plain, key, value)
        for theta in ({"rope_theta": 300.0}, {"rope_theta": None}, {}):
            bare = {key: value for key, value in plain.items() if key != "rope_parameters"}
            yield family, f"no rope_parameters, {theta}", {**bare, **theta}
        for window in (0, 4, 64, None, DROPPED):
            for first in (0, 1, 2, DROPPED):
                values = changed(changed(plain, "sliding_window", window), "max_window_layers", first)
                yield family, f"use_sliding_window, {shown(window)} from {shown(first)}", {
                    **changed(values, "layer_types", DROPPED), "use_sliding_window": True
                }  # fmt: skip
        for kind, settings in ROTARY.items():
            scaled = base(family, kind)
            for section in ("rope_parameters", "rope_scaling"):
                whole = changed(scaled, "rope_parameters", DROPPED)
                inner = dict(settings)
                if section == "rope_scaling":
                    whole["rope_theta"] = inner.pop("rope_theta")
                for key in sorted({*inner, "mscale_all_dim", "attention_factor", "partial_rotary_factor", "type"}):
                    for value in changes(inner.get(key)):
                        if not (value is DROPPED and key not in inner):
                            told = f"{section} {kind}, {key}: {shown(value)}"
                            yield family, told, {**whole, section: changed(inner, key, value)}


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    rest = {name: old for name, old in values.items() if name != key}
    return rest if value is DROPPED else {**rest, key: value}


def shown(value: Any) -> str:
    return "dropped" if value is DROPPED else json.dumps(value)


def verdict(family: str, values: dict[str, Any]) -> str:
    """refused, no judge, same, or what is wrong."""
    here = family_named(family)
    try:
        config, _ = here.read_config(copy.deepcopy(values))
    except ModelFileError:
        return "refused"
    judged = theirs(family, values)
    if judged is None:
        return "no judge"
    names, expected = judged
    with torch.no_grad():
        ours = build(config).eval()
        own = {here.tensor_name(name): parameter for name, parameter in ours.named_parameters()}
        shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
        if shapes != names:
            return f"other tensors: {sorted(shapes.items() ^ names.items())[:4]}"
        for name, parameter in own.items():
            parameter.copy_(drawn(name, tuple(parameter.shape)))
        found = ours.head(ours(TOKENS)[0])
    difference = float((found - expected).abs().max())
    return "same" if difference < 1e-4 else f"logits differ by {difference:.4f}"


@torch.no_grad()
def theirs(family: str, values: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], torch.Tensor] | None:
    """Shapes by the names in a folder, and logits; None where transformers makes or runs no such model."""
    config_class, model_class, _ = EVERY_FAMILY[family]
    try:
        config = config_class.from_dict(copy.deepcopy(values))
        config._attn_implementation = "eager"
        with no_init_weights():
            model = model_class(config).float().eval()
        model.tie_weights()
        names = {}
        for name, parameter in model.named_parameters():
            for stored, part in _stored(family, name, parameter).items():
                names[stored] = tuple(part.shape)
                part.copy_(drawn(stored, tuple(part.shape)))
        logits = model(TOKENS, use_cache=False).logits
    except Exception:
        return None
    return (names, logits) if bool(logits.isfinite().all()) else None


def _stored(family: str, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Experts, which transformers joins, as they stand one by one in a folder."""
    if ".experts." not in name:
        return {name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if family == "mixtral" else name: parameter}
    block, _, joined = name.partition(".mlp.experts.")
    found = {}
    for number, matrix in enumerate(parameter):
        halves = zip(("gate", "up"), matrix.chunk(2), strict=True)
        parts = dict(halves) if joined == "gate_up_proj" else {"down": matrix}
        for part, tensor in parts.items():
            last = {"gate": "w1", "up": "w3", "down": "w2"}[part]
            inner = f"mlp.experts.{number}.{part}_proj"
            if family == "mixtral":
                inner = f"block_sparse_moe.experts.{number}.{last}"
            found[f"{block}.{inner}.weight"] = tensor
    return found


@functools.cache
def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The same for this name and shape every time; norms and biases are not trivial, embeddings so small that the
    norms' epsilon is not lost beside them, scores so large that positions matter."""
    small, large = "embed_tokens" in name, ".q_" in name or ".k_" in name
    scale = 0.05 if small else 0.5 if large else 0.15
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * scale
    return numbers + 1 if "norm" in name else numbers


def wrong(some: list[tuple[str, str, dict[str, Any]]]) -> tuple[list[str], Counter[str]]:
    """Cases that are neither refused nor computed as by transformers; and how many there are of each verdict."""
    found, counts = [], Counter[str]()
    for family, told, values in some:
        result = verdict(family, values)
        kind = result if result in ("refused", "no judge", "same") else "wrong"
        counts[kind] += 1
        if kind == "wrong":
            found.append(f"{family}: {told}: {result}")
    return found, counts


def test_the_families_are_those_that_transformers_has():
    from shoestring.models.families.registry import FAMILIES

    assert set(EVERY_FAMILY) == set(FAMILIES) - {"shoestring"}


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_unchanged_config_gives_transformers_logits_with_every_rotary_scaling(family):
    assert [verdict(family, base(family, kind)) for kind in ROTARY] == ["same"] * len(ROTARY)


KNOWN = [
    ("mixtral", {"rope_parameters": DROPPED}, "same"),
    ("mixtral", {"rms_norm_eps": DROPPED}, "same"),
    ("mixtral", {"sliding_window": 0}, "refused"),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, "refused"),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention"] * 2}, "refused"),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": None}, "same"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None, "layer_types": DROPPED}, "same"),
    ("deepseek_v3", {"rope_interleave": None}, "same"),
    ("deepseek_v3", {"q_lora_rank": DROPPED}, "same"),
    ("deepseek_v3", {"first_k_dense_replace": DROPPED}, "same"),
    ("deepseek_v2", {"q_lora_rank": DROPPED}, "same"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "change", "expected"), KNOWN, ids=[f"{case[0]}-{number}" for number, case in enumerate(KNOWN)]
)
def test_a_familys_own_default_holds_where_a_key_is_silent(family, change, expected):
    values = base(family)
    for key, value in change.items():
        values = changed(values, key, value)
    assert verdict(family, values) == expected


def test_a_sample_of_changed_keys_is_computed_as_by_transformers_or_refused():
    found, counts = wrong(random.Random(1).sample(list(cases()), 200))
    assert not found
    assert min(counts["same"], counts["refused"]) > 50


@pytest.mark.long
def test_every_changed_key_is_computed_as_by_transformers_or_refused():
    found, counts = wrong(list(cases()))
    assert not found, (counts, found)
    assert counts["same"] > 500 and counts["refused"] > 500

