"""A run asks for its plan: which engine, how many rows at once; and the allocator is told what the plan promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch

from shoestring.core.device import resolve_device
from shoestring.core.errors import BudgetError, ConfigError
from shoestring.core.machine import has_int8_instructions, rss_bytes, total_memory_bytes
from shoestring.core.matmul import TABLE
from shoestring.core.matmul_choice import LAYOUTS, Kind
from shoestring.core.speeds import FEW, matrix_peak, memory_bandwidth
from shoestring.core.units import format_bytes
from shoestring.kernels import allocator
from shoestring.kernels.compiled import compiler
from shoestring.plan.calibration import corrections_of
from shoestring.plan.choose import Choice, choose, tell
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineName, EngineSpec, JobShape, Machine, Options
from shoestring.train import parallel
from shoestring.train.first_use import first_use
from shoestring.train.recipe import RunRecipe

R = TypeVar("R", bound=RunRecipe)
_HOPELESS = 1.2  # times the memory of the machine
_LARGE = 768  # rows, columns and sums of a product of which most of a step is made


def this_machine(recipe: RunRecipe, read_speed: Callable[[], float] = lambda: 1e9) -> Machine:
    """This process and this processor, for a run of `recipe`. read_speed: bytes a second of the disk with the model.

    Speeds are measured by the first process while the others wait: together they would measure one another.
    """
    flops, bandwidth, speed = parallel.by_first(
        lambda: [matrix_peak(recipe.precision.dtype, resolve_device(recipe.device)), memory_speed(), read_speed()]
    )
    parts = recipe.parallel.kind == "fsdp" and parallel.is_parallel()
    first_use(checkpointing=_may_checkpoint(recipe), parts=parts)
    return Machine(
        process=rss_bytes() - allocator.kept(),
        flops=flops,
        read_speed=speed,
        int8_gain=int8_gain(),
        total=total_memory_bytes(),
        threads=torch.get_num_threads(),
        onednn=multiplies_by_onednn(),
        bandwidth=bandwidth,
        corrections=corrections_of(recipe.job, torch.get_num_threads()),
    )


def multiplies_by_onednn() -> bool:
    """Whether that library has large products of float32 here."""
    return TABLE.choose(Kind.of(torch.float32, LAYOUTS[False, False], *(_LARGE,) * 3)) == "onednn"


def memory_speed() -> float:
    """Bytes per second of reading memory, from few enough of them that a small run's peak is its own."""
    before = allocator.counts()
    found = memory_bandwidth(count=FEW)
    after = allocator.counts()
    if before is not None and after is not None and after.live_peak > before.live_peak:
        allocator.reset_peaks()  # by the array that was read, which is none of the run's
    return found


def _may_checkpoint(recipe: RunRecipe) -> bool:
    """Whether whole blocks may be computed again: a budget may ask for it, which is not decided yet."""
    if getattr(recipe.budget, "weights", "source") != "source":
        return False  # they are streamed, which does not
    open = engines(recipe)
    return "checkpointed" in (open if recipe.budget.memory is not None else open[:1])


def int8_gain() -> float:
    """How many times faster int8 matmuls are than float32 ones: with instructions for them, or with those for int16
    that all others have (`benchmarks.int8`); the twin gains nothing."""
    return 2.5 if has_int8_instructions() else 1.5 if compiler() is not None else 1.0


def settle(recipe: R, shape: JobShape, options: Options, machine: Machine) -> tuple[R, Choice]:
    """The recipe with engine and microbatch as chosen by the first process, and the choice; it shows a budget's sum.

    Raises BudgetError when nothing fits, and without a budget what no memory of this machine could hold; ConfigError
    for weights that are to move in the pass backward and cannot.
    """
    choice = chosen(recipe, shape, options, machine)
    return applied(recipe, choice, shape, machine), choice


def chosen(recipe: RunRecipe, shape: JobShape, options: Options, machine: Machine) -> Choice:
    """By the first process, for all; stages of one model choose for themselves, with as many rows at once as suit all.
    """
    budget = recipe.budget.memory
    if recipe.optimizer.in_backward:
        options = rows_at_once(options, shape)
    if parallel.are_stages():
        wanted = choose(shape, machine, budget, options).spec.microbatch
        told = [wanted if rank == parallel.rank() else 0 for rank in range(parallel.world_size())]
        fewest = int(min(parallel.sum_numbers(*told)))
        return choose(shape, machine, budget, replace(options, microbatch=fewest))
    made: list[Choice] = []

    def by_this_process() -> dict[str, Any]:
        made.append(choose(shape, machine, budget, options))
        return asdict(made[0].spec)

    spec = EngineSpec(**parallel.by_first(by_this_process))
    return made[0] if made else Choice(spec, predict(shape, spec, machine))


def applied(recipe: R, choice: Choice, shape: JobShape, machine: Machine) -> R:
    """The recipe with what was chosen; the allocator knows it, and a budget's sum has been shown."""
    budget, spec = recipe.budget.memory, choice.spec
    if budget is None and resolve_device(recipe.device).type == "cpu":
        _check_possible(choice.prediction.total, machine.total)
    if budget is not None:
        before = allocator.live()  # tensors of this process that are none of the run's
        beside = choice.prediction.total - choice.prediction.tensor_bytes - before
        allocator.limit(cap=max(budget - beside, 0), target=before + choice.prediction.tensor_bytes)
        if parallel.rank() == 0:
            tell(choice, shape, budget)
    chosen: dict[str, object] = {"engine": spec.engine}
    if "slots" in type(recipe.budget).model_fields:
        chosen |= {"slots": spec.slots or None, "inputs": "disk" if spec.spilled else "memory"}
    return recipe.model_copy(
        update={
            "budget": recipe.budget.model_copy(update=chosen),
            "train": recipe.train.model_copy(update={"microbatch": spec.microbatch}),
        }
    )


def rows_at_once(options: Options, shape: JobShape) -> Options:
    """For weights that move in the pass backward: each must get its whole gradient there."""
    what = "optimizer.in_backward"
    if parallel.world_size() > 1:
        raise ConfigError(f"{what} is for one process, and gradients of {parallel.world_size()} are to be summed")
    if options.microbatch not in (None, shape.rows):
        raise ConfigError(
            f"{what} needs all {shape.rows} rows of a step at once, and train.microbatch is {options.microbatch}",
            hint=f"set train.microbatch null, or make a step of {options.microbatch} rows",
        )
    if shape.config.sharing is not None:
        raise ConfigError(f"{what}: layers that share weights (model.sharing) give each several gradients")
    return replace(options, usual=shape.rows, microbatch=shape.rows)


def _check_possible(needed: int, total: int) -> None:
    """Predictions are good to a tenth, and a little memory can be swapped out."""
    if needed > _HOPELESS * total:
        message = f"this would take {format_bytes(needed)}, and the machine has {format_bytes(total)}"
        raise BudgetError(message, hint="choose a smaller model, rank or batch, or give --memory to have it fitted")


def engines(recipe: RunRecipe, streams: bool = False) -> tuple[EngineName, ...]:
    """What `budget.engine` and `train.activation_checkpointing` leave open. streams: whether layers may be streamed."""
    asked = recipe.budget.engine
    if asked == "streamed":
        return ("streamed",)
    if asked == "checkpointed" or recipe.train.activation_checkpointing == "full":
        found: tuple[EngineName, ...] = ("checkpointed",)
    else:
        found = ("resident",) if asked == "resident" else ("resident", "checkpointed")
    return (*found, "streamed") if asked == "auto" and streams else found
