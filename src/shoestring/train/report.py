"""What a run says before and after: the header, and `RunResult`, whose text is the closing lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.core.machine import total_memory_bytes
from shoestring.core.units import format_bytes, format_count, format_seconds
from shoestring.data.shards import ShardFolder
from shoestring.models.config import ModelConfig
from shoestring.nn.config import GQAConfig
from shoestring.train.config import Recipe
from shoestring.train.state import TrainerState


@dataclass(frozen=True)
class RunResult:
    """out: the run folder. checkpoint: the newest model in it. seconds: wall clock of training, over all
    sessions.

    bits_per_byte: the model's on `held_out_bytes` bytes of held-out text. xz_bytes: what `xz -9e` makes of
    the same documents one by one; None where that was not measured. peak_memory: the process's largest
    resident set, in bytes.
    """

    out: Path
    checkpoint: Path
    steps: int
    tokens: int
    seconds: float
    parameters: int
    bits_per_byte: float | None
    held_out_loss: float | None
    held_out_bytes: int
    xz_bytes: int | None
    peak_memory: int
    plot: Path | None = None

    @property
    def xz_bits_per_byte(self) -> float | None:
        return 8 * self.xz_bytes / max(self.held_out_bytes, 1) if self.xz_bytes is not None else None

    def to_json(self) -> dict[str, Any]:
        paths = {name: str(value) for name, value in asdict(self).items() if isinstance(value, Path)}
        return {**asdict(self), **paths, "xz_bits_per_byte": self.xz_bits_per_byte}

    def __str__(self) -> str:
        lines = []
        if self.bits_per_byte is not None:
            text = f"held-out {self.bits_per_byte:.2f} bits/byte"
            xz = self.xz_bits_per_byte
            if xz is not None:
                text += f" (xz -9e, document by document: {xz:.2f})"
            lines.append(f"{text} · {format_seconds(self.seconds)} · peak {format_bytes(self.peak_memory)}")
            if self.xz_bytes is not None:
                own = format_bytes(self.bits_per_byte * self.held_out_bytes / 8)
                lines.append(
                    f"          {format_bytes(self.held_out_bytes)} of text: {own} by the model,"
                    f" {format_bytes(self.xz_bytes)} by xz"
                )
        lines.append(f"model     {self.out / 'latest'}")
        if self.plot is not None:
            lines.append(f"plot      {self.plot}")
        lines.append(f'next      shoestring generate {self.out} --prompt "def "')
        return "\n".join(lines)


def header(
    recipe: Recipe, origin: str, out: Path, config: ModelConfig, shards: ShardFolder, state: TrainerState
) -> str:
    """The aligned lines before training. origin: "quickstart (built in)"."""
    attention = config.attention
    heads = f"{attention.heads}/{attention.kv_heads}" if isinstance(attention, GQAConfig) else f"{attention.heads}"
    shape = f"{config.layers} layers × {config.width}, {attention.kind.upper()} {heads}"
    size = format_count(config.parameter_count())
    train, held_out = (format_count(shards.token_count(split)) for split in ("train", "validation"))
    # Weights, their gradients and two moments, in float32.
    state_bytes = 16 * config.parameter_count()
    lines = [
        f"recipe    {origin}",
        f"out       {out}",
        f"model     {size} parameters, {shape}, vocabulary {config.vocabulary:,}",
        f"data      {recipe.data.source}: {train} tokens train, {held_out} held out",
        f"memory    {format_bytes(state_bytes)} for weights, gradients and optimizer, activations on top;"
        f" {format_bytes(total_memory_bytes())} here",
        f"time      {_length(recipe)}",
    ]
    if state.step:
        lines.append(f"resuming  after step {state.step:,}, {format_seconds(state.seconds)} used")
    return "\n".join(lines)


def _length(recipe: Recipe) -> str:
    train = recipe.train
    portion = f"{train.batch_tokens:,} tokens"
    if train.time is not None:
        return f"{format_seconds(train.time)}, in steps of {portion}; the first ones tell how many fit"
    steps = planned_steps(recipe)
    return f"{steps:,} steps of {portion}"


def planned_steps(recipe: Recipe) -> int:
    """Optimizer steps of a recipe bounded by steps or tokens."""
    train = recipe.train
    if train.steps is not None:
        return train.steps
    assert train.tokens is not None
    return -(-train.tokens // train.batch_tokens)
