"""`shoestring compress MODEL --target 100MB --calibrate SOURCE --out FOLDER`: the best smaller model for a goal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.calibration import Calibrate, Context, Memory, OnBadLine, Rows, Seed, text_settings
from shoestring.cli.columns import Columns
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
    calibrate: Calibrate = None,
    suite: Annotated[
        Literal["core"] | None,
        Parameter(help="put this suite to each candidate too; the worse of text and suite is the quality"),
    ] = None,
    items: Annotated[int | None, Parameter(help="questions of each category of the suite [all]")] = None,
    recover: Annotated[
        int | None, Parameter(help="steps of training behind pruning, the last way; 0: nothing is pruned [100]")
    ] = None,
    time: Annotated[str | None, Parameter(help="after this no other candidate is begun, such as 30m")] = None,
    rows: Rows = None,
    context: Context = None,
    seed: Seed = None,
    memory: Memory = None,
    columns: Columns = None,
    on_bad_line: OnBadLine = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        **text_settings(calibrate, rows, context, seed, columns, on_bad_line), "target": target, "keep": keep,
        "suite": suite, "items": items, "time": time, "recover": recover, "memory": memory,
    }  # fmt: skip
    compress_config(given)  # before anything heavy is imported

    from shoestring.compression.compress.job import compress as make

    result = make(model, out, **given, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
