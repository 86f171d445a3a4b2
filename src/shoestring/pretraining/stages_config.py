"""`train.stages` of a recipe: the first stages of a run are cheaper ones, each until a share of it. Torch-free.

    stages: [{until: 0.3, sequence_length: 256, batch_tokens: 2048, layers: 6}, {until: 0.6, sequence_length: 512}]

The last stage stands nowhere: it is the recipe as it is, from the last `until` to the end. What a stage does not say is
the recipe's own. Shorter rows first: arXiv 2108.06084; smaller batches first: arXiv 1711.00489; fewer layers first and
copies of them stacked later: arXiv 2405.15319.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from shoestring.core.config import Config
from shoestring.models.config import ModelConfig


class StageConfig(Config):
    """One of the first stages of a run. Built by `pretraining.staged`."""

    until: float = Field(gt=0, description="where it ends: a share of the run's steps when below 1, else steps")
    sequence_length: int | None = Field(None, gt=0, description="tokens of one row; null: the recipe's")
    batch_tokens: int | None = Field(None, gt=0, description="tokens of one optimizer step; null: the recipe's")
    microbatch: int | None = Field(
        None, gt=0, description="rows computed at once; null: as many as have the tokens of the recipe's"
    )
    layers: int | None = Field(None, gt=0, description="of a shallower model, whose layers grow; null: the recipe's")
    growth: Literal["stack", "zero"] | None = Field(
        None,
        description="what is stacked on its layers at its end: stack, copies of them; zero, copies that add nothing at"
        " first; null: zero, and stack of shared blocks",
    )
    learning_rate_scale: float = Field(1.0, gt=0, description="times the rate of the schedule")


@dataclass(frozen=True)
class Portion:
    """A stage with nothing left open. layers: None for the model's own."""

    sequence_length: int
    batch_tokens: int
    microbatch: int | None
    layers: int | None
    growth: Literal["stack", "zero"] | None = None
    learning_rate_scale: float = 1.0

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_tokens // self.sequence_length


def check_order(stages: Sequence[StageConfig], steps: int | None) -> None:
    """steps: of the run, None where time bounds it. Raises ValueError where stages do not follow one another."""
    until = [stage.until for stage in stages]
    shares = [end < 1 for end in until]
    if any(shares) and not all(shares):
        raise ValueError(
            "the ends of stages are shares of the run, all below 1, or steps, all of them; the last stage is the"
            f" recipe's own and has no until (found {', '.join(f'{end:g}' for end in until)})"
        )
    for number, (before, end) in enumerate(zip(until, until[1:], strict=False), 2):
        if end <= before:
            raise ValueError(f"stage {number} ends at {end:g}, before or where stage {number - 1} does ({before:g})")
    if shares[0]:
        if steps is not None and steps <= len(stages):
            raise ValueError(f"a run of {steps} steps has no room for {len(stages) + 1} stages")
        return
    if fraction := next((end for end in until if end != int(end)), None):
        raise ValueError(f"a stage ends at a whole number of steps, not at {fraction:g}")
    if steps is None:
        raise ValueError("how many steps fit in a time is not known: give the ends of stages as shares of the run")
    if until[-1] >= steps:
        raise ValueError(
            f"stage {len(until)} ends at step {until[-1]:g}, and the run at step {steps}: no step is left for the"
            " recipe's own"
        )


def check_portions(stages: Sequence[StageConfig], own: Portion) -> None:
    """own: the recipe's. Raises ValueError for lengths and batches that do not fit."""
    for number, (stage, portion) in enumerate(zip(stages, portions(stages, own), strict=False), 1):
        length, batch = portion.sequence_length, portion.batch_tokens
        said = (stage.sequence_length, stage.batch_tokens, stage.layers)
        if said == (None, None, None) and stage.learning_rate_scale == 1:
            raise ValueError(f"stage {number} changes nothing: give its sequence_length, batch_tokens or layers")
        if own.sequence_length % length:
            wrong = "is longer than" if length > own.sequence_length else "does not divide"
            raise ValueError(
                f"stage {number}: sequence_length ({length}) {wrong} that of the recipe ({own.sequence_length}), of"
                " whose rows it reads pieces"
            )
        if batch % length:
            raise ValueError(
                f"stage {number}: batch_tokens ({batch}) must be a multiple of sequence_length ({length})"
            )
        if portion.microbatch is not None and portion.rows % portion.microbatch:
            raise ValueError(
                f"stage {number}: microbatch ({portion.microbatch}) must divide the {portion.rows} rows of a batch"
            )


def portions(stages: Sequence[StageConfig], own: Portion) -> list[Portion]:
    """Every stage, the recipe's own last."""
    found = [
        Portion(
            stage.sequence_length or own.sequence_length,
            stage.batch_tokens or own.batch_tokens,
            stage.microbatch,
            stage.layers,
            stage.growth,
            stage.learning_rate_scale,
        )
        for stage in stages
    ]
    return [*found, own]


def check_depth(stages: Sequence[StageConfig], model: ModelConfig | None) -> None:
    """model: the recipe's, None of one that begins with a model's weights. Raises ValueError for what cannot grow."""
    if all(stage.layers is None for stage in stages):
        if any(stage.growth is not None for stage in stages):
            raise ValueError("growth of a stage says how its layers grow: give its layers as well")
        return
    if model is None:
        raise ValueError(
            "stages with layers of their own begin with fresh weights: leave out model.init, or the layers"
        )
    depths = [stage.layers or model.layers for stage in stages] + [model.layers]
    for number, (stage, depth, following) in enumerate(zip(stages, depths, depths[1:], strict=False), 1):
        if following < depth:
            raise ValueError(f"stage {number} has {depth} layers and the next one {following}: layers are only added")
        if following % depth:
            raise ValueError(
                f"stage {number} has {depth} layers, which do not divide the {following} of the next one: whole copies"
                " are stacked"
            )
        if stage.growth is not None and following == depth:
            raise ValueError(
                f"growth of stage {number} is {stage.growth}, but the next one has as many layers: nothing grows"
            )
    check_kinds(stages, model)


def check_kinds(stages: Sequence[StageConfig], model: ModelConfig) -> None:
    """Raises ValueError for kinds of models whose layers cannot be stacked."""
    sharing = model.sharing
    if sharing is None:
        if model.memory is not None:
            raise ValueError(
                "model.memory names the layers that search it, and stacking would move them: use one depth"
            )
        return
    for number, stage in enumerate(stages, 1):
        if stage.layers is None:
            continue
        if sharing.order != "cycle" or stage.layers % sharing.unique_layers:
            raise ValueError(
                f"stage {number}: shared blocks are stacked by running all {sharing.unique_layers} once more: its"
                f" layers ({stage.layers}) must be a multiple of that, and model.sharing.order cycle"
            )
        if stage.growth == "zero":
            raise ValueError(
                f"stage {number}: a shared block cannot add nothing where it is new and something where it was: use"
                " growth stack"
            )


def stage_model(model: ModelConfig, layers: int | None) -> ModelConfig:
    """The model of a stage with this many layers."""
    return model if layers is None else model.model_copy(update={"layers": layers})


def shown(portion: Portion, layers: int) -> dict[str, Any]:
    """As events and the header have it."""
    return {"sequence_length": portion.sequence_length, "batch_tokens": portion.batch_tokens, "layers": layers}
