"""What the recipe elite-sft teaches SmolLM2-135M-Instruct, beside what Elite-112M claims of itself.

    python -m benchmarks.elite_table [--minutes N] [--out FOLDER | --run FOLDER] [--all]

Elite-112M claims six shares of right answers (factual recall 20%, form of sums 90%, right sums 10%, structure of code
70%, instructions 30%, patterns 60%), which no program ever scored. Six groups of the suite stand for them. Their
questions that are held out, none of which is among the exercises of the recipe, are put to the model as it comes and to
the model as the recipe leaves it. A claim is beaten where the share of right answers is above it; the interval is of
95%, by Wilson. --all puts the whole suite to both and shows what got worse elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import finish, run_worker, show

if TYPE_CHECKING:
    from shoestring.evaluate.suite.results import Answered, Evaluation, Score

RECIPE = "elite-sft"
# The claim's name, the suite's group, the share that is claimed.
CLAIMS = (
    ("factual recall", "facts", 0.2),
    ("form of sums", "arithmetic format", 0.9),
    ("right sums", "arithmetic", 0.1),
    ("structure of code", "code structure", 0.7),
    ("instructions", "instructions", 0.3),
    ("patterns", "patterns", 0.6),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, help="of training [as the recipe says]")
    parser.add_argument("--run", type=Path, help="the folder of a run that is there, instead of training")
    parser.add_argument("--out", type=Path, help="a new folder for the run that is trained [none is kept]")
    parser.add_argument("--all", action="store_true", help="the whole suite, and what got worse")
    parser.add_argument("--items", type=int, default=30, help="questions of each category")
    parser.add_argument("--side", choices=("held-out", "development"), default="held-out")
    parser.add_argument(
        "--quick", action="store_true", help="a minute of training, five questions of a category: coarse"
    )
    parser.add_argument("--worker", choices=("train",), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.items = 1.0, 5
    if arguments.worker == "train":
        print(json.dumps(_train(arguments.folder, arguments.minutes)))
        return
    with tempfile.TemporaryDirectory() as text:
        if arguments.run is None:
            given = [] if arguments.minutes is None else ["--minutes", str(arguments.minutes)]
            print(f"training {RECIPE}", file=sys.stderr, flush=True)
            folder = str(arguments.out or Path(text) / "run")
            run = run_worker("benchmarks.elite_table", "--worker", "train", "--folder", folder, *given)
            tuned, minutes = run["model"], run["wall"] / 60
        else:
            tuned, minutes = str(arguments.run), None
        groups = () if arguments.all else tuple(group for _, group, _ in CLAIMS)
        from shoestring.finetuning.config import load_finetune_recipe

        before = _evaluated(load_finetune_recipe(RECIPE).model, arguments.side, groups, arguments.items)
        after = _evaluated(tuned, arguments.side, groups, arguments.items)
    _report(before, after, minutes)


def _train(folder: Path, minutes: float | None) -> dict[str, Any]:
    import shoestring

    result = shoestring.finetune(RECIPE, time=None if minutes is None else f"{60 * minutes:.0f}s", out=folder)
    return {"model": str(result.model), "steps": result.steps, "tokens": result.tokens}


def _evaluated(model: str, side: Any, groups: Sequence[str], items: int) -> tuple[Evaluation, list[Answered]]:
    """Answers are kept, so that a benchmark that was stopped goes on."""
    from shoestring.evaluate.suite.kept import Kept, digest_of
    from shoestring.evaluate.suite.run import evaluate
    from shoestring.generate.language_model import LanguageModel

    began = time.perf_counter()
    language = LanguageModel.load(model)
    digest = digest_of(language)
    found = evaluate(language, side, groups, items, model, None if digest is None else Kept(digest))
    print(f"{model}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def figures(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """rows_beaten, and what each of the six has before and after."""
    found: dict[str, Any] = {"rows_beaten": 0}
    for name, group, claim in CLAIMS:
        first, second = _group(before, group), _group(after, group)
        low, high = second.interval
        found["rows_beaten"] += second.share > claim
        found[name.replace(" ", "_")] = {
            "claim": claim, "before": round(first.share, 4), "after": round(second.share, 4), "low": round(low, 4),
            "high": round(high, 4), "of": second.of,
        }  # fmt: skip
    return found


def _report(
    before: tuple[Evaluation, list[Answered]], after: tuple[Evaluation, list[Answered]], minutes: float | None
) -> None:
    first, second = before[0], after[0]
    found = figures(first, second)
    rows = []
    for name, group, claim in CLAIMS:
        old, new = _group(first, group), _group(second, group)
        mark = "beaten" if new.share > claim else "not beaten"
        rows.append([f"{name} ({group})", f"{claim:.0%}", f"{old.share:.1%}", f"{new.share:.1%}", _interval(new), mark])
    took = "" if minutes is None else f", {minutes:.1f} min of training"
    show(f"{second.side} questions{took}", ["", "claim", "before", "after", "95% interval", ""], rows)
    claimed = {group for _, group, _ in CLAIMS}
    _show_categories("Those groups by category", first, second, claimed)
    others = {score.group for score in first.scores} - claimed
    if others:
        rows = [
            [old.name, f"{old.share:.1%}", f"{new.share:.1%}", _interval(new)]
            for old, new in zip(first.groups, second.groups, strict=True)
            if old.name in others
        ]  # fmt: skip
        show("The other groups", ["", "before", "after", "95% interval"], rows)
        fallen = [
            [score.name, score.group, f"{score.share:.1%}", f"{_named(second, score.name).share:.1%}"]
            for score in first.scores if score.group in others and _named(second, score.name).right < score.right
        ]  # fmt: skip
        show("What got worse elsewhere", ["", "group", "before", "after"], fallen)
        found["worse_categories"] = len(fallen)
        found["all_before"], found["all_after"] = first.total.share, second.total.share
        _show_real(before[1], after[1])
    for name, why in second.left_out.items():
        print(f"left out: {name}: {why}")
    finish(found | ({} if minutes is None else {"minutes": minutes}))


def _show_categories(title: str, first: Evaluation, second: Evaluation, groups: set[str]) -> None:
    rows = [
        [score.name, score.group, f"{score.share:.1%}", f"{_named(second, score.name).share:.1%}"]
        for score in first.scores if score.group in groups
    ]  # fmt: skip
    show(title, ["", "group", "before", "after"], rows)


def _show_real(first: list[Answered], second: list[Answered]) -> None:
    """Differences that chance does not explain (McNemar, corrected by Holm)."""
    from shoestring.evaluate.suite.results import differences

    real = [one for one in differences(first, second) if one.real]
    worse = ", ".join(f"{one.name} ({one.first:.0%} to {one.second:.0%})" for one in real if one.second < one.first)
    better = sum(one.second > one.first for one in real)
    print(f"beyond chance: {better} categories are better; worse: {worse or 'none'}")


def _group(evaluation: Evaluation, name: str) -> Score:
    return next(score for score in evaluation.groups if score.name == name)


def _named(evaluation: Evaluation, name: str) -> Score:
    return next(score for score in evaluation.scores if score.name == name)


def _interval(score: Score) -> str:
    low, high = score.interval
    return f"{low:.1%} to {high:.1%}"


if __name__ == "__main__":
    main()
