"""Writing text as a plan sees it: a model in memory, in one number format or another, or streamed from disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core.units import counted
from shoestring.forecast.config import GenerateShape
from shoestring.forecast.form import Form, Outcome
from shoestring.models.config import ModelConfig
from shoestring.offload.model import unstreamed
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.rounded import can_be_rounded, predict_rounded
from shoestring.plan.shapes import Machine, Packed, Prediction, WeightFormat
from shoestring.plan.speed import WRITING


@dataclass(frozen=True)
class GenerateWork:
    """source: the dtype of the model's files. packed: what of its blocks is in few bits there."""

    config: ModelConfig
    shape: GenerateShape
    source: str = "float32"
    packed: Packed = frozenset()
    folder: Path | None = None
    job = "generate"
    step = "token"

    @property
    def tokens(self) -> int:
        return self.shape.texts

    @property
    def longest(self) -> int | None:
        return self.config.context

    @property
    def assumed(self) -> tuple[str, ...]:
        return (
            f"{counted(self.shape.texts, 'text')} of {self.shape.prompt:,} tokens and {self.shape.max_tokens:,} to be"
            " written (--generate.texts, --generate.prompt, --generate.max_tokens)",
        )

    def forms(self, limited: bool, settled: str) -> list[Form]:
        found = [self._form("float32"), self._form("bfloat16")]
        if can_be_rounded(self.config) and not self.packed:
            found += [self._rounded(bits) for bits in (8, 4)]
        return [*found, *self._streamed()]

    def _rounded(self, bits: int) -> Form:
        """Weights in few bits, which changes what is written a little: suggested, and never chosen before others."""
        shape = self.shape
        use = Use(shape.texts, shape.prompt, shape.max_tokens)

        def predicted(machine: Machine) -> Outcome:
            return self._outcome(predict_rounded(self.config, use, machine, self.source, bits))

        return Form(
            engine="resident", precision="float32", at_once=shape.texts, told=counted(shape.texts, "text"),
            predict=predicted, note=f"weights in int{bits}", on_gpu=False, settings={"weights": f"int{bits}"},
            exact=False,
        )  # fmt: skip

    def _outcome(self, prediction: Prediction) -> Outcome:
        """A step is a token of each text."""
        each = dict(prediction.time).get(WRITING, 0.0) / max(self.shape.max_tokens - 1, 1)
        return Outcome(replace(prediction, seconds=each), self.shape.max_tokens, prediction.seconds)

    def _form(self, compute: str, slots: int = 0, note: str = "") -> Form:
        shape, weights = self.shape, self._weights if slots else "source"
        packed = self.packed if slots else frozenset()
        use = Use(shape.texts, shape.prompt, shape.max_tokens, compute=compute, packed=packed)

        def predicted(machine: Machine) -> Outcome:
            return self._outcome(predict_use(self.config, use, machine, self.source, weights, slots))

        return Form(
            engine="streamed" if slots else "resident", precision=compute, at_once=shape.texts,
            told=counted(shape.texts, "text"), predict=predicted, note=note, on_gpu=not slots,
            settings={} if slots or compute == "float32" else {"dtype": compute},
            exact=compute == "float32" or self.source == compute,
        )  # fmt: skip

    @property
    def _weights(self) -> WeightFormat:
        return "packed" if self.packed else "source"

    def _streamed(self) -> Iterator[Form]:
        layers = self.config.unique_layers
        if unstreamed(self.config):
            return
        for slots in sorted({layers, layers // 2, 4, 3, 2}, reverse=True):
            if 2 <= slots <= max(layers, 2):
                yield self._form("float32", slots, f"{slots} of {layers} layers in memory")

    def at_context(self, tokens: int) -> GenerateWork:
        new = min(self.shape.max_tokens, max(tokens - 1, 1))
        shape = self.shape.model_copy(update={"prompt": max(tokens - new, 1), "max_tokens": new})
        return replace(self, shape=shape)

    def context_settings(self) -> dict[str, Any]:
        return {"generate.prompt": self.shape.prompt, "generate.max_tokens": self.shape.max_tokens}

    def of_model(self, config: ModelConfig) -> GenerateWork:
        return replace(self, config=config, packed=frozenset(), folder=None)
