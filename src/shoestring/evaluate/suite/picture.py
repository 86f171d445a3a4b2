"""Scores of the groups as bars, with their intervals, one colour for each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoestring.evaluate.suite.results import Evaluation

_COLOURS = ("#1f5fa8", "#c2571a", "#7a2048")


def draw(evaluations: Sequence[Evaluation], file: Path) -> Path:
    """A PNG. The same groups of every model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [score.name for score in evaluations[0].groups]
    figure = Figure(figsize=(7.5, 0.6 + 0.34 * len(groups) * (0.6 + 0.4 * len(evaluations))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.8 / len(evaluations)
    for number, evaluation in enumerate(evaluations):
        scores = {score.name: score for score in evaluation.groups}
        places = [place + number * height for place in range(len(groups))]
        shares = [scores[name].share for name in groups]
        ends = [scores[name].interval for name in groups]
        spread = [[share - low for share, (low, _) in zip(shares, ends, strict=True)],
                  [high - share for share, (_, high) in zip(shares, ends, strict=True)]]  # fmt: skip
        axes.barh(
            places,
            shares,
            height,
            color=_COLOURS[number],
            label=evaluation.model,
            xerr=spread,
            ecolor="#5a5a5a",
            capsize=2,
        )
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(groups))], groups)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("right answers, with 95% intervals")
    axes.spines[["top", "right"]].set_visible(False)
    if len(evaluations) > 1:
        figure.legend(loc="outside lower center", ncols=len(evaluations), frameon=False)
    figure.savefig(file, dpi=150)
    return file
