"""`shoestring merge RUN_OR_ADAPTER`: the adapter folded into its base, as a plain model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console

app = verb(
    "merge",
    "Fold an adapter into its base model: a plain Hugging Face folder, as fast as the base.",
    ("shoestring merge runs/finetune-1", "shoestring merge runs/finetune-1/best --out mine"),
)


@app.default
def merge(
    adapter: Annotated[str, Parameter(help="a run of finetune, or an adapter (PEFT) folder")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="the new folder [ADAPTER-merged, or OUT/merged of a run]")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Parameter(help="of the weights; auto: as the base has them")
    ] = "auto",
    json: Json = False,
) -> None:
    from shoestring.models.peft_folder import merge_folder

    folder = merge_folder(adapter, out, console.say, dtype)
    if json:
        console.print_json({"model": str(folder)})
    else:
        console.show(f"model  {folder}\nchat   shoestring chat {folder}")
