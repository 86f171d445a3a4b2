"""A job's shape as plain JSON: from the process that opened model and data to the one that plans. Torch-free."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.nn.quantized.config import PackedConfig
from shoestring.plan.shapes import JobShape, Moving, Training


def to_json(shape: JobShape) -> dict[str, Any]:
    training = shape.training
    adapted = None if training.adapted is None else sorted(training.adapted)
    packed = [[name, config.model_dump()] for name, config in sorted(training.packed, key=lambda one: one[0])]
    plain = {name: getattr(shape, name) for name in shape.__dataclass_fields__ if name not in _NESTED}
    return {
        **plain,
        "config": shape.config.model_dump(mode="json"),
        "training": {**_flat(training), "adapted": adapted, "packed": packed},
        "moving": asdict(shape.moving),
    }


def from_json(values: dict[str, Any]) -> JobShape:
    training = dict(values["training"])
    adapted = training["adapted"]
    training["adapted"] = None if adapted is None else frozenset(adapted)
    training["packed"] = frozenset((name, PackedConfig.model_validate(config)) for name, config in training["packed"])
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for name, value in values.items()
        if name not in _NESTED
    }
    return JobShape(
        **plain,
        config=ModelConfig.model_validate(values["config"]), training=Training(**training),
        moving=Moving(**values["moving"]),
    )  # fmt: skip


_NESTED = ("config", "training", "moving")


def _flat(training: Training) -> dict[str, Any]:
    return {name: getattr(training, name) for name in training.__dataclass_fields__}
