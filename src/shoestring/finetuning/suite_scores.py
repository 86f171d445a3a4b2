"""The suite put to the model that a run begins with, and to the best one that it made (`evaluate: {suite: core}`).

Both are asked as `shoestring evaluate` asks a model: loaded from its folder, an adapter merged. So the scores are those
that a person gets there, and answers that are kept there already are not asked for again. Training's own copy of the
model is not in memory meanwhile. What was answered stands in the run's folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core.errors import RunError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import read_json
from shoestring.evaluate.suite.kept import Kept, digest_of
from shoestring.evaluate.suite.results import Answered, Difference, Evaluation, Score, differences
from shoestring.evaluate.suite.run import evaluate
from shoestring.finetuning.config import FinetuneRecipe
from shoestring.offload.load import close, load
from shoestring.train.run import find_once, say

SCORES = "suite.json"
_ALL = "all"


@dataclass(frozen=True)
class Asked:
    """What a model answered. checkpoint: of the run, "" for the model that it began with."""

    checkpoint: str
    evaluation: Evaluation
    answered: list[Answered]


@dataclass(frozen=True)
class SuiteScores:
    """before, after: of the same questions. groups, categories: both shares of each, and whether they differ beyond
    chance (McNemar, Holm over the groups or the categories); all: of all questions together.

    left_out: categories that were not put to both, with the reason.
    """

    before: Evaluation
    after: Evaluation
    groups: list[Difference]
    categories: list[Difference]
    all: Difference
    left_out: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "groups": [_to_json(one) for one in self.groups],
            "categories": [_to_json(one) for one in self.categories],
            "all": _to_json(self.all),
            "left_out": self.left_out,
        }

    def lines(self) -> list[str]:
        """A table of the groups, and the categories that changed."""
        rows = [
            (one.name, _shown(first), _shown(second), _verdict(one))
            for one, first, second in zip(
                [*self.groups, self.all],
                [*self.before.groups, self.before.total],
                [*self.after.groups, self.after.total],
                strict=True,
            )
        ]
        head = ("right, with 95% intervals", "before", "after", "beyond chance")
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(3)]
        lines = []
        for number, (name, first, second, verdict) in enumerate([head, *rows]):
            title = "suite     " if number == 0 else " " * 10
            lines.append(f"{title}{name:<{widths[0]}}  {first:>{widths[1]}}  {second:>{widths[2]}}  {verdict}".rstrip())
        for verdict in ("better", "worse"):
            changed = [one for one in self.categories if _verdict(one) == verdict]
            shown = ", ".join(f"{one.name} ({one.first:.0%} → {one.second:.0%})" for one in changed)
            lines.append(f"{verdict:<9} {shown or 'in no category beyond chance'}")
        lines += [f"left out  {name}: {why}" for name, why in self.left_out.items()]
        return lines


def before(recipe: FinetuneRecipe, base: Path) -> Asked:
    """Of the model that the run begins with."""
    say("before    the suite is put to the model")
    return _ask(recipe, base, recipe.model, "")


def after(recipe: FinetuneRecipe, out: Path, best: Path) -> SuiteScores:
    """Of a run that has ended: what stands in its folder, and what is missing there. best: the checkpoint to ask."""
    file = out / SCORES
    found = _read(file)
    first, second = found.get("before"), found.get("after")
    if first is None:
        first = before(recipe, find_once(recipe.model))
    if second is None or second.checkpoint != best.name:
        say(f"after     the suite is put to {best.name}")
        second = _ask(recipe, best, str(out), best.name)
    if not _same_questions(first, second):  # kept by another version of the suite
        say(f"before    the questions in {file} are not those of this version: they are asked again")
        first, second = before(recipe, find_once(recipe.model)), _ask(recipe, best, str(out), best.name)
    save(file, first, second)
    return compared(first, second)


def compared(first: Asked, second: Asked) -> SuiteScores:
    """Over the categories that were put to both."""
    left_out = {**first.evaluation.left_out, **second.evaluation.left_out}
    one, other = (_without(asked, left_out) for asked in (first, second))
    groups = {score.name: score.group for score in one.evaluation.scores}

    def by(names: dict[str, str] | None) -> list[Difference]:
        sides = [
            [replace(each, category=_ALL if names is None else names[each.category]) for each in side.answered]
            for side in (one, other)
        ]
        return differences(*sides)

    (whole,) = by(None) or [Difference(_ALL, 0.0, 0.0, 1.0)]
    each = differences(one.answered, other.answered)
    return SuiteScores(one.evaluation, other.evaluation, by(groups), each, whole, left_out)


def save(file: Path, first: Asked, second: Asked | None = None) -> None:
    with atomic_write(file) as out:
        sides = {"before": first, "after": second}
        json.dump({name: asdict(side) for name, side in sides.items() if side}, out, indent=1, ensure_ascii=False)
        out.write("\n")


def _read(file: Path) -> dict[str, Asked]:
    """Raises RunError for a file that is not as `save` writes it."""
    if not file.is_file():
        return {}
    try:
        return {name: _asked(values) for name, values in read_json(file).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"not the suite's scores of a run: {error}", str(file), "remove this file") from error


def _asked(values: dict[str, Any]) -> Asked:
    evaluation = dict(values["evaluation"])
    evaluation["scores"] = tuple(Score(**score) for score in evaluation["scores"])
    return Asked(values["checkpoint"], Evaluation(**evaluation), [Answered(**one) for one in values["answered"]])


def _ask(recipe: FinetuneRecipe, model: Path, name: str, checkpoint: str) -> Asked:
    section = recipe.evaluate
    language = load(model, recipe.device, memory=recipe.budget.memory, say=say)
    try:
        digest = digest_of(language)
        kept = None if digest is None else Kept(digest)
        found, answered = evaluate(language, only=section.only, items=section.items, name=name, kept=kept)
    finally:
        close(language)
    return Asked(checkpoint, found, answered)


def _same_questions(first: Asked, second: Asked) -> bool:
    left_out = {**first.evaluation.left_out, **second.evaluation.left_out}
    asked = [
        [(one.category, one.asked) for one in side.answered if one.category not in left_out] for side in (first, second)
    ]
    return asked[0] == asked[1]


def _without(asked: Asked, left_out: dict[str, str]) -> Asked:
    scores = tuple(score for score in asked.evaluation.scores if score.name not in left_out)
    answered = [one for one in asked.answered if one.category not in left_out]
    return Asked(asked.checkpoint, replace(asked.evaluation, scores=scores), answered)


def _to_json(one: Difference) -> dict[str, Any]:
    return {**asdict(one), "real": one.real}


def _shown(score: Score) -> str:
    low, high = score.interval
    return f"{score.share:.0%} ({low:.0%} to {high:.0%})"


def _verdict(one: Difference) -> str:
    if not one.real:
        return ""
    return "better" if one.second > one.first else "worse"
