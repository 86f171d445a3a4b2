"""What a study has found: the best trial or the front, its recipe as YAML that runs, and the closing lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.config import dump_values
from shoestring.core.files import atomic_write
from shoestring.core.units import counted, format_count, format_seconds
from shoestring.search.config import better, shown
from shoestring.search.folder import BEST, REPORT, StudyFolder
from shoestring.search.proposing import BASELINE, LOST, SETTINGS
from shoestring.search.recipes import best_recipe
from shoestring.search.space import described

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Found:
    """A trial that came to its end. settings: what it changed in the recipe; recipe: the file that has them."""

    number: int
    values: tuple[float, ...]
    settings: dict[str, Any]
    recipe: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """trials: all that count, of those that are `wanted`; finished, pruned, failed: of them. best: of one objective, or
    the first of the front; None where no trial came to its end. baseline: the recipe as it is. front: trials that no
    other one beats in everything. tokens, seconds: of training, all trials together."""

    out: Path
    recipe: str
    objectives: tuple[str, ...]
    trials: int
    wanted: int
    finished: int
    pruned: int
    failed: int
    best: Found | None
    baseline: Found | None
    front: tuple[Found, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    last_failure: str = ""
    kept: set[int] = field(default_factory=set)

    @property
    def ended(self) -> int:
        return self.finished + self.pruned + self.failed

    @property
    def improved(self) -> bool | None:
        """Whether the best trial is better than the recipe as it is; None where one of them is not known."""
        if self.best is None or self.baseline is None or len(self.objectives) > 1:
            return None
        return better(self.objectives[0], self.best.values[0], self.baseline.values[0])

    def to_json(self) -> dict[str, Any]:
        values = {**asdict(self), "out": str(self.out), "improved": self.improved, "report": str(self.out / REPORT)}
        values["kept"] = sorted(self.kept)
        for found in [values["best"], values["baseline"], *values["front"]]:
            if found is not None and found["recipe"] is not None:
                found["recipe"] = str(found["recipe"])
        return values

    def __str__(self) -> str:
        counts = f"{self.finished} finished, {self.pruned} pruned, {self.failed} failed"
        lines = [
            f"trials    {self.ended} of {self.wanted}: {counts}"
            f" · {format_count(self.tokens)} tokens · {format_seconds(self.seconds)} of training"
        ]
        if len(self.objectives) > 1:
            for one in self.front:
                lines.append(
                    f"front     trial {one.number}: {told(self.objectives, one.values)} ({described(one.settings)})"
                )
        elif self.best is not None:
            lines.append(
                f"best      trial {self.best.number}: {told(self.objectives, self.best.values)}"
                f" ({described(self.best.settings) if self.best.settings else 'the recipe as it is'})"
            )
            if self.baseline is not None:
                as_it_is = shown(self.objectives[0], self.baseline.values[0])
                lines.append(f"before    the recipe as it is: {as_it_is}")
                if not self.improved:
                    lines.append("          no trial was better than the recipe as it is")
        if self.failed and self.last_failure:
            lines.append(f"failed    the last one: {self.last_failure.splitlines()[0]}")
        lines.append(f"report    {self.out / REPORT}")
        if len(self.objectives) > 1 and self.front:
            lines.append(f"recipes   {self.out / 'front-NUMBER.yaml'}, one for each of the front")
        elif self.best is not None:
            lines.append(f"recipe    {self.best.recipe}")
        if self.ended < self.wanted:
            lines.append(f"continue  shoestring search --resume {self.out}")
        return "\n".join(lines)


def told(objectives: Sequence[str], values: Sequence[float]) -> str:
    """Values with their units."""
    return ", ".join(shown(name, value) for name, value in zip(objectives, values, strict=True))


def counted_trials(study: Study) -> list[FrozenTrial]:
    """All but those that were killed before they had any settings, and those that nobody has begun."""
    every = study.get_trials(deepcopy=False)
    return [trial for trial in every if LOST not in trial.user_attrs and trial.state.name != "WAITING"]


def same_settings(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """An earlier one with these settings that was finished or pruned."""
    wanted = trial.user_attrs[SETTINGS]
    for other in trials:
        if other.number != trial.number and other.state.name in ("COMPLETE", "PRUNED"):
            if other.user_attrs.get(SETTINGS) == wanted:
                return other
    return None


def collect(folder: StudyFolder, study: Study) -> SearchResult:
    """So far."""
    trials, objectives = counted_trials(study), folder.config.objectives
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    front = [_found(folder, trial, objectives) for trial in _front(complete, objectives)]
    best = front[0] if front else None
    baseline = next((trial for trial in complete if BASELINE in trial.user_attrs), None)
    return SearchResult(
        out=folder.path,
        recipe=folder.config.recipe,
        objectives=objectives,
        trials=len(trials),
        wanted=folder.config.trials,
        finished=len(complete),
        pruned=sum(trial.state.name == "PRUNED" for trial in trials),
        failed=len(failed),
        best=best,
        baseline=None if baseline is None else _found(folder, baseline, objectives),
        front=tuple(front),
        tokens=sum(trial.user_attrs.get("tokens", 0) for trial in trials),
        seconds=sum(trial.user_attrs.get("seconds", 0.0) for trial in trials),
        last_failure=failed[-1].user_attrs.get("reason", "") if failed else "",
        kept={found.number for found in front},
    )


def _front(complete: Sequence[FrozenTrial], objectives: Sequence[str]) -> list[FrozenTrial]:
    """Those that no other one beats in everything, ordered by the first objective; of one objective the best alone."""
    if len(objectives) == 1:
        best = None
        for trial in complete:
            if best is None or better(objectives[0], trial.values[0], best.values[0]):
                best = trial
        return [] if best is None else [best]

    def beats(first: FrozenTrial, second: FrozenTrial) -> bool:
        pairs = list(zip(objectives, first.values, second.values, strict=True))
        return all(a == b or better(name, a, b) for name, a, b in pairs) and any(better(*pair) for pair in pairs)

    front = [trial for trial in complete if not any(beats(other, trial) for other in complete)]
    first: list[FrozenTrial] = []
    for trial in front:  # of equal ones the earliest
        if not any(other.values == trial.values for other in first):
            first.append(trial)
    sign = -1.0 if better(objectives[0], 1.0, 0.0) else 1.0
    return sorted(first, key=lambda trial: sign * trial.values[0])


def _found(folder: StudyFolder, trial: FrozenTrial, objectives: Sequence[str]) -> Found:
    name = BEST if len(objectives) == 1 else f"front-{trial.number:04d}.yaml"
    return Found(trial.number, tuple(trial.values), trial.user_attrs[SETTINGS], folder.path / name)


def write_results(folder: StudyFolder, study: Study, result: SearchResult, whole: bool = True) -> None:
    """The recipes of the front, and the page. whole: also what takes a moment, such as which settings matter."""
    from shoestring.search.page import page

    wanted = {found.recipe for found in result.front}
    for old in folder.path.glob("front-*.yaml"):
        if old not in wanted:
            old.unlink()
    for found in result.front:
        assert found.recipe is not None
        values = best_recipe(folder.config, folder.base, found.settings).values
        length = _length(folder)
        head = [
            f"# Found by shoestring search: trial {found.number} of {counted(result.trials, 'trial')},",
            f"# {told(result.objectives, found.values)}{length}.",
        ]
        with atomic_write(found.recipe) as file:
            file.write("\n".join(head) + "\n" + dump_values(values))
    with atomic_write(folder.path / REPORT) as file:
        file.write(page(folder, counted_trials(study), result, whole))


def _length(folder: StudyFolder) -> str:
    budget = folder.config.budget
    if budget.tokens is not None:
        return f" after {budget.tokens:,} tokens; the length below is the recipe's own"
    if budget.time is not None:
        return f" after {budget.time:g} seconds; the length below is the recipe's own"
    return ""


def trial_line(folder: StudyFolder, trial: FrozenTrial, result: SearchResult) -> str:
    """Of one that has just ended."""
    settings = trial.user_attrs.get(SETTINGS, {})
    what = "the recipe as it is" if BASELINE in trial.user_attrs else described(settings)
    if "same as" in trial.user_attrs:
        what += f"; as trial {trial.user_attrs['same as']}"
    if trial.state.name == "COMPLETE":
        ended = told(result.objectives, trial.values)
        if result.best is not None and result.best.number == trial.number and len(result.objectives) == 1:
            ended += " (best)"
    elif trial.state.name == "PRUNED":
        last = trial.intermediate_values
        ended = "pruned" + (f" at {shown(result.objectives[0], last[max(last)])}" if last else "")
    else:
        ended = f"failed: {trial.user_attrs.get('reason', '').splitlines()[0]}"
    return f"trial {trial.number:<4} {ended} ({what})"
