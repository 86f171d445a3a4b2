"""Learning rates as pure functions: `schedule(step, total)` is the fraction of the highest learning rate.

Nothing is remembered between steps, so a resumed run cannot disagree with an uninterrupted one. `step` counts
from 0 and may be fractional: a run that must finish early walks the rest of its schedule in longer strides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from shoestring.train.schedule_config import CosineConfig, CosineRestartsConfig, LinearConfig, ScheduleConfig, WSDConfig

Schedule = Callable[[float, int], float]


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The share for the step that starts at `step` of `total`: up to 1, then towards `final`."""
    after: Callable[[float, int, float], float]
    if isinstance(config, CosineConfig):
        after = functools.partial(_cosine, config)
    elif isinstance(config, CosineRestartsConfig):
        after = functools.partial(_restarts, config)
    elif isinstance(config, LinearConfig):
        after = functools.partial(_linear, config)
    else:
        after = functools.partial(_wsd, config)

    def schedule(step: float, total: int) -> float:
        warmup = _steps(config.warmup, total)
        return (step + 1) / (warmup + 1) if step < warmup else after(step, total, warmup)

    return schedule


def _cosine(config: CosineConfig | CosineRestartsConfig, step: float, total: float, warmup: float) -> float:
    done = min(max((step - warmup) / max(total - 1 - warmup, 1e-9), 0.0), 1.0)
    return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2


def _restarts(config: CosineRestartsConfig, step: float, total: int, warmup: float) -> float:
    """Cycles as long as `growth` says, together the steps after the warmup."""
    left, parts = total - warmup, [config.growth**cycle for cycle in range(config.cycles)]
    begin = warmup
    for number, part in enumerate(parts, 1):
        end = begin + left * part / sum(parts)
        if step < end or number == config.cycles:
            break
        begin = end
    return _cosine(config, step - begin, end - begin, 0.0)


def _wsd(config: WSDConfig, step: float, total: int, warmup: float) -> float:
    decay = min(_steps(config.decay, total), total - warmup)
    left = total - step  # the last step has 1 left: it still moves when `final` is 0
    if left > decay:
        return 1.0
    if config.shape == "sqrt":
        done = 1 - max(left, 0.0) / (decay + 1)
        return config.final + (1 - config.final) * (1 - math.sqrt(done))
    return config.final + (1 - config.final) * max(left, 0.0) / (decay + 1)


def _linear(config: LinearConfig, step: float, total: int, warmup: float) -> float:
    left = max(total - step, 0.0) / max(total - warmup, 1e-9)  # 1 at first; the last step still moves
    return config.final + (1 - config.final) * min(left, 1.0)


def _steps(length: float, total: int) -> float:
    """Settings below 1 are shares of the run, others are steps."""
    return min(length, total) if length >= 1 else round(length * total)
