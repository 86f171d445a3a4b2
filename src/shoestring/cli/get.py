"""`shoestring get NAME`: a model into the cache, once, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console

app = verb(
    "get",
    "Fetch a model into the cache: a known name, hf:OWNER/NAME, or a GGUF file to convert.",
    ("shoestring get smollm2-135m", "shoestring get smollm2-135m --json"),
)


@app.default
def get(
    name: Annotated[
        str, Parameter(help="smollm2-135m, hf:OWNER/NAME[@REVISION], or the path of a .gguf file")
    ],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="also put the folder there")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        Parameter(help="storage of weights converted from GGUF; auto: the smallest exact one"),
    ] = "auto",
    refresh: Annotated[bool, Parameter(help="fetch again")] = False,
    json: Json = False,
) -> None:
    from shoestring.models.get import get as get_model

    folder = get_model(name, out=out, refresh=refresh, dtype=dtype, say=console.say)
    if json:
        console.print_json({"name": name, "folder": str(folder)})
    else:
        print(folder)
