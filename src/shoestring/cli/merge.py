"""`shoestring merge RUN_OR_ADAPTER`: the adapter folded into its base, as a plain model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.calibration import Context, OnBadLine
from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.verb import Json, verb
from shoestring.compression.merge.config import merge_config
from shoestring.core import console

app = verb(
    "merge",
    "Fold an adapter into its base model: a plain Hugging Face folder, as fast as the base.",
    ("shoestring merge runs/finetune-1", "shoestring merge runs/finetune-1/best --out mine"),
)


@app.default
def merge(
    adapter: Annotated[
        str, Parameter(help="a run of finetune, or an adapter (PEFT) folder; or a factorized model, to multiply it out")
    ],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="the new folder [ADAPTER-merged, or OUT/merged of a run]")] = None,
    dense: Annotated[
        bool, Parameter(help="whole matrices where the base has few bits or factors: nothing is rounded again")
    ] = False,
    calibrate: Annotated[
        str | None,
        Parameter(help="text, a folder, stdlib, or rows: a part of it is measured on, before and after"),
    ] = None,
    rows: Annotated[int | None, Parameter(help="of that text read, a part of which is measured on [64]")] = None,
    context: Context = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Parameter(help="of the weights that are not in few bits; auto: as the base has them"),
    ] = "auto",
    columns: Columns = None,
    on_bad_line: OnBadLine = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        "dense": dense, "calibrate": calibrate, "rows": rows, "context": context, "dtype": dtype,
        "columns": columns_of(columns) or None, "on_bad_line": on_bad_line,
    }  # fmt: skip
    merge_config(given)  # before anything heavy is imported

    from shoestring.compression.merge.job import merge as fold

    result = fold(adapter, out, **given, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
