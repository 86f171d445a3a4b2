"""Learning rates as pure functions: `share(config, step, total)` is the fraction of the highest learning rate.

Nothing is remembered between steps, so a resumed run cannot disagree with an uninterrupted one. `step` counts from 0
and may be fractional: a run that must finish early walks the rest of its schedule in longer strides.
"""

from __future__ import annotations

import math

from shoestring.train.config import CosineConfig, WSDConfig


def share(config: CosineConfig | WSDConfig, step: float, total: int) -> float:
    """The share for the step that starts at `step` of `total`: rises to 1 after the warmup, falls towards `final`."""
    warmup = _steps(config.warmup, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _AFTER_WARMUP[type(config)](config, step, total, warmup)


def _cosine(config: CosineConfig, step: float, total: int, warmup: float) -> float:
    done = min(max((step - warmup) / max(total - 1 - warmup, 1e-9), 0.0), 1.0)
    return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2


def _wsd(config: WSDConfig, step: float, total: int, warmup: float) -> float:
    decay = min(_steps(config.decay, total), total - warmup)
    left = total - step  # the last step has 1 left: it still moves when `final` is 0
    if left > decay:
        return 1.0
    return config.final + (1 - config.final) * max(left, 0.0) / (decay + 1)


_AFTER_WARMUP = {CosineConfig: _cosine, WSDConfig: _wsd}


def _steps(length: float, total: int) -> float:
    """Settings below 1 are shares of the run, others are steps."""
    return min(length, total) if length >= 1 else round(length * total)
