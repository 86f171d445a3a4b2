"""The choice among engines, by predicted peak and predicted speed, and how it is told. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shoestring.core import console
from shoestring.core.errors import BudgetError
from shoestring.core.units import format_bytes, format_seconds
from shoestring.plan.constants import SPARE
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Options, Prediction
from shoestring.plan.speed import WAITING

_NOTICED = 1 / 6  # of a step


@dataclass(frozen=True)
class Choice:
    """spec: what was chosen. others: the best of each other engine, for comparison."""

    spec: EngineSpec
    prediction: Prediction
    others: tuple[tuple[EngineSpec, Prediction], ...] = ()
    faster: tuple[str, ...] = ()  # what would be, and changes the result a little


def choose(shape: JobShape, machine: Machine, budget: int | None, options: Options) -> Choice:
    """The fastest engine that is predicted to fit into `budget` bytes; without a budget the first of `options`.

    Raises BudgetError with the least that would do.
    """
    found = [(spec, predict(shape, spec, machine)) for spec in candidates(shape, options, budget is not None)]
    if budget is None:
        return Choice(*found[0])
    fitting = [one for one in found if one[1].total <= budget * SPARE]
    if not fitting:
        raise _too_small(shape, machine, budget, options, *min(found, key=lambda one: one[1].total))
    best = min(fitting, key=lambda one: one[1].seconds)
    return Choice(*best, _of_each(found, best[0]), _faster(shape, *best, machine))


def fitting(shape: JobShape, machine: Machine, budget: int | None, options: Options) -> Prediction:
    """What `choose` would find for streamed layers of one machine of several, or the least that they take where that is
    too much: without trying one after another how many layers keep what they computed."""
    specs = [spec for spec in candidates(shape, options, budget is not None) if not spec.keeps]
    found = [(predict(shape, spec, machine), spec) for spec in specs]
    if budget is None:
        return found[0][0]
    best = []
    for least, spec in found:
        if least.total <= budget * SPARE:
            each = predict(shape, replace(spec, keeps=1), machine).total - least.total
            keeps = min(int((budget * SPARE - least.total) / max(each, 1)), shape.config.layers)
            best.append(predict(shape, replace(spec, keeps=keeps), machine))
    return min(best, key=lambda one: one.seconds) if best else min((one for one, _ in found), key=lambda one: one.total)


def candidates(shape: JobShape, options: Options, limited: bool) -> Iterator[EngineSpec]:
    """Every form of every engine that is left open, the fastest form of each first. limited: by a budget."""
    usual = options.microbatch or options.usual
    smaller = [n for n in range(usual, 0, -1) if usual % n == 0] if options.microbatch is None else [usual]
    for engine in options.engines:
        for rows in smaller:
            if engine == "resident":
                yield EngineSpec("resident", rows, options.recompute, shards=options.shards)
            elif engine == "checkpointed":
                yield EngineSpec("checkpointed", rows, "full", shards=options.shards)
            else:
                yield from _streamed(shape, rows, options, limited)


def tell(choice: Choice, shape: JobShape, budget: int) -> None:
    """The sum, line by line, and what else there was."""
    spec, prediction = choice.spec, choice.prediction
    rows = [(line, format_bytes(size)) for line, size in prediction.lines]
    rows += [("predicted peak", format_bytes(prediction.total)), ("budget", format_bytes(budget))]
    console.err.print(console.table(("memory", ""), rows, right=("",), stream="err"))
    for other, its in choice.others:
        fits = "fits too" if its.total <= budget * SPARE else "does not fit"
        console.say(
            f"{other.engine:<13} {format_bytes(its.total)}, {format_seconds(its.seconds)} a step: {fits}"
        )
    console.say(
        f"chosen        {spec.engine}, {spec.microbatch} × {shape.length} tokens at once"
        f"{', inputs of layers on disk' * spec.spilled}, about {shape.tokens / prediction.seconds:,.0f} tokens/s"
    )
    if prediction.correction is not None:
        console.say(f"              {prediction.correction}")
    for line in choice.faster:
        console.say(f"faster        {line}", style="dim")


def usual_microbatch(rows: int, length: int, tokens: int) -> int:
    """The most rows that divide `rows` and have at most so many tokens; at least one."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * length <= tokens))


def _streamed(shape: JobShape, rows: int, options: Options, limited: bool) -> Iterator[EngineSpec]:
    """With as many layers in memory as may be of use, and fewer."""
    layers = shape.config.unique_layers
    counts = [options.slots or 2]
    if options.slots is None and limited:
        counts = sorted({layers, layers // 2, 4, 3, 2}, reverse=True)
    if options.stage is not None:
        keeping = range(shape.config.layers, -1, -1) if limited else [0]
        for slots in counts:
            for keeps in keeping:
                if 2 <= slots <= max(layers, 2):
                    yield EngineSpec(
                        "streamed", rows, "full", slots, options.weights, stage=options.stage, keeps=keeps
                    )
        return
    for spilled in [False, True] if options.spilled is None else [options.spilled]:
        for slots in counts:
            if 2 <= slots <= max(layers, 2):
                yield EngineSpec("streamed", rows, "full", slots, options.weights, spilled)


def _faster(shape: JobShape, spec: EngineSpec, prediction: Prediction, machine: Machine) -> tuple[str, ...]:
    """Where frozen weights are floats and compute as such."""
    training, rounded = shape.training, shape.compute == "int8" or spec.weights != "source"
    if training.full or rounded or training.packed or training.frozen not in ("float32", "bfloat16"):
        return ()
    said = []
    if machine.int8_gain > 1:
        said.append("--compute int8: products of frozen weights in integers, at a loss within about 1%")
    if dict(prediction.time).get(WAITING, 0.0) > _NOTICED * prediction.seconds:
        said.append("--budget.weights int8: this disk is slower than the products, and a quarter is left to read")
    return tuple(said)


def _of_each(
    found: list[tuple[EngineSpec, Prediction]], best: EngineSpec
) -> tuple[tuple[EngineSpec, Prediction], ...]:
    """The first form of each other engine, the fastest first."""
    first = {spec.engine: (spec, prediction) for spec, prediction in reversed(found)}
    others = [one for name, one in first.items() if name != best.engine]
    return tuple(sorted(others, key=lambda one: one[1].seconds))


def _too_small(
    shape: JobShape, machine: Machine, budget: int, options: Options, least: EngineSpec, its: Prediction
) -> BudgetError:
    enough = -(-int(its.total / SPARE) // 10_000_000) * 10
    hint = [f"--memory {enough}MB would do ({least.engine}, {least.microbatch} × {shape.length} tokens at once)"]
    if shape.rows > 1 or shape.length > 256:
        hint.append("a smaller --train.batch_tokens or --train.sequence_length takes less")
    here = f"; this machine has {format_bytes(machine.total)}" if machine.total else ""
    return BudgetError(
        f"{format_bytes(budget)} of memory are too little for this run: {format_bytes(its.total)} is the least that it"
        f" is predicted to take{here}",
        hint="\n".join([*hint, *options.advice]),
    )
