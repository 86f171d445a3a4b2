"""Rotary settings in config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.

Both forms are read; when both stand there they must agree. Both are written, saying the same: transformers 5
lets `rope_scaling` win, older ones know nothing else. Defaults follow transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from typing import Any

from shoestring.models.families.family import Fields
from shoestring.nn.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

DEFAULT_THETA = 10_000.0


def read_rope(fields: Fields, default_theta: float = DEFAULT_THETA) -> RopeConfig:
    """The rotary config of a config.json. default_theta: the family's own, where the file has none.

    Raises ModelFileError for kinds that are not supported.
    """
    new, old = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    theta = fields.number("rope_theta", default_theta)
    has_theta = fields.values.get("rope_theta") is not None
    if not new:
        return _read("rope_scaling", old or {}, theta, fields)
    rope = _read("rope_parameters", new, theta, fields)
    if has_theta and theta != rope.theta:
        raise _conflict(fields, f"theta {rope.theta:g} and {theta:g}")
    if old:
        other = _read("rope_scaling", {"rope_theta": rope.theta, **old}, rope.theta, fields)
        if other != rope:
            raise _conflict(fields, "different scalings")
    return rope


def _conflict(fields: Fields, what: str):
    return fields.fail(
        f"rope_parameters and rope_theta/rope_scaling contradict each other ({what})",
        "keep the one that the model was trained with",
    )


def _read(section: str, values: dict[str, Any], theta: float, fields: Fields) -> RopeConfig:
    inner = Fields(values, fields.where)
    where = f"{fields.where}: {section}" if fields.where else section
    inner.where = where
    kind, old_kind = inner.get("rope_type"), inner.get("type")
    if kind and old_kind and kind != old_kind:
        raise inner.fail(f"rope_type is {kind!r} and type is {old_kind!r}", "keep one of them")
    kind = kind or old_kind or "default"
    theta = inner.number("rope_theta", theta)
    context = _context(fields)
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = LinearScaling(factor=inner.number("factor"))
        case "llama3":
            scaling = Llama3Scaling(
                factor=inner.number("factor"),
                low_frequency_factor=inner.number("low_freq_factor"),
                high_frequency_factor=inner.number("high_freq_factor"),
                original_context=inner.integer("original_max_position_embeddings", context),
            )
        case "yarn":
            scaling = _read_yarn(inner, context)
        case _:
            raise inner.fail(
                f"rotary scaling {kind!r} is not supported", "supported: default, linear, llama3 and yarn"
            )
    inner.finish()
    return RopeConfig(theta=theta, scaling=scaling)


def _context(fields: Fields) -> int | None:
    """transformers takes the model's context where a scaling does not give the original one."""
    value = fields.values.get("max_position_embeddings")
    return value if isinstance(value, int) else None


def _read_yarn(inner: Fields, context: int | None) -> YarnScaling:
    original = inner.integer("original_max_position_embeddings", context)
    factor = inner.number("factor", (context or original) / original)
    temperature = inner.optional_number("attention_factor")
    # DeepSeek's form: the ratio of two temperatures. One of the two alone has no effect.
    mscale, mscale_all = inner.optional_number("mscale"), inner.optional_number("mscale_all_dim")
    if temperature is None and mscale and mscale_all:
        temperature = _mscale(factor, mscale) / _mscale(factor, mscale_all)
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        attention_factor=temperature,
        truncate=inner.boolean("truncate", True),
    )


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The fields of config.json, in the new form and the old."""
    match rope.scaling:
        case None:
            scaling: dict[str, Any] = {}
        case LinearScaling(factor=factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            scaling = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_frequency_factor,
                "high_freq_factor": s.high_frequency_factor,
                "original_max_position_embeddings": s.original_context,
            }
        case YarnScaling() as s:
            scaling = {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_context,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.truncate,
            }
            if s.attention_factor is not None:
                scaling["attention_factor"] = s.attention_factor
    new = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})}
    return {"rope_parameters": new, "rope_theta": rope.theta, "rope_scaling": scaling or None}
