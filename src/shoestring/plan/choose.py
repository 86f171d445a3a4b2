"""The choice among engines, by predicted peak and predicted speed, and how it is told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shoestring.core import console
from shoestring.core.errors import BudgetError
from shoestring.core.machine import file_read_speed, has_int8_instructions, matrix_peak, total_memory_bytes
from shoestring.core.units import format_bytes, format_seconds
from shoestring.finetune.config import FinetuneRecipe
from shoestring.finetune.engine import MICROBATCH_TOKENS, Choice, Engine, Request, Resident, usual_microbatch
from shoestring.kernels.compiled import compiler
from shoestring.models.count import operations
from shoestring.models.weight_files import WeightFiles, weight_paths
from shoestring.offload.config import StoreFormat
from shoestring.offload.predict import predict as predict_streamed
from shoestring.offload.predict import stored_bytes
from shoestring.train.predict import Job, Line, predict, total

_SPARE = 0.97  # of the budget that a prediction may fill: the rest is its error
_EFFICIENCY = 0.7  # of the matrix peak that a step reaches, for the estimate of its speed
MakeStreamed = Callable[[StoreFormat, int, bool], Engine]  # (weights, slots, inputs on disk)


@dataclass(frozen=True)
class _Candidate:
    name: str
    engine: Engine
    rows: int
    lines: list[Line]
    seconds: float  # of a step, predicted
    slots: int = 0
    spilled: bool = False

    @property
    def peak(self) -> int:
        return total(self.lines)


def choose_engine(request: Request, streamed: MakeStreamed) -> Choice:
    """The fastest engine that fits; without a budget resident, unless the recipe names another. Raises BudgetError."""
    recipe = request.recipe
    candidates = _candidates(request, streamed)
    if recipe.budget.memory is None:
        best = next(candidates)
    else:
        found = list(candidates)
        fitting = [one for one in found if one.peak <= recipe.budget.memory * _SPARE]
        if not fitting:
            raise _too_small(request, min(found, key=lambda one: one.peak))
        best = min(fitting, key=lambda one: one.seconds)
        _tell(request, best, found)
    chosen = recipe.budget.model_copy(
        update={"engine": best.name, "slots": best.slots or None, "inputs": "disk" if best.spilled else "memory"}
    )
    train = recipe.train.model_copy(update={"microbatch": best.rows})
    return Choice(
        recipe.model_copy(update={"budget": chosen, "train": train}), best.engine, best.rows, best.lines
    )


def _candidates(request: Request, streamed: MakeStreamed) -> Iterator[_Candidate]:
    """Every engine that the recipe allows, the fastest form of each first."""
    recipe = request.recipe
    engines = ["resident", "checkpointed", "streamed"]
    if recipe.budget.engine != "auto":
        engines = [recipe.budget.engine]
    elif recipe.train.checkpoint_blocks == "full":
        engines = ["checkpointed", "streamed"]
    if recipe.adapter.method == "full" or recipe.preserve.source is not None:
        engines = [name for name in engines if name != "streamed"]
    elif recipe.budget.weights != "source":
        engines = ["streamed"]
    usual = recipe.train.microbatch or usual_microbatch(request.rows, request.length, MICROBATCH_TOKENS)
    smaller = [n for n in range(usual, 0, -1) if usual % n == 0] if recipe.train.microbatch is None else [usual]
    for name in engines:
        for rows in smaller:
            job = request.job(rows)
            if name == "streamed":
                yield from _streamed(request, job, rows, streamed)
            else:
                checkpointed = name == "checkpointed"
                lines = predict(job, "checkpointed" if checkpointed else "resident")
                yield _Candidate(name, Resident(checkpointed), rows, lines, _compute(request, job, checkpointed))


def _streamed(request: Request, job: Job, rows: int, make: MakeStreamed) -> Iterator[_Candidate]:
    """With as many layers in memory as may be of use, and fewer."""
    recipe, config = request.recipe, request.config
    weights, source = _format(recipe), _source_dtype(request.base)
    kept = source if weights == "source" else weights
    layer = stored_bytes(config, kept)
    head = config.vocabulary * config.width * (1 if job.integers else 4 if source == "float32" else 2)
    speed = _read_speed(str(request.base))
    compute = _compute(request, job, True)
    layers = config.unique_layers
    counts = [recipe.budget.slots or 2]
    if recipe.budget.slots is None and recipe.budget.memory is not None:
        counts = sorted({layers, layers // 2, 4, 3, 2}, reverse=True)
    spilling = {"memory": [False], "disk": [True], "auto": [False, True]}[recipe.budget.inputs]
    for spilled in spilling:
        for slots in counts:
            if 2 <= slots <= max(layers, 2):
                reading = (2 * max(layers - slots, 0) * layer + head) / speed
                lines = predict_streamed(job, weights, source, slots, spilled)
                # Inputs are written and read while nothing else is done.
                spill = spilled * 2 * layers * job.tokens * config.width * 4 / speed
                seconds = max(compute, reading) + spill
                yield _Candidate("streamed", make(weights, slots, spilled), rows, lines, seconds, slots, spilled)


@functools.cache
def _read_speed(base: str) -> float:
    """Of the disk that holds the model, in bytes per second."""
    return file_read_speed(max(weight_paths(base), key=lambda path: path.stat().st_size))


def _format(recipe: FinetuneRecipe) -> StoreFormat:
    frozen = recipe.frozen_kind()
    if frozen is None:
        return recipe.budget.weights
    return "int8" if frozen == "int8" else "int4" if frozen == "int4" else "nf4"


def _source_dtype(base: Path) -> str:
    """The dtype of the model's largest matrix on disk."""
    with WeightFiles(base) as files:
        return str(files.places["embedding.weight"].info.dtype).removeprefix("torch.")


def _compute(request: Request, job: Job, again: bool) -> float:
    """Seconds of products of a step. A frozen weight costs four operations a token, six where blocks run again."""
    cost = operations(request.config, request.length)
    share = (3 if job.full else 2) + again
    blocks = share * (cost.matrices + cost.attention)
    head = (3 if job.full else 2) * cost.head * job.labels / job.tokens
    if request.recipe.precision.compute == "int8":
        blocks, head = blocks / _int8_gain(), head / _int8_gain()
    dtype = "bfloat16" if request.recipe.precision.compute == "bfloat16" else "float32"
    return job.tokens * (blocks + head) / (_EFFICIENCY * matrix_peak(dtype))


def _tell(request: Request, best: _Candidate, found: list[_Candidate]) -> None:
    """The sum, line by line, and what else there was."""
    memory = request.recipe.budget.memory
    assert memory is not None
    rows = [(line, format_bytes(size)) for line, size in best.lines]
    rows += [("predicted peak", format_bytes(best.peak)), ("budget", format_bytes(memory))]
    console.err.print(console.table(("memory", ""), rows, right=("",)))
    others = {one.name: one for one in reversed(found)}
    for name, one in sorted(others.items(), key=lambda item: item[1].seconds):
        if name != best.name:
            fits = "fits too" if one.peak <= memory * _SPARE else "does not fit"
            console.err.print(f"{name:<13} {format_bytes(one.peak)}, {format_seconds(one.seconds)} a step: {fits}")
    tokens = request.rows * request.length
    console.err.print(
        f"chosen        {best.name}, {best.rows} × {request.length} tokens at once"
        f"{', inputs of layers on disk' * best.spilled}, about"
        f" {tokens / best.seconds:,.0f} tokens/s"
    )
    for line in _suggestions(request, best):
        console.err.print(f"faster        {line}", style="dim")


def _suggestions(request: Request, best: _Candidate) -> list[str]:
    """What would be faster and changes the result a little."""
    recipe = request.recipe
    if recipe.adapter.method == "full" or recipe.frozen_kind() is not None:
        return []
    said = []
    if _int8_gain() > 1:
        said.append("--compute int8: products of frozen weights in integers, at a loss within about 1%")
    if best.name == "streamed" and best.seconds > 1.2 * _compute(request, request.job(best.rows), True):
        said.append("--budget.weights int8: this disk is slower than the products, and a quarter is left to read")
    return said


def _int8_gain() -> float:
    """Of int8 products over float32 ones: with instructions for them, and with those for int16 that all others have."""
    return 2.5 if has_int8_instructions() else 1.5 if compiler() is not None else 1.0


def _too_small(request: Request, least: _Candidate) -> BudgetError:
    memory = request.recipe.budget.memory
    assert memory is not None
    enough = -(-int(least.peak / _SPARE) // 10_000_000) * 10_000_000
    hint = f"--memory {enough // 1_000_000}MB would do ({least.name}, {least.rows} × {request.length} tokens at once)"
    if request.rows > 1 or request.length > 256:
        hint += "\na smaller --train.batch_tokens or --train.sequence_length takes less"
    if request.recipe.adapter.method == "full":
        hint += "\nLoRA (--method lora) takes much less than training every weight"
    elif request.recipe.frozen_kind() is None:
        hint += "\nso does --budget.weights int4, which rounds the frozen weights"
    here = f"; this machine has {format_bytes(total_memory_bytes())}"
    return BudgetError(
        f"{format_bytes(memory)} of memory are too little for this run: {format_bytes(least.peak)} is the least that it"
        f" is predicted to take{here}",
        hint=hint,
    )
