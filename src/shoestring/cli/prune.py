"""`shoestring prune MODEL --parameters 0.7x --calibrate SOURCE --out FOLDER`: a smaller or a sparser model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.calibration import Calibrate, Context, Memory, OnBadLine, Rows, Seed, text_settings
from shoestring.cli.columns import Columns
from shoestring.cli.verb import Json, verb
from shoestring.compression.prune.config import prune_config
from shoestring.core import console
from shoestring.core.units import parse_bytes

app = verb(
    "prune",
    "Take out of a model what counts least on your text: a smaller model of the same family, or one with zeros.",
    (
        "shoestring prune smollm2-135m --parameters 0.7x --calibrate stdlib --recover 10m --out models/smaller",
        "shoestring prune smollm2-135m --pattern 2:4 --calibrate stdlib --out models/two-of-four",
    ),
)


@app.default
def prune(
    model: Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the new folder")],
    calibrate: Calibrate = None,
    parameters: Annotated[
        str | None, Parameter(help="of the whole model, as 95M or 0.7x; chooses what shrinks, feed-forward first")
    ] = None,
    layers: Annotated[int | None, Parameter(help="kept [all]")] = None,
    feed_forward: Annotated[int | None, Parameter(help="channels kept in each layer [all]")] = None,
    heads: Annotated[int | None, Parameter(help="query heads kept in each layer, whole groups [all]")] = None,
    width: Annotated[int | None, Parameter(help="components of the residual stream kept [all]")] = None,
    sparsity: Annotated[float | None, Parameter(help="part of the weights that becomes zero, as 0.5")] = None,
    pattern: Annotated[
        Literal["2:4", "4:8"] | None, Parameter(help="zeros in a pattern: 2 of every 4 weights are kept")
    ] = None,
    method: Annotated[
        Literal["magnitude", "wanda"] | None, Parameter(help="which weights become zero [wanda, by text]")
    ] = None,
    unfitted: Annotated[
        bool, Parameter(help="leave what is kept of a matrix as it was, not fitted to what the whole one gave")
    ] = False,
    rounds: Annotated[int | None, Parameter(help="steps towards the target, each measured anew [1]")] = None,
    recover: Annotated[
        str | None, Parameter(help="training behind each round, on the same source: steps, or a time as 10m [none]")
    ] = None,
    recover_by: Annotated[
        Literal["text", "model"] | None,
        Parameter(help="learn each next token, or what the whole model predicts in its place [text]"),
    ] = None,
    learning_rate: Annotated[float | None, Parameter(help="of recovering, the highest [1e-4]")] = None,
    rows: Rows = None,
    context: Context = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Parameter(help="of the weights that are written; auto: as the model has them"),
    ] = "auto",
    seed: Seed = None,
    memory: Memory = None,
    columns: Columns = None,
    on_bad_line: OnBadLine = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        **text_settings(calibrate, rows, context, seed, columns, on_bad_line), "parameters": parameters,
        "layers": layers, "feed_forward": feed_forward, "heads": heads, "width": width, "sparsity": sparsity,
        "pattern": pattern, "method": method, "fit": False if unfitted else None, "rounds": rounds,
        "recover": recover, "recover_by": recover_by, "learning_rate": learning_rate, "dtype": dtype,
    }  # fmt: skip
    prune_config(given)  # before anything heavy is imported
    if memory is not None:
        parse_bytes(memory)

    from shoestring.compression.prune.job import prune as make

    result = make(model, out, **given, memory=memory, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
