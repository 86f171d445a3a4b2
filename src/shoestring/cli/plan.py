"""`shoestring plan RECIPE_OR_MODEL`: what a job would take, and how long, in every form; what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, Overrides, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.forecast.config import plan_budget
from shoestring.forecast.opening import check_job
from shoestring.plan.machine_file import read_machine

app = verb(
    "plan",
    "What a job would take of memory, disk and time, in every form, on this machine or another; and what fits.",
    (
        "shoestring plan quickstart --memory 2GB --time 10m",
        "shoestring plan smollm2-135m --job finetune --memory 1GB --largest context",
    ),
)


@app.default
def plan(
    recipe_or_model: Annotated[
        str | None, Parameter(help="a recipe, by name, file or run; or a model: a folder, a name that get knows")
    ] = None,
    /,
    *,
    job: Annotated[
        str | None, Parameter(help="pretrain, finetune, distill, quantize, serve or generate [the recipe's own]")
    ] = None,
    memory: Annotated[
        str | None, Parameter(help="of the whole process at most, as 4GB [all that the machine has]")
    ] = None,
    gpu_memory: Annotated[
        str | None, Parameter(help="of a GPU, there or not, as 8GB [that of the machine's, if it has one]")
    ] = None,
    time: Annotated[str | None, Parameter(help="that you would wait, as 10h")] = None,
    machine: Annotated[
        Path | None, Parameter(help="another machine, as doctor --save described it [this one, measured]")
    ] = None,
    largest: Annotated[
        Literal["context", "model"] | None, Parameter(help="look for the largest that fits")
    ] = None,
    every: Annotated[
        bool, Parameter(name="--all", help="show every form, not the best of each engine and number format")
    ] = False,
    calibrate: Annotated[
        bool, Parameter(negative=(), help="correct predictions by the receipts of this machine's runs, and show how")
    ] = False,
    json: Json = False,
    overrides: Overrides = None,
) -> None:
    if recipe_or_model is None and calibrate:
        given = {
            "--job": job, "--memory": memory, "--gpu-memory": gpu_memory, "--time": time, "--machine": machine,
            "--largest": largest, "--all": every or None, **{f"--{name}": 1 for name in overrides or {}},
        }  # fmt: skip
        if unused := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"{unused[0]} is of a plan, and none is asked for (command line)", hint="give a recipe")
    if calibrate:
        _calibrate(recipe_or_model, json)
    if recipe_or_model is None:
        if calibrate:
            return
        raise ConfigError("there is nothing to plan (command line)", hint="give a recipe or a model; or --calibrate")
    check_job(job)
    plan_budget(memory, gpu_memory, time)
    if machine is not None:
        read_machine(machine)
    from shoestring.forecast.plan import make_plan
    from shoestring.forecast.text import cells, columns, head, right, shown_rows, tail

    made = make_plan(
        recipe_or_model, job, memory=memory, gpu_memory=gpu_memory, time=time, machine=machine, largest=largest,
        overrides=dict(overrides or {}),
    )  # fmt: skip
    if json:
        console.print_json(made.to_json())
        return
    names = columns(made)
    console.show("\n".join(head(made)) + "\n")
    console.out.print(console.table(names, cells(made, shown_rows(made, every)), right=right(names)))
    console.show("\n" + "\n".join(tail(made)))


def _calibrate(recipe_or_model: str | None, json: bool) -> None:
    """What was found is the result where nothing is planned, and told beside it otherwise."""
    import torch

    from shoestring.plan.calibration import calibrate

    found = calibrate(torch.get_num_threads())
    if recipe_or_model is not None:
        console.say(str(found))
    elif json:
        console.print_json(found.to_json())
    else:
        console.show(found)
