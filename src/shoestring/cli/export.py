"""`shoestring export MODEL --out PLACE`: a model for other tools, checked before it is called done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.units import format_bytes
from shoestring.export.config import ExportType, Target

app = verb(
    "export",
    "Write a model for other tools: a GGUF file for llama.cpp and Ollama, a folder with an ONNX graph, or a web page.",
    (
        "shoestring export smollm2-135m --out smollm2.gguf --type q8_0",
        "shoestring export runs/finetune-1 --out adapter.gguf",
    ),
)


@app.default
def export(
    model: Annotated[str, Parameter(help="a model folder, a run, an adapter, a .gguf file, or a name that get knows")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the new file, with a Modelfile beside it; of onnx and web the new folder")],
    to: Annotated[Target, Parameter(help="what to write")] = "gguf",
    type: Annotated[
        ExportType | None,
        Parameter(
            help="of the numbers: f32 to q4_k_m are gguf's [f16; of an adapter f32], the others onnx's [fp32] and web's"
            " [int8]"
        ),
    ] = None,
    json: Json = False,
) -> None:
    from shoestring.export.job import export as write

    done = write(model, out, to, type, console.say)
    if json:
        console.print_json(
            {
                "file": str(done.file), "bytes": done.bytes, "formats": done.formats, "checked": done.checked,
                "unchecked": done.unchecked, "beside": [str(file) for file in done.beside],
            }  # fmt: skip
        )
        return
    formats = ", ".join(f"{count} {name}" for name, count in done.formats.items())
    lines = [f"file         {done.file} ({format_bytes(done.bytes)}; tensors: {formats})"]
    lines += [f"checked      {sentence}" for sentence in done.checked]
    lines += [f"not checked  {sentence}" for sentence in done.unchecked]
    lines += [f"ollama       ollama create NAME -f {file}" for file in done.beside]
    console.show("\n".join(lines))
