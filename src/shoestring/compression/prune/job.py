"""`prune`: a model folder in, a smaller or a sparser one out, in rounds, with training behind each if asked.

The model is read and written block by block (`compression.prune.one_round`); only recovering takes it into memory as a
whole. What comes out is a dense model of the same family.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from shoestring.compression.decoding import decode_both
from shoestring.compression.ends import measured_on
from shoestring.compression.prune.config import Method, Pattern, PruneConfig, prune_config
from shoestring.compression.prune.masks import Mask
from shoestring.compression.prune.memory import make_room
from shoestring.compression.prune.one_round import Round, Step
from shoestring.compression.prune.recovery import check_room, recovered
from shoestring.compression.prune.result import Pruned
from shoestring.compression.prune.shape import Shape, target_shape, told
from shoestring.compression.prune.text import Text, read_text
from shoestring.compression.prune.walk import nats_of
from shoestring.compression.prune.workplace import workplace
from shoestring.compression.quantize.config import LINEARS
from shoestring.compression.report import write_report
from shoestring.compression.room import Room, hidden_states, keep_to, process_bytes, refusals_told
from shoestring.compression.unfinished import Unfinished, unfinished
from shoestring.core.device import resolve_dtype
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.files import atomic_folder, check_new
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import counted, parse_bytes
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import check_rows, load_model, read_generation_config, write_model_files
from shoestring.models.peft_folder import is_adapter
from shoestring.models.resolve import Say, find_model
from shoestring.models.weight_files import WeightFiles
from shoestring.train.first_use import first_use

_ROUND = "round.json"


def prune(
    model: str | Path,
    out: str | Path,
    calibrate: str | Path | None = None,
    *,
    sparsity: float | None = None,
    pattern: Pattern | None = None,
    method: Method | None = None,
    parameters: str | int | None = None,
    layers: int | None = None,
    feed_forward: int | None = None,
    heads: int | None = None,
    width: int | None = None,
    fit: bool | None = None,
    rounds: int | None = None,
    recover: int | str | None = None,
    recover_by: Literal["text", "model"] | None = None,
    learning_rate: float | None = None,
    rows: int | None = None,
    context: int | None = None,
    held_out: int | None = None,
    read: int | None = None,
    seed: int | None = None,
    dtype: str = "auto",
    columns: dict[str, str] | None = None,
    on_bad_line: OnBadLine | None = None,
    memory: str | int | None = None,
    say: Say | None = None,
) -> Pruned:
    """Write a pruned copy of `model` into the new folder `out`.

    sparsity (a part, as 0.5) or pattern ("2:4") makes weights of the blocks' matrices zero, by method "wanda" or
    "magnitude". layers, feed_forward, heads, width, or parameters ("0.7x", "95M") take parts out, by what they change
    on the text of `calibrate` (any source of text or examples). rounds: steps towards that. recover: optimizer steps of
    training behind each, or a time such as "10m", by each next token of the text or, recover_by "model", by what the
    whole model predicts. memory: bytes ("3GB") of the whole process at most. The others are
    those of `compression.prune.config.PruneConfig`. Where there is text, the loss on a part of it that nothing is
    chosen by or trained on is measured before and after. A run that was stopped goes on where it was if it is asked for
    the same. Raises ConfigError, DataError, ModelFileError, BudgetError, RunError where the folder exists, and
    Interrupted while it recovers.
    """
    given: dict[str, Any] = {
        "calibrate": None if calibrate is None else str(calibrate), "sparsity": sparsity, "pattern": pattern,
        "method": method, "parameters": parameters, "layers": layers, "feed_forward": feed_forward, "heads": heads,
        "width": width, "fit": fit, "rounds": rounds, "recover": recover, "recover_by": recover_by,
        "learning_rate": learning_rate,
        "rows": rows, "context": context, "held_out": held_out, "read": read, "seed": seed, "dtype": dtype,
        "columns": columns, "on_bad_line": on_bad_line,
    }  # fmt: skip
    settings = prune_config(given)
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    if budget is not None and settings.recover_by == "model":
        raise ConfigError(
            "recover_by model keeps the whole model beside the one that is trained, which memory does not predict",
            hint="leave out one of them; shoestring distill has --memory",
        )
    check_new(out)
    allocator.install()
    folder = find_model(model, say=say)
    if is_adapter(folder):
        raise ConfigError(
            f"{model} is an adapter, and has no weights of its own to prune",
            hint=f"fold it into its base first: shoestring merge {model}",
        )
    with refusals_told("pruning"):
        return _Job(folder, str(model), Path(out), settings, budget, say).run()


class _Job:
    """One model on its way. Raises what `prune` does, before any block is read where that can be."""

    def __init__(
        self, folder: Path, model: str, out: Path, settings: PruneConfig, memory: int | None, say: Say | None
    ):
        self.folder, self.model, self.out, self.settings, self.say = folder, model, out, settings, say
        self.memory = memory
        self.started = time.perf_counter()
        with WeightFiles(folder) as files:
            self.config: ModelConfig = files.config
            self.weight_bytes = sum(place.info.elements * place.info.dtype.itemsize for place in files.places.values())
            self.stored = files.places["embedding.weight"].info.dtype
            self.weights = Fingerprint.of([file.path for file in files.files]).digest
        _check_model(self.config, settings, str(folder))
        self.shape = Shape.of(self.config) if settings.masks else target_shape(settings, self.config)
        training = settings.recover is not None
        if memory is not None:
            first_use(training, checkpointing=training)
        self.tokenizer: Tokenizer | None = None
        if settings.calibrate is not None or (folder / "tokenizer.json").is_file():
            self.tokenizer = Tokenizer.load(folder)
            check_rows(self.tokenizer, self.config, folder)
        self.text: Text | None = None
        if settings.calibrate is None:
            self._settle()
        else:
            assert self.tokenizer is not None
            self.text = read_text(settings, self.tokenizer, self.config.context, self._settle, say)
        if say is not None:
            self._tell(say)
        if memory is not None and training:
            assert self.text is not None
            first = next(self._steps()).shape.applied(self.config)
            check_room(first, self.out, settings, self.text, memory)
        keep_to(self.room, memory)

    def _settle(self) -> int:
        """How there is room, with the text in the process; -> tokens in a batch."""
        self.room: Room = make_room(self.config, self.settings, self.shape, process_bytes(), self.memory)
        return self.room.tokens

    def _tell(self, say: Say) -> None:
        settings, text, predicted = self.settings, self.text, self.shape.applied(self.config).parameter_count()
        times = "" if settings.rounds == 1 else f", in {settings.rounds} rounds"
        if settings.masks:
            say(f"prune     {self._what()} in {len(LINEARS) * self.config.layers} matrices{times}")
        else:
            say(f"prune     {self._what()}{times}")
            count = self.config.parameter_count()
            say(f"          {count:,} -> {predicted:,} parameters ({predicted / count - 1:+.1%}) predicted")
        if self.memory is not None:
            say(self.room.told(self.memory, text is not None))
        if text is None:
            return
        kind = "window" if text.read.form == "text" else "example"
        if text.choosing:
            say(f"calibrate {counted(text.tokens, 'token')} in {counted(text.examples, kind)} of {text.read.source}")
            parts = dense_parts(self.config)
            assert parts is not None
            widest = max(parts[0].heads * parts[0].head_width, parts[1].width)
            if not settings.masks and settings.fit and text.tokens < widest:
                say(f"          that is little: fewer than the {widest:,} inputs of a matrix that is fitted to it")
        if settings.recover is not None:
            say(f"recover   {counted(text.read.tokens, 'token')} of it to train on")
        say(f"measure   {counted(text.read.labels, 'token')} of other {kind}s")

    def _what(self) -> str:
        """What is done, in a few words."""
        settings, attention = self.settings, self.config.attention
        if settings.pattern is not None:
            return f"{settings.pattern} by {settings.method or 'wanda'}"
        if settings.sparsity is not None:
            return f"{settings.sparsity:.4g} of the weights by {settings.method or 'wanda'}"
        each = attention.heads // attention.kv_heads  # type: ignore[union-attr]
        return told(Shape.of(self.config), self.shape, each)

    def _made_of(self) -> dict[str, Any]:
        return {
            "weights": self.weights, "config": self.config.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "text": None if self.text is None else self.text.read.digest(), "threads": torch.get_num_threads(),
        }  # fmt: skip

    def _steps(self) -> Iterator[Step]:
        """Of each round."""
        settings, whole = self.settings, Shape.of(self.config)
        chosen = None if settings.dtype == "auto" else resolve_dtype(settings.dtype)
        if settings.rounds > 1:  # the last one's model before is in float32
            chosen = chosen or self.stored
        for number in range(1, settings.rounds + 1):
            done, mask = number / settings.rounds, None
            if settings.pattern is not None:
                zeros, of = settings.zeros_of
                mask = Mask(settings.method or "wanda", None, (math.ceil(zeros * done), of))
            elif settings.sparsity is not None:  # each round takes the same part of what is left
                mask = Mask(settings.method or "wanda", 1 - (1 - settings.sparsity) ** done, None)
            between = number < settings.rounds or settings.recover is not None
            shape = whole if settings.masks else whole.towards(self.shape, done)
            yield Step(mask, shape, settings.fit, torch.float32 if between else chosen)

    def run(self) -> Pruned:
        told_of, trained = [], []
        with workplace(self.out, self._made_of(), self.say) as place:
            current = self.folder
            for number, step in enumerate(self._steps(), 1):
                current, told_round = self._round(current, place / f"round-{number}", step, number)
                told_of.append(told_round)
                if self.settings.recover is not None:
                    assert self.text is not None
                    current, told_run = recovered(
                        current, place / f"recover-{number}", self.settings, self.text, number, self.memory, self.folder
                    )
                    keep_to(self.room, self.memory)
                    trained.append(told_run)
            with atomic_folder(self.out) as temporary:
                self._write(current, temporary)
                result = self._result(temporary, place, told_of, trained)
                write_report(result.report(), temporary)
        return result

    def _round(self, before: Path, after: Path, step: Step, number: int) -> tuple[Path, dict[str, Any]]:
        """The folder behind a round, made where it is not there yet, and what to tell of it."""
        settings = self.settings
        if not after.is_dir():
            what = "prune     matrices" if settings.rounds == 1 else f"round {number}   matrices"
            text = None if self.text is None else self.text.read
            batches = [] if self.text is None else self.text.choosing
            with WeightFiles(before) as files:
                pruning = Round(files, before, step, text, batches)
                with unfinished(after, pruning.made_of(), self.say) as work:
                    pruning.run(work, self.say, what, hidden_states(self.room, work.scratch))
                    with atomic_folder(after) as temporary:
                        pruning.finish(work, temporary)
                        (temporary / _ROUND).write_text(json.dumps(_told(pruning, work)))
        return after, json.loads((after / _ROUND).read_text())

    def _write(self, current: Path, folder: Path) -> None:
        """The files of the model behind the last round, in the number format that is asked for."""
        generation = read_generation_config(self.folder)
        if self.settings.recover is None:
            for path in current.iterdir():
                if path.name != _ROUND:
                    _link(path, folder / path.name)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)
            return
        dtype = self.stored if self.settings.dtype == "auto" else resolve_dtype(self.settings.dtype)
        write_model_files(load_model(current), folder, self.tokenizer, generation, dtypes=dtype)

    def _result(
        self, folder: Path, place: Path, rounds: list[dict[str, Any]], trained: list[dict[str, Any]]
    ) -> Pruned:
        """place: for what is measured, on its way."""
        with WeightFiles(folder) as files:
            weight_bytes = sum(place.info.elements * place.info.dtype.itemsize for place in files.places.values())
            found = sum(place.info.elements for place in files.places.values())
        read = None if self.text is None else self.text.read
        speeds = decode_both(self.folder, folder, self.config, self.memory, "float32")
        nats = [0.0, 0.0]
        if read is not None:
            numbers = itertools.count()
            states = hidden_states(self.room, lambda: place / f"text-{next(numbers):05d}")
            nats = [
                nats_of(source, read.measured, f"measure   {name}", states)
                for source, name in ((self.folder, "before"), (folder, "after"))
            ]
        return Pruned(
            folder=self.out, model=self.model, settings=self.settings.model_dump(mode="json"), what=self._what(),
            before=measured_on(read, self.weight_bytes, nats[0], speeds[0]),
            after=measured_on(read, weight_bytes, nats[1], speeds[1]),
            parameters_before=self.config.parameter_count(),
            parameters_predicted=self.shape.applied(self.config).parameter_count(), parameters=found,
            zeros=_zeros(folder), rounds=tuple(rounds), recovered=tuple(trained),
            tokens=0 if self.text is None else self.text.tokens,
            examples=0 if self.text is None else self.text.examples,
            labels=0 if read is None else read.labels,
            seconds=time.perf_counter() - self.started, peak_memory=peak_rss_bytes(),
        )  # fmt: skip


def _check_model(config: ModelConfig, settings: PruneConfig, where: str) -> None:
    """Raises ModelFileError for kinds that are not pruned here, ConfigError for patterns that do not fit."""
    if dense_parts(config) is None:
        raise ModelFileError(
            "only models with grouped-query attention, SwiGLU and rotary positions in every layer can be pruned",
            where, "Llama, Qwen2 and Qwen3 are such models",
        )  # fmt: skip
    if settings.pattern is not None:
        _, of = settings.zeros_of
        for part in (config.attention, config.feed_forward):
            for inputs, _ in part.linears(config.width):
                if inputs % of:
                    raise ConfigError(
                        f"pattern {settings.pattern}: a matrix has {inputs} inputs, which {of} do not divide",
                        hint="take --sparsity",
                    )


def _told(pruning: Round, work: Unfinished) -> dict[str, Any]:
    """What a round did, for the report."""
    kept = Round.kept(work)
    blocks = [{key: part[key] for key in part if key not in ("bytes", "crc32")} for part in work.parts[1:]]
    told = {"parameters": pruning.config.parameter_count(), "blocks": blocks}
    if kept.influence:
        told |= {"layers_kept": list(kept.layers), "influence": list(kept.influence)}
    return told if kept.width is None else {**told, "width_kept": list(kept.width)}


def _link(file: Path, other: Path) -> None:
    """The same file under another name, or a copy where the system has no such links."""
    try:
        other.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, other)


def _zeros(folder: Path) -> tuple[int, int]:
    """Of the weights in the blocks' matrices, how many are zero, and how many there are."""
    zeros = count = 0
    with WeightFiles(folder) as files:
        for name, place in files.places.items():
            if name.startswith("blocks.") and name.removesuffix(".weight").split(".", 2)[2] in LINEARS:
                tensor = place.file.read(place.tensor)
                zeros, count = zeros + int((tensor == 0).sum()), count + tensor.numel()
    return zeros, count
