"""The largest context, or the largest model of a family of shapes, that fits: by bisection, since more takes more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from shoestring.core.errors import ConfigError
from shoestring.forecast.form import Work
from shoestring.models.config import ModelConfig
from shoestring.nn.config import GQAConfig
from shoestring.nn.feed_forward_config import MoEConfig

Asked = Literal["context", "model"]
TOKENS = 64  # in which contexts grow
_MOST_TOKENS = 1 << 24
_MOST_HEADS = 512
_WIDE = 64  # that inner widths are multiples of


@dataclass(frozen=True)
class Largest:
    """asked: for what. size: tokens, or parameters. work: with it. bound: the limit that nothing beyond passes, where
    it is not a limit of the machine."""

    asked: Asked
    size: int
    work: Work
    bound: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return self.work.context_settings() if self.asked == "context" else model_settings(self.work.config)

    def told(self) -> str:
        if self.asked == "context":
            return f"{self.size:,} tokens" + (f", {self.bound}" if self.bound else "")
        config = self.work.config
        return f"{self.size:,} parameters: {config.layers} layers, {config.width:,} wide"


def largest_context(work: Work, fits: Callable[[Work], bool]) -> Largest | None:
    """None where not even the shortest fits."""
    most = work.longest
    counts = range(1, (most or _MOST_TOKENS) // TOKENS + 1)
    if most is not None and fits(work.at_context(most)):
        return Largest("context", most, work.at_context(most), "which is as far as the model can look")
    found = _last(counts, lambda count: fits(work.at_context(count * TOKENS)))
    if found is None:
        return None
    return Largest("context", counts[found] * TOKENS, work.at_context(counts[found] * TOKENS))


def largest_model(work: Work, fits: Callable[[Work], bool]) -> Largest | None:
    """Of the proportions that this one has. None where not even the smallest fits; raises ConfigError for kinds whose
    proportions are not worked out."""
    shapes = family(work.config)
    found = _last(shapes, lambda config: fits(work.of_model(config)))
    if found is None:
        return None
    work = work.of_model(shapes[found])
    return Largest("model", int(shapes[found].parameter_count()), work)


def family(config: ModelConfig) -> list[ModelConfig]:
    """Shapes of this one's proportions, smallest first: a head more each time, and as much wider and deeper."""
    attention, feed_forward = config.attention, config.feed_forward
    kinds = {
        f"attention of kind {attention.kind}": not isinstance(attention, GQAConfig),
        "a mixture of experts": isinstance(feed_forward, MoEConfig),
        "shared layers": config.sharing is not None,
        "a memory": config.memory is not None,
        "an input adapter": config.input_adapter is not None,
        f"linears of kind {config.linear.kind}": config.linear.kind != "dense",
    }
    if refused := [name for name, there in kinds.items() if there]:
        raise ConfigError(f"what is larger in the same proportions is not worked out for a model with {refused[0]}")
    assert isinstance(attention, GQAConfig)
    group = attention.heads // attention.kv_heads
    found = []
    for heads in range(1, _MOST_HEADS + 1):
        if heads > group and heads % group:
            continue
        scale = heads / attention.heads
        try:
            found.append(_scaled(config, heads, max(heads // group, 1), scale))
        except ValidationError:  # sizes that do not go together
            continue
    return found


def _scaled(config: ModelConfig, heads: int, kv_heads: int, scale: float) -> ModelConfig:
    inner = max(round(config.feed_forward.width * scale / _WIDE), 1) * _WIDE  # type: ignore[union-attr]
    values = config.model_dump()
    values["width"] = max(round(config.width * scale / 2), 1) * 2
    values["layers"] = max(round(config.layers * scale), 1)
    values["attention"] |= {"heads": heads, "kv_heads": kv_heads}
    values["feed_forward"] |= {"width": inner}
    return ModelConfig.model_validate(values)


def model_settings(config: ModelConfig) -> dict[str, Any]:
    attention = config.attention
    assert isinstance(attention, GQAConfig)
    return {
        "model.width": config.width, "model.layers": config.layers, "model.attention.heads": attention.heads,
        "model.attention.kv_heads": attention.kv_heads,
        "model.feed_forward.width": config.feed_forward.width,  # type: ignore[union-attr]
    }  # fmt: skip


def _last(sizes: Sequence[Any], fits: Callable[[Any], bool]) -> int | None:
    """The place of the last that fits, of sizes of which each takes more than the one before; None: none does."""
    low, high = -1, 1
    while high <= len(sizes) and fits(sizes[high - 1]):
        low, high = high - 1, high * 2
    high = min(high - 1, len(sizes))  # the first that is known not to fit, or none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return None if low < 0 else low
