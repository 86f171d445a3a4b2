"""Quantizing as a plan sees it: one block in memory at a time, and the text's hidden states there or on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.compression.quantize.blocks import check_model
from shoestring.compression.quantize.config import LINEARS, QuantizeConfig
from shoestring.compression.quantize.memory import Room, predict_room, rooms, rounding
from shoestring.forecast.form import Form, Outcome
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.plan.adapters import PackedBase
from shoestring.plan.constants import BITS
from shoestring.plan.machine_file import ProcessKind
from shoestring.plan.shapes import Line, Machine, Prediction
from shoestring.plan.tape import FLOAT


@dataclass(frozen=True)
class QuantizeWork:
    """source: the dtype of the model's files."""

    config: ModelConfig
    settings: QuantizeConfig
    source: str = "float32"
    folder: Path | None = None
    job = "quantize"
    step = "block"

    @property
    def tokens(self) -> int:
        return self.settings.rows * self._context

    @property
    def _context(self) -> int:
        return min(self.settings.context, self.config.context)

    @property
    def longest(self) -> int | None:
        return self.config.context

    @property
    def assumed(self) -> tuple[str, ...]:
        settings = self.settings
        said = f"{settings.bits} bits in groups of {settings.group} by {settings.method}"
        if settings.calibrate is not None:
            said += f", {settings.rows:,} rows of {self._context:,} tokens to calibrate with"
        return (f"{said} (--quantize.bits, --quantize.group, --quantize.method, --quantize.rows)",)

    def forms(self, limited: bool, settled: str) -> list[Form]:
        packed = self.settings.packed("bfloat16")
        check_model(self.config, packed, str(self.folder or "this model"))
        return [self._form(room) for room in rooms(self.config, self.settings, 0)]

    def _form(self, room: Room) -> Form:
        kind: ProcessKind = "training" if self.settings.method == "learned" else "decoding"

        def predicted(machine: Machine) -> Outcome:
            prediction = predict_room(self.config, room, rounding(self.config, self.settings, room), machine)
            return Outcome(prediction, self.config.layers, self.config.layers * prediction.seconds)

        def disk(prediction: Prediction) -> tuple[Line, ...]:
            kept = quantized_bytes(self.config, self.settings, self.source)
            lines = [("the model, and its parts while they are joined", 2 * kept)]
            if room.on_disk:
                rows = self.settings.rows + 2 * self.settings.held_out
                lines.append(("the text's hidden states", rows * self._context * self.config.width * FLOAT))
            return tuple(lines)

        return Form(
            engine="on disk" if room.on_disk else "in memory", precision="float32", at_once=room.tokens,
            told=f"{room.tokens:,} tokens", predict=predicted, note="hidden states" if self.settings.calibrate else "",
            process=kind, disk=disk, on_gpu=False,
        )  # fmt: skip

    def at_context(self, tokens: int) -> QuantizeWork:
        return replace(self, settings=self.settings.model_copy(update={"context": max(tokens, 8)}))

    def context_settings(self) -> dict[str, Any]:
        return {"quantize.context": self._context}

    def of_model(self, config: ModelConfig) -> QuantizeWork:
        return replace(self, config=config, folder=None)


def quantized_bytes(config: ModelConfig, settings: QuantizeConfig, dense: str) -> int:
    """Of the weights of the model that is written."""
    parts = dense_parts(config)
    assert parts is not None
    shapes = [*parts[0].linears(config.width), *parts[1].linears(config.width)]
    each = settings.each(settings.packed("bfloat16"))
    named = zip(LINEARS, shapes, strict=True)
    few = sum(PackedBase(inputs, outputs, each[name]).stored for name, (inputs, outputs) in named)
    numbers = sum(inputs * outputs for inputs, outputs in shapes)
    rest = config.parameter_count() - config.unique_layers * numbers
    if settings.embedding is not None:
        ends = config.vocabulary * config.width * (1 if config.tied_head else 2)
        few += (ends + 4 * config.vocabulary) / config.unique_layers  # scales twice, in 16 bits
        rest -= ends
    return int(config.unique_layers * few + rest * BITS[dense] / 8)
