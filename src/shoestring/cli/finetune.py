"""`shoestring finetune MODEL --data FILE`: teach a model your examples; the recipe's settings are flags too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.launch import Gpus, Ranks, Restarts, launched
from shoestring.cli.over import Listen, OverMachines, Token, Wait, alone, run_over
from shoestring.cli.verb import Json, Overrides, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import SHORT, finetune_recipe, is_finetune_recipe
from shoestring.train.recipe_files import with_short

app = verb(
    "finetune",
    "Teach a model your examples, by an adapter beside its frozen weights, or in every weight.",
    (
        "shoestring finetune smollm2-135m --data sums/train.jsonl --time 5m",
        "shoestring finetune smollm2-135m --data sums/train.jsonl --method qlora --rank 8 --steps 20",
    ),
)


@app.default
def finetune(
    model: Annotated[
        str | None, Parameter(help="a model folder, a run, a name that get knows; or a recipe, by name or .yaml file")
    ] = None,
    /,
    *,
    data: Annotated[
        str | None,
        Parameter(
            help="a .jsonl, .json, .csv, .tsv or .parquet file, a folder, hf:OWNER/NAME, exercises:KIND (data.source)"
        ),
    ] = None,
    columns: Columns = None,
    method: Annotated[
        Literal["lora", "dora", "qlora", "full"] | None,
        Parameter(help="lora; dora; qlora, on a 4-bit base; full, every weight (adapter.method) [lora]"),
    ] = None,
    rank: Annotated[int | None, Parameter(help="of the adapter (adapter.rank) [16]")] = None,
    batch_size: Annotated[
        int | None, Parameter(help="rows of an optimizer step (train.batch_rows), in place of train.batch_tokens")
    ] = None,
    steps: Annotated[int | None, Parameter(help="optimizer steps (train.steps)")] = None,
    epochs: Annotated[float | None, Parameter(help="passes over the examples (train.epochs) [3]")] = None,
    time: Annotated[str | None, Parameter(help="how long to train, such as 5m (train.time)")] = None,
    on_bad_line: Annotated[
        Literal["stop", "skip"] | None, Parameter(help="rows that cannot be used; skip counts (data.on_bad_line)")
    ] = None,
    preserve: Annotated[
        str | None,
        Parameter(
            help="other examples, on which the model is to stay as it is: a file as for --data; or everyday: what it"
            " says itself to everyday questions (preserve.source)"
        ),
    ] = None,
    memory: Annotated[
        str | None,
        Parameter(help="the whole process at most, as 1GB; layers stream from disk if they must (budget.memory)"),
    ] = None,
    compute: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"] | None,
        Parameter(help="products; int8 is faster and rounds the frozen weights (precision.compute) [auto]"),
    ] = None,
    evaluate: Annotated[
        Literal["core"] | None,
        Parameter(help="put this suite to the model before and after, and show what changed (evaluate.suite)"),
    ] = None,
    ranks: Ranks = None,
    gpus: Gpus = None,
    restarts: Restarts = None,
    out: Annotated[str | None, Parameter(help="the run's folder (out) [runs/finetune-N]")] = None,
    resume: Annotated[
        Path | None, Parameter(help="continue the run in this folder; auto: the one in --out, if there is one")
    ] = None,
    over: OverMachines = None,
    listen: Listen = None,
    wait: Wait = None,
    token: Token = None,
    json: Json = False,
    overrides: Overrides = None,
) -> int | None:
    given = {
        "method": method, "rank": rank, "batch_size": batch_size, "steps": steps, "epochs": epochs, "time": time,
        "columns": columns_of(columns) or None, "on_bad_line": on_bad_line, "preserve": preserve, "memory": memory,
        "compute": compute, "evaluate": evaluate, "out": out,
    }  # fmt: skip
    settings = with_short(overrides, SHORT, given, flags=True)
    if model is None:  # other tools have a flag for it
        model = settings.pop("model", None)
    auto = str(resume) == "auto"
    device, place = settings.get("device"), (None if auto else resume) or settings.get("out")
    if resume is None or auto:
        if model is None or (data is None and "data.mixture" not in settings and not is_finetune_recipe(model)):
            missing = "a model" if model is None else "--data"
            raise ConfigError(
                f"finetune needs {missing}", hint="shoestring finetune MODEL --data FILE, or --resume OUT"
            )
        recipe = finetune_recipe(model, data, settings)  # a mistake is reported before torch is imported
        device, place = recipe.device, recipe.out
    if over is not None or (listen, wait, token) != (None, None, None):
        alone(ranks, gpus, restarts)
        from shoestring.laptops.over import finetune_over

        flags = (over, listen, wait, token)
        run_over(finetune_over, flags, json, model, data, resume=resume, overrides=settings)
        return None
    if (code := launched(ranks, gpus, restarts, device, place)) is not None:
        return code
    from shoestring.finetuning.job import finetune as tune
    from shoestring.train import parallel

    result = tune(model, data, resume=resume, overrides=settings)
    if parallel.rank() != 0:
        return None
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
    return None
