"""`shoestring quantize MODEL --calibrate SOURCE --out FOLDER`: the same model with weights of few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.calibration import Calibrate, Context, Memory, OnBadLine, Rows, Seed, text_settings
from shoestring.cli.columns import Columns
from shoestring.cli.verb import Json, verb
from shoestring.compression.quantize.config import quantize_config
from shoestring.core import console
from shoestring.core.units import parse_bytes

app = verb(
    "quantize",
    "Keep the matrices of a model's blocks in few bits: a smaller folder that transformers reads as well.",
    (
        "shoestring quantize smollm2-135m --calibrate stdlib --out models/four-bits",
        "shoestring quantize smollm2-135m --bits 8 --group 0 --method rtn --out models/eight-bits",
    ),
)


@app.default
def quantize(
    model: Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the new folder")],
    bits: Annotated[Literal[3, 4, 8], Parameter(help="of each weight")] = 4,
    group: Annotated[int, Parameter(help="inputs that share a scale, such as 32, 64 or 128; 0: a whole row")] = 32,
    method: Annotated[
        Literal["gptq", "rtn", "awq", "learned"],
        Parameter(
            help="rtn rounds to nearest, without text; by text: gptq, awq (inputs scaled), learned (gptq, then steps of"
            " learning, slowest)"
        ),
    ] = "gptq",
    calibrate: Calibrate = None,
    wide: Annotated[
        str | None,
        Parameter(help="in 8 bits all the same: of query, key, value, output, gate, up, down, with commas [none]"),
    ] = None,
    steps: Annotated[int | None, Parameter(help="of --method learned, for each block [100]")] = None,
    asymmetric: Annotated[bool, Parameter(help="a zero point for each group: nearer weights, a little larger")] = False,
    activations: Annotated[
        Literal["int8"] | None, Parameter(help="inputs in 8 bits as well; with --bits 8 --group 0 [as they are]")
    ] = None,
    rows: Rows = None,
    context: Context = None,
    embedding: Annotated[
        Literal[8] | None, Parameter(help="8: embedding and head in 8 bits, a scale for each row [as --dtype says]")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Parameter(help="of embedding, head and norms; auto: as the model has them"),
    ] = "auto",
    seed: Seed = None,
    memory: Memory = None,
    columns: Columns = None,
    on_bad_line: OnBadLine = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        **text_settings(calibrate, rows, context, seed, columns, on_bad_line), "bits": bits, "group": group,
        "method": method, "symmetric": not asymmetric, "activations": activations, "dtype": dtype, "steps": steps,
        "embedding": embedding,
        "wide": () if wide is None else tuple(name.strip() for name in wide.split(",")),
    }  # fmt: skip
    quantize_config(given)  # before anything heavy is imported
    if memory is not None:
        parse_bytes(memory)

    from shoestring.compression.quantize.job import quantize as make

    result = make(model, out, **given, memory=memory, say=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
