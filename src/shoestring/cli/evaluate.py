"""`shoestring evaluate MODEL`: what a model can do, scored by programs; several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.decoding import WEIGHTS_HELP, checked_weights
from shoestring.cli.over import Listen, OverMachines, Token, Wait, found_over
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError

if TYPE_CHECKING:
    from shoestring.evaluate.suite.results import Answered, Evaluation, Score
    from shoestring.generate.language_model import LanguageModel

app = verb(
    "evaluate",
    "Put the suite to a model: questions of many categories, each answer scored by a program.",
    (
        "shoestring evaluate smollm2-135m --only arithmetic,patterns",
        "shoestring evaluate --show tables",
    ),
)
_SHOWN = 5  # questions of --show


@app.default
def evaluate(
    model: Annotated[
        list[str] | None, Parameter(help="a MODEL or an adapter's folder; up to three are compared", negative=())
    ] = None,
    /,
    *,
    adapter: Annotated[str | None, Parameter(help="a run of finetune or a PEFT folder, on the one MODEL")] = None,
    suite: Annotated[Literal["core"], Parameter(help="which questions there are; core is the one suite")] = "core",
    only: Annotated[str | None, Parameter(help="categories or groups, with commas [all]")] = None,
    side: Annotated[
        Literal["held-out", "development"],
        Parameter(help="which questions; those held out are never among exercises to train on"),
    ] = "held-out",
    items: Annotated[int | None, Parameter(help="questions of each category [30]")] = None,
    show: Annotated[
        str | None,
        Parameter(help="print some questions of this category, with the answers of the MODEL if one is given"),
    ] = None,
    transcripts: Annotated[
        Path | None, Parameter(help="write each question, answer and verdict into this .jsonl file")
    ] = None,
    plot: Annotated[Path | None, Parameter(help="draw the scores of the groups as a .png file")] = None,
    again: Annotated[bool, Parameter(help="ask again what was answered before")] = False,
    memory: Annotated[
        str | None, Parameter(help="the whole process at most, as 2GB; layers stream from disk if they must")
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps")] = "auto",
    dtype: Annotated[str, Parameter(help="auto (float32), float32, bfloat16 or float16")] = "auto",
    weights: Annotated[str | None, Parameter(help=WEIGHTS_HELP)] = None,
    over: OverMachines = None,
    listen: Listen = None,
    wait: Wait = None,
    token: Token = None,
    json: Json = False,
) -> None:
    machines = over, listen, wait, token
    kept = checked_weights(weights, device, dtype, memory)
    if adapter is not None and kept == "file":
        raise ConfigError(
            "--weights file: an adapter changes the weights, which are then not the file's (command line)",
            hint="take int8 or int4",
        )

    from shoestring.evaluate.suite.categories.every import CATEGORIES
    from shoestring.evaluate.suite.question import ITEMS, questions

    models = model or []
    if show is not None and show not in (names := [category.name for category in CATEGORIES]):
        raise ConfigError(f"no category {show!r} (command line)", hint=f"one of {', '.join(names)}")
    if show is not None and not models:
        category = next(one for one in CATEGORIES if one.name == show)
        console.show(f"{category.name} ({category.group}): {category.about}\n")
        for question in questions(category, side, _SHOWN):
            console.show(f"Q: {question.shown}\nA: {question.answer}\n")
        return
    if not 1 <= len(models) <= 3:
        raise ConfigError(
            "evaluate takes one, two or three models (command line)", hint="shoestring evaluate smollm2-135m"
        )
    if adapter is not None and len(models) > 1:
        raise ConfigError(
            "--adapter is for one MODEL (command line)", hint="name the adapters' folders as models instead"
        )
    count = ITEMS if items is None else items
    if not 1 <= count <= ITEMS:
        raise ConfigError(f"--items {count}: from 1 to {ITEMS} (command line)")
    if plot is not None and plot.suffix != ".png":
        raise ConfigError(f"--plot {plot}: a name that ends in .png (command line)")

    from shoestring.evaluate.suite.kept import Kept, digest_of, write_answers
    from shoestring.evaluate.suite.picture import draw
    from shoestring.evaluate.suite.run import categories
    from shoestring.evaluate.suite.run import evaluate as ask

    names = [show] if show is not None else [name.strip() for name in (only or "").split(",") if name.strip()]
    categories(names)  # before a model is loaded
    if machines != (None,) * 4:
        if len(models) > 1 or (adapter, memory, device, dtype, weights) != (None, None, "auto", "auto", None):
            raise ConfigError(
                "over several machines one MODEL is asked, or an adapter's folder, its layers as the files have them"
                " (command line)"
            )
        _shown_over(machines, models[0], side, names, count, transcripts, plot, json, show is not None)
        return
    done = []
    for name in models:
        language, folder = _load(name, adapter, device, dtype, memory, kept)
        digest = None if again else digest_of(language, folder)
        shown = name if adapter is None else f"{name} with {adapter}"
        done.append(ask(language, side, names, count, shown, None if digest is None else Kept(digest)))
        del language
    evaluations = [evaluation for evaluation, _ in done]
    if transcripts is not None:
        write_answers([one for _, answered in done for one in answered], transcripts)
    if plot is not None and evaluations[0].scores:
        draw(evaluations, plot)
    if json:
        console.print_json([evaluation.to_json() for evaluation in evaluations])
        return
    if show is not None:
        _print_answers(done[0][1])
    _print_scores(evaluations)
    for other, answered in done[1:]:
        _print_differences(done[0][1], answered, evaluations[0].model, other.model)
    for name, why in evaluations[0].left_out.items():
        console.say(f"left out: {name}: {why}")


def _shown_over(
    machines: tuple[Path | None, str | None, str | None, str | None], model: str, side: str, names: list[str],
    count: int, transcripts: Path | None, plot: Path | None, json: bool, answers: bool,
) -> None:  # fmt: skip
    from shoestring.evaluate.suite.kept import write_answers
    from shoestring.evaluate.suite.picture import draw
    from shoestring.evaluate.suite.results import Answered, Evaluation
    from shoestring.laptops.scoring import evaluate_over

    found = found_over(evaluate_over, machines, model, side, names, count)["json"]
    evaluation, answered = Evaluation.of(found["evaluation"]), [Answered(**one) for one in found["answered"]]
    if transcripts is not None:
        write_answers(answered, transcripts)
    if plot is not None and evaluation.scores:
        draw([evaluation], plot)
    if json:
        console.print_json([{**evaluation.to_json(), "machines": found["machines"]}])
        return
    if answers:
        _print_answers(answered)
    _print_scores([evaluation])
    for name, why in evaluation.left_out.items():
        console.say(f"left out: {name}: {why}")


def _load(
    name: str, adapter: str | None, device: str, dtype: str, memory: str | None, weights: Any
) -> tuple[LanguageModel, Path | None]:
    """A model, with an adapter on it if one is named, and the adapter's folder."""
    from shoestring.models.adapters import merge
    from shoestring.models.decoding_weights import kept_as
    from shoestring.models.peft_folder import load_adapter
    from shoestring.models.resolve import find_model
    from shoestring.offload.load import load

    later = adapter is not None and memory is None and weights != "source"  # merged first, then kept as is asked
    where = "cpu" if later and weights != "float32" else device
    language = load(name, where, dtype, memory, "source" if later else weights, say=console.say, scoring=True)
    if adapter is None:
        return language, None
    folder = find_model(adapter, say=console.say)
    load_adapter(language.decoder, folder)
    if language.at_once is None:  # not streamed: its weights are here
        language.decoder = merge(language.decoder)
    if later:
        language.decoder, language.weights = kept_as(language.decoder, weights), weights
    return language, folder


def _print_answers(answered: list[Answered]) -> None:
    for one in answered[:_SHOWN]:
        verdict = "right" if one.right else f"wrong; right would be: {one.answer}"
        console.show(f"Q: {one.asked}\nA: {one.said}\n   ({verdict})\n")


def _print_scores(evaluations: list[Evaluation]) -> None:
    """Groups and their categories, a column for each model."""
    likelihood = any(score.chosen is not None for score in evaluations[0].scores)
    columns = ["", *(evaluation.model for evaluation in evaluations), "by chance", *["by likelihood"] * likelihood]
    rows: list[list[Any]] = []
    for group in evaluations[0].groups:
        rows.append([group.name, *(_shown(one.groups, group.name) for one in evaluations), "", *[""] * likelihood])
        for score in evaluations[0].scores:
            if score.group == group.name:
                row = [f"  {score.name}", *(_shown(one.scores, score.name) for one in evaluations)]
                row.append(f"{score.chance:.0%}" if score.chance else "")
                if likelihood:
                    row.append("" if score.chosen is None else f"{score.chosen / score.of:.0%}")
                rows.append(row)
    rows.append(["all", *(_share(one.total) for one in evaluations), "", *[""] * likelihood])
    console.out.print(console.table(columns, rows, right=columns[1:]))


def _shown(scores: Any, name: str) -> str:
    """Of this name; categories that do not fit a model's context have no score."""
    return next((_share(score) for score in scores if score.name == name), "left out")


def _share(score: Score) -> str:
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
