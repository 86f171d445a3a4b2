"""How a run keeps its model: an engine loads it and makes the step. Resident here; `plan` knows those that stream too.

What is trained and what comes out do not depend on the engine, up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from shoestring.core.errors import BudgetError
from shoestring.data.supervised.batches import padded_length
from shoestring.finetune.config import FinetuneRecipe
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model
from shoestring.train.objective import Objective
from shoestring.train.predict import Job, Line, predict
from shoestring.train.step import ResidentStep, Step

MICROBATCH_TOKENS = 512  # computed at once: what matmuls need to be fast on a CPU


class Engine(Protocol):
    """name: as `budget.engine` says it. streams: every pass over the model reads it from disk."""

    name: str
    streams: bool

    def load(self, base: Path, recipe: FinetuneRecipe, device: torch.device) -> Decoder:
        """The base model, its frozen weights as the recipe wants them, without adapters."""
        ...

    def step(self, model: Decoder, objective: Objective, compute: torch.dtype, out: Path) -> Step:
        """out: the run's folder, for what does not stay in memory."""
        ...


class Resident:
    """The whole model in memory. checkpointed: blocks are computed again going backward."""

    streams = False

    def __init__(self, checkpointed: bool = False):
        self.name = "checkpointed" if checkpointed else "resident"

    def load(self, base: Path, recipe: FinetuneRecipe, device: torch.device) -> Decoder:
        decoder = load_model(base, device, torch.float32, recipe.frozen_config())
        decoder.checkpoint_blocks = "full" if self.name == "checkpointed" else recipe.train.checkpoint_blocks
        return decoder

    def step(self, model: Decoder, objective: Objective, compute: torch.dtype, out: Path) -> Step:
        return ResidentStep(model, objective, compute)


@dataclass(frozen=True)
class Request:
    """What is to be trained. rows, of `length` tokens each: of one optimizer step in this process.

    lengths: how many lengths rows have, once padded.
    """

    recipe: FinetuneRecipe
    base: Path
    config: ModelConfig
    rows: int
    length: int
    process: int
    lengths: int = 1

    def job(self, microbatch: int) -> Job:
        """Its shape, for predictions. microbatch: rows computed at once."""
        recipe, tokens = self.recipe, self.rows * self.length
        trained, inner = self._trained
        compared = recipe.preserve.source is not None
        return Job(
            config=self.config,
            tokens=tokens,
            microbatch=max(microbatch * self.length, padded_length(recipe.preserve.tokens) if compared else 0),
            labels=tokens,
            trained=trained,
            inner=inner,
            process=self.process,
            full=recipe.adapter.method == "full",
            base="bfloat16" if recipe.halves_base() else recipe.frozen_kind(),
            dora=recipe.adapter.method == "dora",
            lengths=self.lengths,
            compared=compared,
            integers=recipe.precision.compute == "int8",
        )

    @functools.cached_property
    def _trained(self) -> tuple[int, int]:
        """Numbers that are trained, and that the adapters of a block keep for each token."""
        adapter = self.recipe.adapter
        lora = adapter.lora()
        if lora is None:
            return self.config.parameter_count(), 0
        shapes = build(self.config, device="meta")
        linears = attach(shapes, lora, modules=adapter.modules)
        trained = sum(p.numel() for p in shapes.parameters() if p.requires_grad)
        return trained, lora.rank * len(linears) // self.config.unique_layers


@dataclass(frozen=True)
class Choice:
    """recipe: with what was chosen, so that a resumed run does the same. lines: of the predicted peak."""

    recipe: FinetuneRecipe
    engine: Engine
    microbatch: int
    lines: list[Line]


Choose = Callable[[Request], Choice]


def usual_microbatch(rows: int, length: int, tokens: int) -> int:
    """The most rows that divide `rows` and have at most so many tokens; at least one."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * length <= tokens))


def plainly(request: Request) -> Choice:
    """What the recipe says, without a budget: what `plan` refines."""
    recipe = request.recipe
    if recipe.budget.memory is not None or recipe.budget.engine == "streamed":
        raise BudgetError("a memory budget is kept by shoestring.finetune(...) and the command, not by this function")
    rows = recipe.train.microbatch or usual_microbatch(request.rows, request.length, MICROBATCH_TOKENS)
    checkpointed = recipe.budget.engine == "checkpointed" or recipe.train.checkpoint_blocks == "full"
    engine = Resident(checkpointed)
    lines = predict(request.job(rows), "checkpointed" if checkpointed else "resident")
    settled = recipe.budget.model_copy(update={"engine": engine.name})
    train = recipe.train.model_copy(update={"microbatch": rows})
    return Choice(recipe.model_copy(update={"budget": settled, "train": train}), engine, rows, lines)
