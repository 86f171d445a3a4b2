"""The sizes of a model that can be made smaller, and which of them become how small. Torch-free.

A number of parameters is reached by shrinking one size after another, each to a part of what it was, in the order of
what can best be spared: feed-forward channels first, then the residual stream, attention groups, layers (Minitron,
arXiv 2407.14679, prefers width to depth up to 15B). Sizes stay multiples of 32 where they were: 4-bit groups and
kernels want that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from shoestring.compression.prune.config import PruneConfig
from shoestring.core.errors import ConfigError
from shoestring.core.units import counted, format_count
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.nn.config import GQAConfig, SwiGLUConfig

# In this order; no size below this part of what it was.
_SPARED = (("feed_forward", 1 / 2), ("width", 3 / 4), ("groups", 1 / 2), ("layers", 1 / 2), ("feed_forward", 1 / 4))
_FINE, _MULTIPLE = ("feed_forward", "width"), 32
_NAMES = {"layers": "layers", "feed_forward": "feed-forward", "groups": "heads", "width": "width"}


@dataclass(frozen=True)
class Shape:
    """groups: of attention, a key and value head with its query heads."""

    layers: int
    feed_forward: int
    groups: int
    width: int

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        attention, feed_forward = _parts(config)
        return cls(config.layers, feed_forward.width, attention.kv_heads, config.width)

    def applied(self, config: ModelConfig) -> ModelConfig:
        """The config of the smaller model, which has the same heads for a group."""
        attention, feed_forward = _parts(config)
        heads = attention.heads // attention.kv_heads * self.groups
        return config.model_copy(
            update={
                "layers": self.layers,
                "width": self.width,
                "attention": attention.model_copy(update={"heads": heads, "kv_heads": self.groups}),
                "feed_forward": feed_forward.model_copy(update={"width": self.feed_forward}),
            }
        )

    def towards(self, target: Shape, done: float) -> Shape:
        """So far on the way to a smaller shape, done between 0 and 1, from above in multiples that both have."""
        found = {}
        for name, end in asdict(target).items():
            begin = getattr(self, name)
            step = _multiple(begin, end) if name in _FINE else 1
            left = math.ceil((begin - end) * (1 - done) / step - 1e-9)
            found[name] = end + left * step
        return Shape(**found)


def _parts(config: ModelConfig) -> tuple[GQAConfig, SwiGLUConfig]:
    parts = dense_parts(config)
    assert parts is not None
    return parts


def target_shape(settings: PruneConfig, config: ModelConfig) -> Shape:
    """What the model is to become. Raises ConfigError for what is not smaller, or cannot be."""
    part, number = settings.wanted
    if part is None and number is None:
        return _given(settings, config)
    count = config.parameter_count()
    wanted = number if number is not None else int(count * part) if part is not None else 0
    if wanted >= count:
        raise ConfigError(
            f"the model has {count:,} parameters, {wanted:,} are not fewer", hint="write a part of it, such as 0.7x"
        )
    return _by_parameters(config, wanted)


def _given(settings: PruneConfig, config: ModelConfig) -> Shape:
    attention, _ = _parts(config)
    each, shape = attention.heads // attention.kv_heads, Shape.of(config)
    if settings.heads is not None and settings.heads % each:
        near = ", ".join(str(groups * each) for groups in range(1, attention.kv_heads))
        raise ConfigError(
            f"heads {settings.heads}: {counted(each, 'query head')} share one of keys and values, so whole groups go",
            hint=f"possible: {near}" if near else "this model has a single group, which stays",
        )
    wanted = {
        "layers": settings.layers, "feed_forward": settings.feed_forward, "width": settings.width,
        "groups": None if settings.heads is None else settings.heads // each,
    }  # fmt: skip
    for name, size in wanted.items():
        if size is not None and size > getattr(shape, name):
            times = each if name == "groups" else 1
            raise ConfigError(
                f"{_NAMES[name]} {size * times}: the model has {getattr(shape, name) * times}, and pruning adds none",
                hint="give fewer",
            )
    found = replace(shape, **{name: size for name, size in wanted.items() if size is not None})
    if found == shape:
        raise ConfigError("these are the sizes that the model has: nothing is to be pruned", hint="give fewer")
    return found


def _by_parameters(config: ModelConfig, wanted: int) -> Shape:
    whole = shape = Shape.of(config)

    def count(shape: Shape) -> int:
        return shape.applied(config).parameter_count()

    for name, part in _SPARED:
        multiple = _multiple(getattr(whole, name)) if name in _FINE else 1
        least = math.ceil(getattr(whole, name) * part / multiple) * multiple
        sizes = range(getattr(shape, name), least - 1, -multiple)
        reached = next((size for size in sizes if count(replace(shape, **{name: size})) <= wanted), None)
        if reached is not None:
            return _grown(replace(shape, **{name: reached}), whole.feed_forward, count, wanted)
        shape = replace(shape, **{name: min(least, getattr(shape, name))})
    raise ConfigError(
        f"{wanted:,} parameters are too few for what is chosen here: {format_count(count(shape))} are the least",
        hint="give sizes yourself: --layers, --feed-forward, --heads, --width; or begin from a smaller model",
    )


def _grown(shape: Shape, most: int, count: Callable[[Shape], int], wanted: int) -> Shape:
    """With the channels that still fit behind a coarse step of another size."""
    multiple = _multiple(most)
    sizes = range(shape.feed_forward, most + 1, multiple)
    return replace(shape, feed_forward=max(n for n in sizes if count(replace(shape, feed_forward=n)) <= wanted))


def _multiple(*sizes: int) -> int:
    """The largest power of two up to 32 that divides all of them."""
    found = _MULTIPLE
    while any(size % found for size in sizes):
        found //= 2
    return found


def told(before: Shape, after: Shape, each: int) -> str:
    """The sizes that change: layers 30 -> 24, feed-forward 1,536 -> 1,024. each: query heads of a group."""
    parts = []
    for name, size in asdict(after).items():
        old, times = getattr(before, name), each if name == "groups" else 1
        if size != old:
            parts.append(f"{_NAMES[name]} {old * times:,} -> {size * times:,}")
    return ", ".join(parts)
