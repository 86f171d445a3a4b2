"""`compress`: a model and a goal in, the best of several smaller models out, with the table of what was tried.

Candidates are made one after another by the verbs of this room, each in a folder beside the one that will be, and
measured on the same held-out text, with `suite` on the same questions too. Sizes are predicted, so what cannot meet the
target is not made. `choice` says which one is next and which is taken; `journal` is why nothing is done twice.
"""

from __future__ import annotations

import os
import shutil
import time as clock
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.compress.candidates import PARTS, Candidate, Shapes, families
from shoestring.compression.compress.cast import cast
from shoestring.compression.compress.choice import Figures, Goal, best, following, why_not
from shoestring.compression.compress.config import CompressConfig, compress_config
from shoestring.compression.compress.journal import Journal, journal
from shoestring.compression.compress.measure import AT_ONCE, loss_of, suite_of
from shoestring.compression.compress.result import Compressed, Row
from shoestring.compression.decoding import decode_both
from shoestring.compression.prune.config import prune_config
from shoestring.compression.prune.job import prune
from shoestring.compression.prune.shape import target_shape
from shoestring.compression.prune.text import STEP_TOKENS
from shoestring.compression.quantize.blocks import check_model
from shoestring.compression.quantize.config import LINEARS
from shoestring.compression.quantize.job import quantize
from shoestring.compression.report import write_report
from shoestring.compression.text_config import TOGETHER
from shoestring.core.errors import BudgetError, ConfigError, RunError
from shoestring.core.files import atomic_folder, check_new, remove_folder
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import format_bytes
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import build, build_block
from shoestring.models.config import ModelConfig
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import check_rows
from shoestring.models.peft_folder import is_adapter
from shoestring.models.resolve import Say, find_model
from shoestring.models.rounded_rows import ENDS
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.quantized.config import PackedConfig

# Settings that the verbs take as they are.
_TEXT = ("calibrate", "read", "rows", "context", "held_out", "seed", "columns", "on_bad_line")


def compress(
    model: str | Path,
    out: str | Path,
    target: str | int | None = None,
    keep: str | float | None = None,
    calibrate: str | Path | None = None,
    time: str | float | None = None,
    recover: int | None = None,
    suite: str | None = None,
    items: int | None = None,
    rows: int | None = None,
    context: int | None = None,
    held_out: int | None = None,
    seed: int | None = None,
    columns: dict[str, str] | None = None,
    on_bad_line: OnBadLine | None = None,
    memory: str | int | None = None,
    say: Say | None = None,
) -> Compressed:
    """Write the best model that meets the goal into the new folder `out`.

    target: bytes of weights at most ("100MB"), or a part of what they take now ("0.5x"): of what is small enough the
    one that keeps most is taken. keep: a share of the quality ("95%"): of what keeps it the smallest is taken.
    calibrate: a source of text or examples; a part of it is kept apart, and what is left of the quality is measured on
    that: perplexity before by perplexity after. recover: steps of training behind pruning, 0 for no pruning. suite:
    "core" asks each candidate the suite's questions too, `items` of each category; then the worse of both counts. time:
    no candidate is begun after so long ("30m"). memory: of the whole process at most; then nothing is pruned. The
    others are those of `quantize`. A run that was stopped goes on where it was if it is asked for the same. Raises
    ConfigError, also for a target that cannot be met, DataError, ModelFileError, and RunError where the folder exists
    or the time was too short for any candidate.
    """
    settings = compress_config(
        {
            "target": target, "keep": keep, "calibrate": None if calibrate is None else str(calibrate), "time": time,
            "recover": recover, "suite": suite, "items": items, "rows": rows, "context": context, "held_out": held_out,
            "seed": seed, "columns": columns, "on_bad_line": on_bad_line, "memory": memory,
        }
    )  # fmt: skip
    check_new(out)
    allocator.install()
    folder = find_model(model, say=say)
    if is_adapter(folder):
        raise ConfigError(
            f"{model} is an adapter, and has no weights of its own to make smaller",
            hint=f"fold it into its base first: shoestring merge {model}",
        )
    job = _Job(folder, str(model), Path(out), settings, say)
    with journal(Path(out), job.made_of(), say) as work:
        return job.run(work)


class _Job:
    """One model and one goal. Raises what can be said before any work."""

    def __init__(self, folder: Path, model: str, out: Path, settings: CompressConfig, say: Say | None):
        self.folder, self.model, self.out, self.settings, self.say = folder, model, out, settings, say
        self.started = clock.monotonic()
        with WeightFiles(folder) as files:
            config = self.config = files.config
            check_model(config, PackedConfig(group=None), str(folder))
            self.shapes = _shapes(files)
            self.weights = Fingerprint.of([file.path for file in files.files]).digest
        self.steps = settings.recovering
        self.families = families(self.shapes, _left(self.config, self.shapes) if self.steps else {}, self.steps)
        self.limit = settings.limit(self.shapes.stored)
        self._check_possible()
        tokenizer = Tokenizer.load(folder)
        check_rows(tokenizer, config, folder)
        together = TOGETHER if settings.memory is None else AT_ONCE
        # What pruning trains on and what is measured are drawn from the same text, so that no candidate has seen it.
        context = min(settings.context, config.context)
        read = max(settings.rows, -(-self.steps * STEP_TOKENS // context)) + settings.held_out
        self.reading = settings if read == settings.rows else settings.model_copy(update={"read": read})
        self.text: Calibration = read_calibration(self.reading, tokenizer, config.context, say, together)

    def _check_possible(self) -> None:
        """Raises ConfigError for a target that the model meets already, or that nothing can."""
        if self.limit is None:
            return
        stored = self.shapes.stored
        if self.limit >= stored:
            raise ConfigError(
                f"the target is {format_bytes(self.limit)}, and the model's weights take {format_bytes(stored)}",
                hint="give a smaller --target",
            )
        least = min((each for family in self.families for each in family), key=lambda each: each.bytes)
        if least.bytes > self.limit:
            raise ConfigError(
                f"the target of {format_bytes(self.limit)} cannot be reached: the smallest is"
                f" {_megabytes(least.bytes)} ({least.name}), of which embedding, head and norms take"
                f" {_megabytes(least.outside)}",
                hint=f"--target {_megabytes(least.bytes).replace(' ', '')} can be reached",
            )

    def made_of(self) -> dict[str, Any]:
        """All that decides figures."""
        return {
            "weights": self.weights, "config": self.config.model_dump(mode="json"),
            "settings": self.settings.measuring(), "text": self.text.digest(),
        }  # fmt: skip

    def run(self, work: Journal) -> Compressed:
        before = work.before or self._before(work)
        goal = Goal(before, self.limit, self.settings.keep)
        while (candidate := following(self.families, work.found, goal)) is not None:
            if self._time_is_up() and work.found:
                break
            self._try(candidate, work, goal)
        key = best(work.found, goal)
        if key is None:
            raise self._nothing(work, goal)
        chosen = next(each for family in self.families for each in family if each.key == key)
        if not work.place(key).is_dir():  # beaten under another goal, or taken away
            self._make(chosen, work.place(key))
        return self._finish(work, goal, chosen)

    def _before(self, work: Journal) -> Figures:
        loss, bits = loss_of(self.folder, self.text, self.settings.memory)
        share = None
        if self.settings.suite is not None:
            self._tell("before    the suite is put to the model")
            share = suite_of(self.folder, self.model, self.settings, self.say)
            if not share:
                raise ConfigError(
                    "the model answers none of the suite's questions, so none can be kept", hint="leave out --suite"
                )
        before = Figures(self.shapes.stored, loss, bits, share)
        work.set_before(before)
        return before

    def _try(self, candidate: Candidate, work: Journal, goal: Goal) -> None:
        self._tell(f"try       {candidate.name}: {format_bytes(candidate.bytes)} predicted")
        began, place = clock.monotonic(), work.place(candidate.key)
        remove_folder(place)  # finished, but not measured
        try:
            found = self._measured(candidate, place)
        except BudgetError as error:
            found = Figures(candidate.bytes, failed=error.message)
        work.add(candidate.key, replace(found, seconds=clock.monotonic() - began))
        work.keep_only(best(work.found, goal))
        change = f"perplexity {goal.before.perplexity:.3f} -> {found.perplexity:.3f}, {goal.quality(found):.1%} kept"
        self._tell(f"          {found.failed or change}")

    def _measured(self, candidate: Candidate, place: Path) -> Figures:
        found = self._make(candidate, place)
        if found is None:
            loss, bits = loss_of(place, self.text, self.settings.memory)
            found = Figures(candidate.bytes, loss, bits)
        if found.decoding is None:
            found = replace(found, decoding=self._decoding(place))
        if self.settings.suite is None:
            return found
        return replace(found, suite=suite_of(place, candidate.name, self.settings, self.say))

    def _make(self, candidate: Candidate, place: Path) -> Figures | None:
        """Its folder; -> its figures, as far as the last step measured them on this text."""
        found = None
        source = self.folder
        for number, (verb, settings) in enumerate(candidate.steps):
            last = number == len(candidate.steps) - 1
            to = place if last else place.with_name(f"{place.name}-{number}")
            if last or not to.is_dir():  # else a run that was killed made it
                found = _VERBS[verb](self, source, to, settings)
            if source != self.folder:
                remove_folder(source)
            source = to
        return found

    def cast(self, source: Path, to: Path, settings: dict[str, Any]) -> None:
        cast(source, to, **settings)

    def quantize(self, source: Path, to: Path, settings: dict[str, Any]) -> Figures:
        result = quantize(source, to, memory=self.settings.memory, **settings, **self._text())
        after = result.after
        assert after.loss is not None
        decoding = None
        if result.before.decoding is not None and after.decoding is not None and source == self.folder:
            decoding = {"before": asdict(result.before.decoding), "after": asdict(after.decoding)}
        return Figures(after.weight_bytes, after.loss, after.bits_per_byte, decoding=decoding)

    def prune(self, source: Path, to: Path, settings: dict[str, Any]) -> None:
        prune(source, to, **settings, **self._text())

    def _text(self) -> dict[str, Any]:
        return {name: getattr(self.reading, name) for name in _TEXT}

    def _decoding(self, place: Path) -> dict[str, Any] | None:
        old, new = decode_both(self.folder, place, self.config, self.settings.memory)
        return None if old is None or new is None else {"before": asdict(old), "after": asdict(new)}

    def _finish(self, work: Journal, goal: Goal, chosen: Candidate) -> Compressed:
        rows = tuple(
            self._row(each, family, work, goal, chosen) for family in self.families for each in family
        )
        order = {key: number for number, key in enumerate(work.found)}
        rows = tuple(sorted(rows, key=lambda row: order.get(row.key, len(order))))
        result = Compressed(
            self.out, self.model, self.settings.model_dump(mode="json"), goal.before,
            next(row for row in rows if row.key == chosen.key), rows, self.text.labels,
            clock.monotonic() - self.started, peak_rss_bytes(),
        )  # fmt: skip
        with atomic_folder(self.out) as temporary:
            for file in work.place(chosen.key).iterdir():
                _put(file, temporary / file.name)
            (temporary / "compression.json").unlink(missing_ok=True)  # a link, whose other end is to stay
            write_report(result.report(), temporary)
        return result

    def _row(
        self, candidate: Candidate, family: list[Candidate], work: Journal, goal: Goal, chosen: Candidate
    ) -> Row:
        figures = work.found.get(candidate.key)
        said, quality = "", None
        if figures is None:
            said = why_not(candidate, family, work.found, goal) or "the time was up"
        elif figures.failed is not None:
            said = figures.failed
        else:
            quality = goal.quality(figures)
            said = "taken" if candidate.key == chosen.key else "" if goal.met(figures) else self._missed()
        return Row(candidate.key, candidate.name, candidate.bytes, candidate.steps, figures, quality, said)

    def _missed(self) -> str:
        return "too large" if self.limit is not None else "loses too much"

    def _nothing(self, work: Journal, goal: Goal) -> Exception:
        if self._time_is_up() and following(self.families, work.found, goal) is not None:
            return RunError(
                "the time was up before a candidate met the goal", str(self.out),
                "what was measured is kept: the same command with more --time goes on from there",
            )  # fmt: skip
        sound = {key: figures for key, figures in work.found.items() if figures.failed is None}
        if not sound:
            reason = next((figures.failed for figures in work.found.values()), "nothing could be tried")
            return ConfigError(f"no candidate could be made: {reason}", hint="give it more with --memory")
        key = max(sound, key=lambda key: goal.quality(sound[key]))
        name = next(each.name for family in self.families for each in family if each.key == key)
        kept, size = goal.quality(sound[key]), format_bytes(sound[key].bytes)
        return ConfigError(
            f"no candidate keeps {goal.share:.2%} of the quality: the best keeps {kept:.2%} ({name}, {size})",
            hint=f"--keep {int(kept * 1000) / 10:.1f}% can be had",
        )

    def _time_is_up(self) -> bool:
        return self.settings.time is not None and clock.monotonic() - self.started >= self.settings.time

    def _tell(self, line: str) -> None:
        if self.say is not None:
            self.say(line)


_VERBS: dict[str, Any] = {"cast": _Job.cast, "prune": _Job.prune, "quantize": _Job.quantize}


def _shapes(files: WeightFiles) -> Shapes:
    with torch.device("meta"):
        block = build_block(files.config)
    linears = {f"{name}.weight" for name in LINEARS if isinstance(block.get_submodule(name), nn.Linear)}
    matrices, rest, numbers, stored = [], 0, 0, 0
    for name, place in files.places.items():
        size = place.info.elements * place.info.dtype.itemsize
        stored += size
        if name.startswith("blocks.") and name.split(".", 2)[2] in linears:
            outputs, inputs = place.info.shape
            matrices.append((_short(name), outputs, inputs))
        else:
            rest, numbers = rest + size, numbers + place.info.elements
    float32 = files.places["embedding.weight"].info.dtype in (torch.float32, torch.float64)
    places = (files.places.get(f"{end}.weight") for end in ENDS)
    infos = [place.info for place in places if place is not None]
    ends = tuple((info.shape[0], info.shape[1], info.dtype.itemsize) for info in infos)
    return Shapes(tuple(matrices), rest, numbers, stored, float32, ends)


def _short(name: str) -> str:
    """Of a block's matrix, as `quantize --wide` has it."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _left(config: ModelConfig, shapes: Shapes) -> dict[float, Shapes]:
    """What pruning would leave of the model, by the part of its parameters."""
    found = {}
    for part in PARTS:
        settings = prune_config({"parameters": f"{part}x", "calibrate": "text"})
        try:
            left = target_shape(settings, config).applied(config)
        except ConfigError:  # no such part can be left
            break
        parameters = dict(build(left, device="meta").named_parameters())
        matrices = [
            (_short(name), weight.shape[0], weight.shape[1])
            for name, weight in parameters.items()
            if name.startswith("blocks.") and name.removesuffix(".weight").split(".", 2)[2] in LINEARS
        ]
        numbers = left.parameter_count() - sum(outputs * inputs for _, outputs, inputs in matrices)
        rest = shapes.rest * numbers // shapes.numbers  # all of it is stored alike
        ends = tuple((rows, left.width, each) for rows, _, each in shapes.ends)
        found[part] = Shapes(tuple(matrices), rest, numbers, 0, shapes.float32, ends)
    return found


def _put(file: Path, to: Path) -> None:
    """The same file under another name, or a copy where the disk has no such."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)


def _megabytes(size: int) -> str:
    """Rounded up, so that what is said can be reached."""
    return f"{-(-size // 100_000) / 10:.1f} MB"
