"""`shoestring compare RUN RUN`: runs side by side."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError

app = verb(
    "compare",
    "Runs side by side: what their recipes differ in, their curves and figures; with --data or --suite also their"
    " models, by paired tests.",
    (
        "shoestring compare runs/first runs/second",
        "shoestring compare runs/first runs/second --data my-texts --examples 40",
    ),
)


@app.default
def compare(
    runs: Annotated[list[str] | None, Parameter(help="two to eight run folders", negative=())] = None,
    /,
    *,
    data: Annotated[
        str | None, Parameter(help="texts that the models are measured on, each text a pair: a file, a folder, stdlib")
    ] = None,
    examples: Annotated[int | None, Parameter(help="the first so many texts [all]")] = None,
    suite: Annotated[
        Literal["core"] | None, Parameter(help="put this suite to the models, each question a pair")
    ] = None,
    only: Annotated[str | None, Parameter(help="categories or groups of the suite, with commas [all]")] = None,
    items: Annotated[int | None, Parameter(help="questions of each category [30]")] = None,
    json: Json = False,
) -> None:
    for name, value, needed, given in (
        ("--examples", examples, "--data", data), ("--only", only, "--suite", suite),
        ("--items", items, "--suite", suite),
    ):  # fmt: skip
        if value is not None and given is None:
            raise ConfigError(f"{name} goes with {needed} (command line)")
    if examples is not None and examples < 1:
        raise ConfigError(f"--examples {examples}: at least 1 (command line)")
    from shoestring.search.compare import compare as side_by_side

    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    result = side_by_side(runs or [], data=data, examples=examples, suite=suite, only=names, items=items)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
