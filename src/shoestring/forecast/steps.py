"""The forms of a job that trains: every engine, number format and microbatch that its recipe leaves open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from shoestring.core.units import counted
from shoestring.forecast.form import Form, Outcome
from shoestring.models.config import ModelConfig
from shoestring.plan.choose import candidates
from shoestring.plan.constants import BITS
from shoestring.plan.machine_file import ProcessKind
from shoestring.plan.shapes import EngineSpec, JobShape, Line, Machine, Options, Prediction
from shoestring.plan.speed import block_numbers, streamed_bits
from shoestring.plan.tape import FLOAT
from shoestring.train.recipe import RunRecipe

R = TypeVar("R", bound=RunRecipe)
Predict = Callable[[JobShape, EngineSpec, Machine], Outcome]


def formats(recipe: RunRecipe, settled: str) -> list[str]:
    """Number formats that are open, the settled one first."""
    asked = recipe.precision.compute
    if asked != "auto":
        return [asked]
    return [settled, *(name for name in ("float32", "bfloat16") if name != settled)]


def computing(recipe: R, compute: str) -> R:
    """The recipe with this number format, as `train.precision.settled` leaves one."""
    return recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"compute": compute})})


def step_forms(
    shape: JobShape, options: Options, precision: str, limited: bool, predict: Predict,
    disk: Callable[[EngineSpec, Prediction], tuple[Line, ...]], settings: dict[str, Any], note: str = "",
) -> Iterator[Form]:  # fmt: skip
    """settings: that name the number format, where the recipe leaves it open."""
    for spec in candidates(shape, options, limited=True):
        yield Form(
            engine=spec.engine,
            precision=precision,
            at_once=spec.microbatch,
            told=f"{spec.microbatch} × {shape.length:,}",
            predict=_for(predict, shape, spec),
            note=", ".join(filter(None, [_note(shape, spec), note])),
            process=_process(spec, options, limited),
            disk=_disk(disk, shape, spec),
            host=_host(shape, spec),
            settings=settings | _settings(spec, options),
        )


def _for(predict: Predict, shape: JobShape, spec: EngineSpec) -> Callable[[Machine], Outcome]:
    return lambda machine: predict(shape, spec, machine)


def _note(shape: JobShape, spec: EngineSpec) -> str:
    if spec.engine != "streamed":
        return ""
    layers = f"{spec.slots} of {shape.config.unique_layers} layers in memory"
    return layers + ", inputs on disk" * spec.spilled


def _process(spec: EngineSpec, options: Options, limited: bool) -> ProcessKind:
    """What computes blocks again is loaded where it may be needed: with a budget, before the engine is chosen."""
    open = options.engines if limited else (spec.engine,)
    return "checkpointing" if "checkpointed" in open else "training"


def _settings(spec: EngineSpec, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if len(options.engines) > 1:
        found["budget.engine"] = spec.engine
    if options.microbatch is None:
        found["train.microbatch"] = spec.microbatch
    if spec.engine == "streamed":
        found |= {"budget.slots": spec.slots} if options.slots is None else {}
        found |= {"budget.inputs": "disk" if spec.spilled else "memory"} if options.spilled is None else {}
    return found


def _disk(
    disk: Callable[[EngineSpec, Prediction], tuple[Line, ...]], shape: JobShape, spec: EngineSpec
) -> Callable[[Prediction], tuple[Line, ...]]:
    def lines(prediction: Prediction) -> tuple[Line, ...]:
        found = list(disk(spec, prediction))
        if spec.engine == "streamed" and spec.weights not in ("source", "packed"):
            found.append((f"layers kept in {spec.weights}", store_bytes(shape.config, spec.weights)))
        if spec.spilled:
            found.append(("inputs of layers", shape.config.layers * shape.tokens * shape.config.width * FLOAT))
        return tuple(found)

    return lines


def _host(shape: JobShape, spec: EngineSpec) -> Callable[[Prediction], int]:
    """Pinned buffers of layers, of the same size as those on the GPU; and moments, while a checkpoint is written."""
    layers = min(spec.slots, shape.config.unique_layers) if spec.engine == "streamed" else 0
    buffers = int(layers * block_numbers(shape.config) * streamed_bits(shape, spec) / 8) if layers else 0
    return lambda prediction: buffers + moments(prediction)


def moments(prediction: Prediction) -> int:
    """The line of them, adapters included where those are trained."""
    return sum(size for name, size in prediction.tensors if name.endswith("moments"))


def store_bytes(config: ModelConfig, weights: str) -> int:
    """Of all layers, made ready once to be streamed in another format than the model's files have."""
    return int(config.unique_layers * block_numbers(config) * BITS[weights] / 8)


def kept_checkpoints(keep: int, best: bool) -> int:
    """The most that are on the disk at once: those kept, the best, and the one that is being written."""
    return keep + best + 1


def checkpoint_line(count: int, each: int) -> Line:
    return f"{counted(count, 'checkpoint')}, one of them being written", count * each


def model_bytes(config: ModelConfig, saved: str) -> int:
    """Of a checkpoint's weights, with the exact ones beside where those are rounded (`train.exact_weights`)."""
    numbers = int(config.parameter_count())
    return int(numbers * BITS[saved] / 8) + (numbers * FLOAT if saved != "float32" else 0)


def of_steps(prediction: Prediction, steps: int | None, time: float | None) -> Outcome:
    """time: that bounds the run, whose steps it then decides."""
    if time is not None:
        known = prediction.seconds > 0
        return Outcome(prediction, max(int(time / prediction.seconds), 1) if known else None, time, bounded=True)
    return Outcome(prediction, steps, None if steps is None else steps * prediction.seconds)

