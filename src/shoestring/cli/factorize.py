"""`shoestring factorize MODEL --parameters 0.7x --calibrate SOURCE --out FOLDER`: matrices as products of thin ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.verb import Json, verb
from shoestring.compression.factorize.config import factorize_config
from shoestring.core import console

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
    calibrate: Annotated[
        str | None,
        Parameter(
            help="a text, a folder, stdlib, or rows, also conversations: like what the model is for; a part of it is"
            " kept apart, to measure before and after"
        ),
    ] = None,
    dense: Annotated[
        bool, Parameter(help="write the factors multiplied out: no smaller, but any tool reads it")
    ] = False,
    rows: Annotated[int | None, Parameter(help="of calibration text [64]")] = None,
    context: Annotated[int | None, Parameter(help="tokens of a row [512, or what the model can]")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Parameter(help="of the weights; auto: as the model has them")
    ] = "auto",
    seed: Annotated[int | None, Parameter(help="of the choice of rows [0]")] = None,
    columns: Columns = None,
    on_bad_line: Annotated[
        Literal["stop", "skip"] | None, Parameter(help="rows that cannot be used; skip counts [stop]")
    ] = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        "parameters": parameters, "rank": rank, "calibrate": calibrate, "dense": dense, "rows": rows,
        "context": context, "dtype": dtype, "seed": seed, "columns": columns_of(columns) or None,
        "on_bad_line": on_bad_line,
    }  # fmt: skip
    factorize_config(given)  # before anything heavy is imported

    from shoestring.compression.factorize.job import factorize as make

    result = make(model, out, **given, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
