"""`shoestring evaluate MODEL`: what a model can do, scored by programs; several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError

if TYPE_CHECKING:
    from shoestring.evaluate.suite.results import Answered, Evaluation, Score

app = verb(
    "evaluate",
    "Put the suite to a model: questions of many categories, each answer scored by a program.",
    (
        "shoestring evaluate smollm2-135m --only arithmetic",
        "shoestring evaluate smollm2-135m runs/finetune-1 --plot scores.png",
    ),
)


@app.default
def evaluate(
    model: Annotated[list[str], Parameter(help="a MODEL or an adapter's folder; up to three are compared", negative=())],
    /,
    *,
    only: Annotated[str | None, Parameter(help="categories or groups, with commas [all]")] = None,
    side: Annotated[
        Literal["held-out", "development"], Parameter(help="which questions; those held out are never in exercises to train on")
    ] = "held-out",
    items: Annotated[int | None, Parameter(help="questions of each category [30]")] = None,
    show: Annotated[str | None, Parameter(help="print some questions and answers of this category")] = None,
    transcripts: Annotated[Path | None, Parameter(help="write each question, answer and verdict into this .jsonl file")] = None,
    plot: Annotated[Path | None, Parameter(help="draw the scores of the groups as a .png file")] = None,
    again: Annotated[bool, Parameter(help="ask again what was answered before")] = False,
    memory: Annotated[
        str | None, Parameter(help="the whole process at most, as 2GB; layers stream from disk if they must")
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps")] = "auto",
    dtype: Annotated[str, Parameter(help="auto (float32), float32, bfloat16 or float16")] = "auto",
    json: Json = False,
) -> None:
    from shoestring.evaluate.suite.categories.every import CATEGORIES
    from shoestring.evaluate.suite.question import ITEMS

    if not 1 <= len(model) <= 3:
        raise ConfigError("evaluate takes one, two or three models (command line)")
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    if show is not None:
        if show not in {category.name for category in CATEGORIES}:
            raise ConfigError(f"no category {show!r} (command line)", hint="shoestring evaluate MODEL lists them")
        names = [show]
    count = ITEMS if items is None else items
    if not 1 <= count <= ITEMS:
        raise ConfigError(f"items {count}: from 1 to {ITEMS} (command line)")

    from shoestring.evaluate.suite.picture import draw
    from shoestring.evaluate.suite.run import categories, digest_of, transcripts as write
    from shoestring.evaluate.suite.run import evaluate as ask
    from shoestring.offload.load import load

    categories(names)  # before a model is loaded
    done = []
    for name in model:
        language = load(name, device, dtype, memory, say=console.say)
        done.append(ask(language, side, names, count, name, "" if again else digest_of(language)))
        del language
    evaluations = [evaluation for evaluation, _ in done]
    if transcripts is not None:
        write([one for _, answered in done for one in answered], transcripts)
    if plot is not None:
        draw(evaluations, plot)
    if json:
        console.print_json([evaluation.to_json() for evaluation in evaluations])
        return
    if show is not None:
        _print_answers(done[0][1])
    _print_scores(evaluations)
    for (_, first), (_, second), name in [(done[0], other, other[0].model) for other in done[1:]]:
        _print_differences(first, second, evaluations[0].model, name)
    for name, why in evaluations[0].left_out.items():
        console.say(f"left out: {name}: {why}")


def _print_answers(answered: list[Answered], most: int = 5) -> None:
    for one in answered[:most]:
        verdict = "right" if one.right else f"wrong, it is {one.answer}"
        console.show(f"Q: {one.asked}\nA: {one.said}\n   {verdict}\n")


def _print_scores(evaluations: list[Evaluation]) -> None:
    columns = ["", *(evaluation.model for evaluation in evaluations), "by chance", "by likelihood"]
    rows: list[list[Any]] = []
    for group in evaluations[0].groups:
        rows.append([group.name, *(_shown(_named(one.groups, group.name)) for one in evaluations), "", ""])
        for score in evaluations[0].scores:
            if score.group == group.name:
                shares = [_shown(_named(one.scores, score.name)) for one in evaluations]
                chosen = "" if score.chosen is None else f"{score.chosen / score.of:.0%}"
                rows.append([f"  {score.name}", *shares, f"{score.chance:.0%}" if score.chance else "", chosen])
    rows.append(["all", *(_shown(one.total) for one in evaluations), "", ""])
    console.out.print(console.table(columns, rows, right=columns[1:]))


def _named(scores: Any, name: str) -> Score:
    return next(score for score in scores if score.name == name)


def _shown(score: Score) -> str:
    low, high = score.interval
    return f"{score.share:.0%} ({low:.0%} to {high:.0%})"


def _print_differences(first: list[Answered], second: list[Answered], one: str, other: str) -> None:
    from shoestring.evaluate.suite.results import differences

    real = [found for found in differences(first, second) if found.real]
    if not real:
        console.show(f"no category in which {other} differs from {one} beyond chance")
        return
    console.show(f"{other} beside {one}, differences beyond chance (McNemar, 5% over all categories):")
    for found in real:
        console.show(f"  {found.name}: {found.first:.0%} → {found.second:.0%}")
