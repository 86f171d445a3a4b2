"""Scores of the suite: by category and group, with intervals, and those of two models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoestring.evaluate.suite.statistics import holm, mcnemar, wilson


@dataclass(frozen=True)
class Answered:
    """One question: what was said, and whether it is right. chosen: whether the right option was the likeliest, None
    where there are none."""

    category: str
    asked: str
    answer: str
    said: str
    right: bool
    chosen: bool | None = None


@dataclass(frozen=True)
class Score:
    """right of so many questions, by generation; chosen of them by log-likelihood, None where there are no options."""

    name: str
    group: str
    right: int
    of: int
    chance: float
    chosen: int | None = None

    @property
    def share(self) -> float:
        return self.right / max(self.of, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """95%, by Wilson."""
        return wilson(self.right, self.of)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**asdict(self), "share": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Evaluation:
    """left_out: categories that could not be scored here, with the reason."""

    model: str
    side: str
    scores: tuple[Score, ...]
    seconds: float
    left_out: dict[str, str]

    @property
    def groups(self) -> list[Score]:
        """The same by group."""
        found = []
        for group in dict.fromkeys(score.group for score in self.scores):
            own = [score for score in self.scores if score.group == group]
            of = sum(score.of for score in own)
            chance = sum(score.chance * score.of for score in own) / max(of, 1)
            found.append(Score(group, group, sum(score.right for score in own), of, chance))
        return found

    @property
    def total(self) -> Score:
        of = sum(score.of for score in self.scores)
        return Score("all", "all", sum(score.right for score in self.scores), of, 0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "side": self.side,
            "seconds": self.seconds,
            "total": self.total.to_json(),
            "groups": [score.to_json() for score in self.groups],
            "categories": [score.to_json() for score in self.scores],
            "left_out": self.left_out,
        }

    @classmethod
    def of(cls, value: dict[str, Any]) -> Evaluation:
        """From what `to_json` gave."""
        names = Score.__dataclass_fields__
        scores = tuple(Score(**{name: one[name] for name in names}) for one in value["categories"])
        return cls(value["model"], value["side"], scores, value["seconds"], value["left_out"])


@dataclass(frozen=True)
class Difference:
    """Of one category, between two models on the same questions. chance: that models that are alike differ as much or
    more, corrected for the number of categories (McNemar, Holm)."""

    name: str
    first: float
    second: float
    chance: float

    @property
    def real(self) -> bool:
        return self.chance < 0.05


def differences(first: Sequence[Answered], second: Sequence[Answered]) -> list[Difference]:
    """By category, for answers to the same questions in the same order; of the categories that both have."""
    found: list[tuple[str, float, float, float]] = []
    for name in dict.fromkeys(one.category for one in first):
        sides = [[one.right for one in side if one.category == name] for side in (first, second)]
        if not sides[1]:
            continue
        pairs = list(zip(*sides, strict=True))
        chance = mcnemar(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
        found.append((name, sum(sides[0]) / len(pairs), sum(sides[1]) / len(pairs), chance))
    corrected = holm([chance for *_, chance in found])
    return [Difference(name, a, b, chance) for (name, a, b, _), chance in zip(found, corrected, strict=True)]
