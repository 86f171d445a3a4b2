"""What a fine-tuning run says before and after: the header, and `FinetuneResult`, whose text is the closing lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.units import format_count
from shoestring.data.supervised.show import header_line
from shoestring.finetuning.before_after import Answer, side_by_side
from shoestring.finetuning.config import FinetuneRecipe
from shoestring.finetuning.material import Material
from shoestring.finetuning.suite_scores import SuiteScores
from shoestring.finetuning.write import best_checkpoint
from shoestring.models.decoder import Decoder
from shoestring.train import parallel
from shoestring.train.quantize_command import merge_flags, quantize_command
from shoestring.train.result import RunResult
from shoestring.train.run import Run, find_once


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(RunResult):
    """best: the adapter or model with the lowest held-out loss; `checkpoint` is the newest.

    loss_before, loss_after: nats per supervised held-out token, before the first step and at the best one.
    suite: its scores before and after, where the recipe asks for it.
    """

    best: Path
    method: str
    loss_before: float | None
    loss_after: float | None
    answers: list[Answer] = field(default_factory=list)
    suite: SuiteScores | None = None

    @property
    def model(self) -> Path:
        """OUT/latest, or OUT/best where an earlier checkpoint was better."""
        return self.out / ("latest" if self.best == self.checkpoint else "best")

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "suite": None if self.suite is None else self.suite.to_json()}

    def __str__(self) -> str:
        done = [self.cost()]
        if self.loss_before is not None and self.loss_after is not None:
            done.insert(0, f"held-out loss {self.loss_before:.3f} → {self.loss_after:.3f}")
        lines = [f"done      {' · '.join(done)}"]
        if self.best != self.checkpoint:
            lines.append(f"best      {self.best.name}: held-out loss is higher in {self.checkpoint.name}, the newest")
        if self.answers:
            lines += ["", side_by_side(self.answers, console.out.width), ""]
        if self.suite is not None:
            lines += ["", *self.suite.lines(), ""]
        if self.method == "full":
            lines.append(f"model     {self.model}")
        else:
            lines.append(f"adapter   {self.model} (PEFT)")
        lines.append(f"chat      shoestring chat {self.model}")
        if self.method != "full":
            lines.append(f"merge     shoestring merge {self.model}{merge_flags(self.quantize, self.out)}")
        if self.quantize is not None:
            lines.append(f"quantize  {self.quantize}")
        return "\n".join(lines)


def _quantize(run: Run) -> str | None:
    recipe, best = run.recipe, best_checkpoint(run)
    if recipe.quantize is None:
        return None
    model = run.out / ("latest" if best == run.checkpoint else "best")
    return quantize_command(
        recipe.quantize, run.out, model, find_once(recipe.model), recipe.adapter.method != "full"
    )


def collect(run: Run, answers: list[Answer]) -> FinetuneResult:
    """The figures of a finished run, and what its best checkpoint answers."""
    started = [values["before"] for values in run.state.events if values["event"] == "started"]
    return FinetuneResult(
        **run.figures(),
        best=best_checkpoint(run),
        method=run.recipe.adapter.method,
        loss_before=started[0] if started else None,
        loss_after=run.state.best_loss,
        answers=answers,
        plot=run.plot(),
        quantize=_quantize(run),
    )


def model_and_data(recipe: FinetuneRecipe, decoder: Decoder, material: Material) -> list[str]:
    """Their lines of the header."""
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    section = recipe.adapter
    method: str = section.method
    if method != "full":
        method += f", rank {section.rank}" + (f" on {section.base}" if method == "qlora" else "")
    size = format_count(decoder.config.parameter_count())
    counts = material.dataset.counts
    step, asked = material.rows * parallel.shares() * material.length, recipe.train.batch_tokens
    longer = [
        f"batch     a step has up to {step:,} tokens, not {asked:,} (train.batch_tokens): a row must hold the longest"
        f" example ({counts.longest:,}), or train.sequence_length cuts it"
    ]
    return [
        f"model     {recipe.model}: {size} parameters, {format_count(trained)} trained ({method})",
        f"data      {header_line(material.dataset)}",
        *(f"note      {note}" for note in material.dataset.notes),
        f"split     {counts.train:,} to learn from, {counts.validation:,} held out",
        *(longer if recipe.train.batch_rows is None and material.rows == 1 and step > asked else []),
    ]
