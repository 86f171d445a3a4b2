"""`shoestring report RUN`: what a run did, as one page for a browser; several runs over one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console

app = verb(
    "report",
    "What a run did, as one HTML page that needs no network: curves, memory, samples, events, recipe, machine.",
    ("shoestring report runs/quickstart-1", "shoestring report runs/first runs/second --out both.html"),
)


@app.default
def report(
    run: Annotated[
        list[str], Parameter(help="the folder of a run, finished or at work; several are laid over one another")
    ],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="the page [report.html, in the one run's folder or here]")
    ] = None,
    json: Json = False,
) -> None:
    from shoestring.train.report.write import report as write

    written = write(run, out)
    if json:
        console.print_json(written.to_json())
    else:
        console.show(f"report  {written.out}")
