"""`shoestring quantize MODEL --calibrate SOURCE --out FOLDER`: the same model with weights of few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
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
    calibrate: Annotated[
        str | None,
        Parameter(
            help="a text, a folder, stdlib, or rows, also conversations: like what the model is for; a part of it is"
            " kept apart, to measure before and after"
        ),
    ] = None,
    steps: Annotated[int | None, Parameter(help="of --method learned, for each block [100]")] = None,
    asymmetric: Annotated[bool, Parameter(help="a zero point for each group: nearer weights, a little larger")] = False,
    activations: Annotated[
        Literal["int8"] | None, Parameter(help="inputs in 8 bits as well; with --bits 8 --group 0 [as they are]")
    ] = None,
    rows: Annotated[int | None, Parameter(help="of calibration text [64]")] = None,
    context: Annotated[int | None, Parameter(help="tokens of a row [512, or what the model can]")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Parameter(help="of embedding, head and norms; auto: as the model has them"),
    ] = "auto",
    seed: Annotated[int | None, Parameter(help="of the choice of rows [0]")] = None,
    memory: Annotated[
        str | None, Parameter(help="the whole process at most, as 3GB; the text may have to go to disk")
    ] = None,
    columns: Columns = None,
    on_bad_line: Annotated[
        Literal["stop", "skip"] | None, Parameter(help="rows that cannot be used; skip counts [stop]")
    ] = None,
    json: Json = False,
) -> None:
    given: dict[str, Any] = {
        "bits": bits, "group": group, "method": method, "calibrate": calibrate, "symmetric": not asymmetric,
        "activations": activations, "rows": rows, "context": context, "dtype": dtype, "seed": seed, "steps": steps,
        "columns": columns_of(columns) or None, "on_bad_line": on_bad_line,
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
