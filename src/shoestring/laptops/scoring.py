"""`perplexity_over` and `evaluate_over`: what a model scores whose layers lie on several machines.

As in `laptops.asking` every machine makes the same calls; the last one has the losses and tells the logits to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.laptops.config import MachinesConfig

if TYPE_CHECKING:
    from shoestring.evaluate.perplexity import Perplexity
    from shoestring.generate.language_model import LanguageModel


def perplexity_over(
    machines: str | Path | MachinesConfig,
    model: str | Path,
    data: str | Path,
    context: int | None = None,
    stride: int | None = None,
    examples: int | None = None,
    on_bad_line: str = "stop",
    columns: Mapping[str, str] | None = None,
    token: str | None = None,
    listen: str | None = None,
    wait: str | None = None,
) -> dict[str, Any]:
    """`perplexity(model, data)` with a model of which each machine holds some layers. The others come by `join`.

    data: a file, which each of them gets. machines, token, listen, wait: as `finetune_over` takes them; all else as
    `perplexity`. -> {"text": for a person, "json": what `perplexity --json` prints}. Raises what both raise.
    """
    from shoestring.laptops.asking import ask_over

    request = {
        "data": str(data), "context": context, "stride": stride, "examples": examples, "on_bad_line": on_bad_line,
        "columns": dict(columns or {}),
    }  # fmt: skip
    return ask_over("perplexity", machines, model, request, token, listen, wait)


def evaluate_over(
    machines: str | Path | MachinesConfig,
    model: str | Path,
    side: str = "held-out",
    only: Sequence[str] = (),
    items: int = 30,
    token: str | None = None,
    listen: str | None = None,
    wait: str | None = None,
) -> dict[str, Any]:
    """The suite put to a model of which each machine holds some layers: `shoestring evaluate`, but for the categories
    whose answers are programs that are run, which no friend's machine should.

    -> {"text": one line, "json": {"evaluation": what `evaluate --json` prints of a model, "answered": each question
    with its answer}}. All else as `perplexity_over`.
    """
    from shoestring.laptops.asking import ask_over

    request = {"side": side, "only": list(only), "items": items, "name": str(model)}
    return ask_over("evaluate", machines, model, request, token, listen, wait)


def scored(language: LanguageModel, request: dict[str, Any], files: Path) -> Perplexity:
    """By each machine's worker. files: where what the first machine gave stands."""
    from shoestring.core import console
    from shoestring.evaluate.perplexity import perplexity

    asked = {name: request[name] for name in ("context", "stride", "examples", "on_bad_line", "columns")}
    return perplexity(language, files / request["data"], say=console.say, **asked)


@dataclass(frozen=True)
class Evaluated:
    """What the first machine shows of the suite."""

    line: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return self.line

    def to_json(self) -> dict[str, Any]:
        return self.values


def evaluated(language: LanguageModel, request: dict[str, Any], files: Path) -> Evaluated:
    """By each machine's worker."""
    from shoestring.evaluate.suite.results import Answered, Evaluation
    from shoestring.evaluate.suite.run import categories, evaluate

    chosen = categories(request["only"])
    names = [one.name for one in chosen if not one.needs_code]
    found, answered = Evaluation(request["name"], request["side"], (), 0.0, {}), list[Answered]()
    if names:  # none of them would be all there are
        found, answered = evaluate(language, request["side"], names, request["items"], request["name"])
    left = {one.name: "its answers are programs, which are not run over machines" for one in chosen if one.needs_code}
    found = replace(found, left_out={**found.left_out, **left})
    total = found.total
    return Evaluated(
        f"right on {total.right} of {total.of} questions",
        {"evaluation": found.to_json(), "answered": [asdict(one) for one in answered]},
    )
