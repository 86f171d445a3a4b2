"""`finetune(model, data, ..., memory="1GB")`: fine-tuning by the fastest engine that is predicted to fit.

Only exact engines are chosen: everything in memory, blocks computed again, layers streamed from disk. What would change
the result (quantized weights, int8 products) is suggested, never chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shoestring.finetune.config import FinetuneRecipe
from shoestring.finetune.result import FinetuneResult
from shoestring.models.decoder import Decoder
from shoestring.offload.config import StoreFormat
from shoestring.offload.model import StreamedDecoder, open_streamed
from shoestring.offload.step import StreamedStep
from shoestring.plan.choose import choose_engine
from shoestring.train.objective import Objective
from shoestring.train.step import Step


class Streamed:
    """Layers from disk, through `slots` buffers. spilled: inputs of layers go to the run's disk."""

    name, streams = "streamed", True

    def __init__(self, weights: StoreFormat, slots: int, spilled: bool):
        self.weights: StoreFormat = weights
        self.slots, self.spilled = slots, spilled

    def load(self, base: Path, recipe: FinetuneRecipe, device: torch.device) -> Decoder:
        from shoestring.core import console

        return open_streamed(
            base, self.weights, self.slots, device, say=lambda text: console.err.print(text),
            compute="int8" if recipe.precision.compute == "int8" else "float",
        )  # fmt: skip

    def step(self, model: Decoder, objective: Objective, compute: torch.dtype, out: Path) -> Step:
        assert isinstance(model, StreamedDecoder)
        return StreamedStep(model, objective, compute, out if self.spilled else None)


def finetune(
    model: str | Path | None = None,
    data: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    memory: str | int | None = None,
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune as `shoestring.finetune.run.finetune` does, inside `memory` ("1GB") for the whole process if given.

    Raises BudgetError, before any work, with the least memory that would do.
    """
    from shoestring.finetune.run import finetune as run

    if memory is not None:
        settings["budget.memory"] = memory
    return run(model, data, resume, overrides, lambda request: choose_engine(request, Streamed), **settings)
