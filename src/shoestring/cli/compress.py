"""`shoestring compress MODEL --target 100MB --calibrate SOURCE --out FOLDER`: the best smaller model for a goal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.verb import Json, verb
from shoestring.compression.compress.config import compress_config
from shoestring.core import console

app = verb(
    "compress",
    "Try several ways to make a model smaller, measure each, and keep the best that meets a size or a quality.",
    (
        "shoestring compress smollm2-135m --target 0.5x --calibrate stdlib --out models/half",
        "shoestring compress smollm2-135m --keep 95% --calibrate stdlib --time 30m --out models/good-enough",
    ),
)


@app.default
def compress(
    model: Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the new folder")],
    target: Annotated[
        str | None,
        Parameter(help="the weights at most, as 100MB, or a part of what they take, 0.5x; the best of these is kept"),
    ] = None,
    keep: Annotated[
        str | None,
        Parameter(
            help="share of the quality that must be left, as 95%: perplexity before by after, on text that is kept"
            " apart; the smallest of these is kept"
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        Parameter(help="a text, a folder, stdlib, or rows, also conversations: like what the model is for"),
    ] = None,
    suite: Annotated[
        Literal["core"] | None,
        Parameter(help="put this suite to each candidate too; the worse of text and suite is the quality"),
    ] = None,
    items: Annotated[int | None, Parameter(help="questions of each category of the suite [all]")] = None,
    recover: Annotated[
        int | None, Parameter(help="steps of training behind pruning, the last way; 0: nothing is pruned [100]")
    ] = None,
    time: Annotated[str | None, Parameter(help="after this no other candidate is begun, such as 30m")] = None,
    rows: Annotated[int | None, Parameter(help="of calibration text [64]")] = None,
    context: Annotated[int | None, Parameter(help="tokens of a row [512, or what the model can]")] = None,
    seed: Annotated[int | None, Parameter(help="of the choice of rows [0]")] = None,
    memory: Annotated[str | None, Parameter(help="the whole process at most, as 3GB")] = None,
    columns: Columns = None,
    on_bad_line: Annotated[
        Literal["stop", "skip"] | None, Parameter(help="rows that cannot be used; skip counts [stop]")
    ] = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        "target": target, "keep": keep, "calibrate": calibrate, "suite": suite, "items": items, "time": time,
        "recover": recover,
        "rows": rows, "context": context, "seed": seed, "memory": memory, "columns": columns_of(columns) or None,
        "on_bad_line": on_bad_line,
    }  # fmt: skip
    compress_config(given)  # before anything heavy is imported

    from shoestring.compression.compress.job import compress as make

    result = make(model, out, **given, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
