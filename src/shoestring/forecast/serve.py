"""Serving as a plan sees it: a model in memory, and slots of its cache for as many texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core.units import counted
from shoestring.forecast.config import ServeShape
from shoestring.forecast.form import Form, Outcome
from shoestring.models.config import ModelConfig
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.serving import CONTEXT, SLOTS, predict_serving
from shoestring.plan.shapes import Machine
from shoestring.plan.speed import WRITING


@dataclass(frozen=True)
class ServeWork:
    """source: the dtype of the model's files."""

    config: ModelConfig
    shape: ServeShape
    source: str = "float32"
    folder: Path | None = None
    job = "serve"
    step = "token"

    @property
    def context(self) -> int:
        return self.shape.context or min(self.config.context, CONTEXT)

    @property
    def tokens(self) -> int:
        return self.shape.slots or SLOTS

    @property
    def longest(self) -> int | None:
        return self.config.context

    @property
    def assumed(self) -> tuple[str, ...]:
        return (
            f"texts of {self.context:,} tokens (--serve.context), a token written of each with half of them there",
        )

    def forms(self, limited: bool, settled: str) -> list[Form]:
        asked = self.shape.slots
        slots = [asked] if asked is not None else [SLOTS >> n for n in range(SLOTS.bit_length())]
        return [self._form(compute, many) for compute in ("float32", "bfloat16") for many in slots]

    def _form(self, compute: str, slots: int) -> Form:
        context = self.context
        use = Use(slots, max(context // 2, 1), 2, compute=compute)  # the second token is one with half of them there

        def predicted(machine: Machine) -> Outcome:
            prediction = predict_serving(self.config, slots, context, machine, compute)
            time = dict(predict_use(self.config, use, machine, self.source).time)
            return Outcome(replace(prediction, seconds=time[WRITING]))

        return Form(
            engine="resident", precision=compute, at_once=slots, told=counted(slots, "text"), predict=predicted,
            settings={"slots": slots, "context": context, **({} if compute == "float32" else {"dtype": compute})},
            exact=compute == "float32" or self.source == compute, served=slots,
        )  # fmt: skip

    def at_context(self, tokens: int) -> ServeWork:
        slots = self.shape.slots or 1
        return replace(self, shape=self.shape.model_copy(update={"context": max(tokens, 2), "slots": slots}))

    def context_settings(self) -> dict[str, Any]:
        return {"serve.context": self.context, "serve.slots": self.shape.slots}

    def of_model(self, config: ModelConfig) -> ServeWork:
        return replace(self, config=config, folder=None)
