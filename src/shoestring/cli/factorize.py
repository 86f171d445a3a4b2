"""`shoestring factorize MODEL --parameters 0.7x --calibrate SOURCE --out FOLDER`: matrices as products of thin ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.calibration import Calibrate, Context, Memory, OnBadLine, Rows, Seed, text_settings
from shoestring.cli.columns import Columns
from shoestring.cli.verb import Json, verb
from shoestring.compression.factorize.config import factorize_config
from shoestring.core import console
from shoestring.core.units import parse_bytes

app = verb(
    "factorize",
    "Make the matrices of a model's blocks products of two thin ones, with fewer parameters in all.",
    (
        "shoestring factorize smollm2-135m --parameters 0.8x --calibrate stdlib --out models/thin",
        "shoestring factorize smollm2-135m --rank 256 --out models/rank-256",
    ),
)


@app.default
def factorize(
    model: Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the new folder")],
    parameters: Annotated[
        str | None,
        Parameter(help="of the whole model then, as 0.7x or 80M: each matrix gets the rank that it is worth"),
    ] = None,
    rank: Annotated[int | None, Parameter(help="one for all matrices, in place of --parameters")] = None,
    calibrate: Calibrate = None,
    dense: Annotated[
        bool, Parameter(help="write the factors multiplied out: no smaller, but any tool reads it")
    ] = False,
    rows: Rows = None,
    context: Context = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Parameter(help="of the weights; auto: as the model has them")
    ] = "auto",
    seed: Seed = None,
    memory: Memory = None,
    columns: Columns = None,
    on_bad_line: OnBadLine = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        **text_settings(calibrate, rows, context, seed, columns, on_bad_line), "parameters": parameters, "rank": rank,
        "dense": dense, "dtype": dtype,
    }  # fmt: skip
    factorize_config(given)  # before anything heavy is imported
    if memory is not None:
        parse_bytes(memory)

    from shoestring.compression.factorize.job import factorize as make

    result = make(model, out, **given, memory=memory, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
