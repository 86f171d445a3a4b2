"""`compare(runs)`: runs side by side: what their recipes differ in, how they learned, what came of it.

What is shown first comes from the runs' own files. With a text or the suite their models are asked too, the same for
all, and what differs from the first run is tested pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ConfigError, RunError
from shoestring.core.units import format_bytes, format_count, format_seconds
from shoestring.core.yaml_document import read_document
from shoestring.train.metrics import read_metrics
from shoestring.train.run_folder import METRICS, RECIPE, find_run

if TYPE_CHECKING:
    from shoestring.evaluate.paired import TextDifference
    from shoestring.evaluate.suite.results import Difference

MOST = 8  # runs: as many marks as a curve can be told by
_ABOUT = ("out", "base", "description")  # of a recipe, what changes nothing that is learned
_NOT_SET = "not set"


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it. curve: (tokens, held-out loss in nats) of each evaluation of a sample, or of all
    where no sample was taken. held_out, bits_per_byte: of the checkpoint that the run recommends."""

    name: str
    path: Path
    recipe: dict[str, Any]
    steps: int
    tokens: int
    seconds: float
    loss: float | None
    held_out: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    memory: int | None
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def model(self) -> Path:
        """What the run recommends."""
        best = self.path / "best"
        return best if best.exists() else self.path / "latest"


@dataclass(frozen=True)
class Comparison:
    """differing: dotted setting -> its value in each run. texts, suite: of each run but the first, beside the first."""

    runs: list[RunRecord]
    differing: dict[str, list[Any]]
    texts: list[TextDifference] = field(default_factory=list)
    suite: list[list[Difference]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": [{**asdict(run), "path": str(run.path)} for run in self.runs],
            "differing": self.differing,
            "texts": [one.to_json() for one in self.texts],
            "suite": [[{**asdict(one), "real": one.real} for one in found] for found in self.suite],
            "suite_shares": self.shares,
        }

    def __str__(self) -> str:
        sections = [_recipes(self), _figures(self.runs), curves(self.runs)]
        if self.texts:
            sections.append(_texts(self))
        if self.suite:
            sections.append(_suite(self))
        return "\n\n".join(section for section in sections if section)


def compare(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    examples: int | None = None,
    suite: str | None = None,
    only: Sequence[str] = (),
    items: int | None = None,
) -> Comparison:
    """Two to eight run folders. data: texts on which the models are measured; examples: the first so many of them.
    suite: "core" puts the suite to the models; only, items: as `shoestring evaluate` has them.

    Raises ConfigError, RunError, DataError and ModelFileError.
    """
    if not 2 <= len(runs) <= MOST:
        raise ConfigError(f"compare takes two to {MOST} runs, found {len(runs)}", hint="shoestring compare RUN RUN")
    if suite not in (None, "core"):
        raise ConfigError(f"suite: there is core, not {suite!r}")
    records = [read_run(run) for run in runs]
    records = _named(records)
    texts: list[TextDifference] = []
    found: list[list[Difference]] = []
    shares: list[float] = []
    if data is not None or suite is not None:
        texts, found, shares = _asked(records, None if data is None else str(data), examples, suite, only, items)
    return Comparison(records, differing([run.recipe for run in records]), texts, found, shares)


def read_run(path: str | Path) -> RunRecord:
    """Raises RunError where there is no run."""
    try:
        folder = find_run(path)
    except RunError:
        raise RunError("no run here: there is no recipe.yaml", str(path), "give the --out folder of a run") from None
    recipe = read_document(folder / RECIPE).values
    lines = read_metrics(folder / METRICS)
    training = [line for line in lines if "loss" in line]
    measured = [line for line in lines if "held_out_loss" in line]
    samples = [line for line in measured if line.get("held_out_set") == "sample"] or measured
    kept = measured[-1] if measured else None
    if measured and (folder / "best").exists():
        kept = min(measured, key=lambda line: line["held_out_loss"])
    last = training[-1] if training else {}
    rates = sorted(line["tokens_per_second"] for line in training if "tokens_per_second" in line)
    return RunRecord(
        folder.name, folder, recipe, last.get("step", 0), last.get("tokens", 0), last.get("seconds", 0.0),
        last.get("loss"), kept["held_out_loss"] if kept else None, kept["bits_per_byte"] if kept else None,
        rates[len(rates) // 2] if rates else None,
        max((line["memory"] for line in training if "memory" in line), default=None),
        [(line["tokens"], line["held_out_loss"]) for line in samples],
    )  # fmt: skip


def _named(records: list[RunRecord]) -> list[RunRecord]:
    """By their folders' names, or by whole paths where two have one name."""
    names = [record.name for record in records]
    if len(set(names)) == len(names):
        return records
    return [RunRecord(**{**record.__dict__, "name": str(record.path)}) for record in records]


def differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted settings that are not alike in all of them, with the value in each."""
    flats = [_flat(recipe) for recipe in recipes]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    found = {}
    for key in keys:
        values = [flat.get(key, _NOT_SET) for flat in flats]
        if key.split(".")[0] not in _ABOUT and any(value != values[0] for value in values[1:]):
            found[key] = values
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _asked(
    records: Sequence[RunRecord], data: str | None, examples: int | None, suite: str | None, only: Sequence[str],
    items: int | None,
) -> tuple[list[TextDifference], list[list[Difference]], list[float]]:  # fmt: skip
    """The models, one after another, on the same texts and questions."""
    from shoestring.core import console
    from shoestring.evaluate.paired import text_difference, text_losses
    from shoestring.evaluate.suite.kept import Kept, digest_of
    from shoestring.evaluate.suite.question import ITEMS
    from shoestring.evaluate.suite.results import differences
    from shoestring.evaluate.suite.run import evaluate
    from shoestring.offload.load import close, load

    losses, answers, shares = [], [], []
    for record in records:
        language = load(record.model, say=console.say, scoring=True)
        try:
            if data is not None:
                losses.append(text_losses(language, data, examples))
            if suite is not None:
                digest = digest_of(language)
                kept = None if digest is None else Kept(digest)
                found, answered = evaluate(language, only=only, items=items or ITEMS, name=record.name, kept=kept)
                answers.append(answered)
                shares.append(found.total.share)
        finally:
            close(language)
    texts = [text_difference(losses[0], other) for other in losses[1:]]
    return texts, [differences(answers[0], other) for other in answers[1:]], shares


# --- as text -------------------------------------------------------------------------------------------------


def _recipes(comparison: Comparison) -> str:
    if not comparison.differing:
        return "the recipes are alike"
    rows = [[key, *(_shown(value) for value in values)] for key, values in comparison.differing.items()]
    return _table(["settings that differ", *(run.name for run in comparison.runs)], rows)


def _figures(runs: Sequence[RunRecord]) -> str:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = [
        ["steps", *(f"{run.steps:,}" for run in runs)],
        ["tokens", *(format_count(run.tokens) for run in runs)],
        ["time", *(format_seconds(run.seconds) for run in runs)],
        ["tokens/s", *("" if run.tokens_per_second is None else format_count(run.tokens_per_second) for run in runs)],
        ["memory", *("" if run.memory is None else format_bytes(run.memory) for run in runs)],
        ["training loss, last", *(number(run.loss, ".3f") for run in runs)],
        ["held-out loss", *(number(run.held_out, ".4f") for run in runs)],
        ["held-out bits/byte", *(number(run.bits_per_byte, ".4f") for run in runs)],
    ]
    return _table(["", *(run.name for run in runs)], [row for row in rows if any(row[1:])])


def curves(runs: Sequence[RunRecord], width: int = 64, height: int = 12) -> str:
    """Held-out loss over tokens, a letter for each run; where several meet, the first one's."""
    drawn = [(chr(ord("a") + number), run) for number, run in enumerate(runs) if run.curve]
    points = [point for _, run in drawn for point in run.curve]
    if len(points) < 2:
        return ""
    most = max(tokens for tokens, _ in points) or 1
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    room = (high - low) or 1.0
    grid = [[" "] * (width + 1) for _ in range(height)]
    for letter, run in reversed(drawn):
        for tokens, loss in run.curve:
            grid[height - 1 - round((loss - low) / room * (height - 1))][round(tokens / most * width)] = letter
    lines = []
    for number, row in enumerate(grid):
        text = f"{high - number * room / (height - 1):.2f}" if number % 4 == 0 or number == height - 1 else ""
        lines.append(f"{text:>7} {'┤' if text else '│'}{''.join(row).rstrip()}")
    lines.append(f"{'':>7} └{'─' * width} {format_count(most)} tokens")
    key = ", ".join(f"{letter} {run.name}" for letter, run in drawn)
    return "\n".join(["held-out loss, nats per label", *lines, f"{'':>9}{key}"])


def _texts(comparison: Comparison) -> str:
    first = comparison.texts[0]
    runs = comparison.runs
    lines = [f"{first.texts:,} texts, {format_bytes(first.bytes)}, in bits per byte; {runs[0].name}: {first.first:.4f}"]
    for run, one in zip(runs[1:], comparison.texts, strict=True):
        verdict = "beyond chance" if one.real else "may be chance"
        lines.append(
            f"  {run.name}: {one.second:.4f}, {one.second - one.first:+.4f} (95%: {one.low:+.4f} to {one.high:+.4f}),"
            f" {verdict} (p = {_chance(one.chance)})"
        )
    return "\n".join(lines)


def _suite(comparison: Comparison) -> str:
    runs = comparison.runs
    lines = [
        f"suite, right: {', '.join(f'{run.name} {s:.1%}' for run, s in zip(runs, comparison.shares, strict=True))}"
    ]
    for run, found in zip(runs[1:], comparison.suite, strict=True):
        real = [one for one in found if one.real]
        if not real:
            lines.append(f"  no category in which {run.name} differs from {runs[0].name} beyond chance")
        for one in real:
            lines.append(f"  {run.name}, {one.name}: {one.first:.0%} → {one.second:.0%} (p = {_chance(one.chance)})")
    return "\n".join(lines)


def _chance(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else "below 0.001"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    return str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
