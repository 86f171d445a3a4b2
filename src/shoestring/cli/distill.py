"""`shoestring distill --teacher T --student S --data SOURCE`: a small model learns what a larger one predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.verb import Json, Overrides, verb
from shoestring.compression.distill.config import SHORT, distill_recipe
from shoestring.core import console
from shoestring.train.recipe_files import with_short

app = verb(
    "distill",
    "Teach a student what a teacher of the same vocabulary predicts, token by token, on your text or examples.",
    (
        "shoestring distill --teacher smollm2-135m --student models/smaller --data sums/train.jsonl --time 5m",
        "shoestring distill --teacher smollm2-135m --student compact --data stdlib --cache-samples 50 --steps 100",
    ),
)


@app.default
def distill(
    recipe: Annotated[
        str | None, Parameter(help="a recipe with job distill, by name or .yaml file; or none: flags say all")
    ] = None,
    /,
    *,
    teacher: Annotated[
        str | None, Parameter(help="a model folder, a run, an adapter, or a name that get knows (teacher)")
    ] = None,
    student: Annotated[
        str | None,
        Parameter(
            help="a model of the same vocabulary (model.init); or a recipe, whose model section says the shapes of a"
            " fresh one"
        ),
    ] = None,
    data: Annotated[
        str | None,
        Parameter(help="text or rows: a file, a folder, stdlib, hf:OWNER/NAME, exercises:KIND (data.source)"),
    ] = None,
    columns: Columns = None,
    divergence: Annotated[
        Literal["forward", "reverse", "mixture"] | None,
        Parameter(help="KL(teacher, student), KL(student, teacher), or between (distill.divergence) [forward]"),
    ] = None,
    beta: Annotated[
        float | None, Parameter(help="of mixture: near 0 like forward, near 1 like reverse (distill.beta) [0.5]")
    ] = None,
    temperature: Annotated[
        float | None, Parameter(help="that both sides' logits are divided by (distill.temperature) [1]")
    ] = None,
    labels: Annotated[
        float | None, Parameter(help="share of the labels' own cross-entropy in the loss (distill.labels) [0]")
    ] = None,
    on_policy: Annotated[
        float | None, Parameter(help="share of batches that the student writes itself (distill.on_policy) [0]")
    ] = None,
    cache_samples: Annotated[
        int | None,
        Parameter(
            help="ask the teacher once, and keep so many tokens drawn from each of its distributions, such as 50"
            " (distill.cache_samples)"
        ),
    ] = None,
    steps: Annotated[int | None, Parameter(help="optimizer steps (train.steps)")] = None,
    epochs: Annotated[float | None, Parameter(help="passes over the data (train.epochs) [1]")] = None,
    time: Annotated[str | None, Parameter(help="how long to train, such as 5m (train.time)")] = None,
    on_bad_line: Annotated[
        Literal["stop", "skip"] | None, Parameter(help="rows that cannot be used; skip counts (data.on_bad_line)")
    ] = None,
    memory: Annotated[
        str | None,
        Parameter(
            help="the whole process at most, as 2GB; the teacher is read from disk layer by layer if it must"
            " (budget.memory)"
        ),
    ] = None,
    out: Annotated[str | None, Parameter(help="the run's folder (out) [runs/distill-N]")] = None,
    resume: Annotated[Path | None, Parameter(help="continue the run in this folder")] = None,
    json: Json = False,
    overrides: Overrides = None,
) -> None:
    given = {
        "teacher": teacher, "divergence": divergence, "beta": beta, "temperature": temperature, "labels": labels,
        "on_policy": on_policy, "cache_samples": cache_samples, "steps": steps, "epochs": epochs, "time": time,
        "columns": columns_of(columns) or None, "on_bad_line": on_bad_line, "memory": memory, "out": out,
    }  # fmt: skip
    settings = with_short(overrides, SHORT, given, flags=True)
    if resume is None:
        distill_recipe(recipe, student, data, settings)  # a mistake is reported before torch is imported
    from shoestring.compression.distill.job import distill as teach
    from shoestring.train import parallel

    result = teach(None, student, data, recipe, resume, settings)
    if parallel.rank() != 0:
        return
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
