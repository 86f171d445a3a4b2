"""Tokens drawn from a teacher's distributions, kept in the run's folder, so that it is asked once (arXiv 2503.16870).

    OUT/.samples/journal.json              what is asked about what, and the checksum of each finished part
    OUT/.samples/part-00003.safetensors    of some examples:
        examples [E] their numbers, places [E + 1] and drawn [E + 1] where each begins in the arrays below,
        sizes [P] how many tokens were drawn at each label, entropy [P] of the whole distribution, in nats,
        ids [S] the tokens drawn, counts [S] how often

A token of K drawn stands for 1/K of the probability, so what is expected of the kept distribution is the teacher's own.
Of fifty draws about a dozen are different tokens: three bytes each where the vocabulary has up to 65,536. Draws depend
on the seed and the part alone, and a part counts once the journal has it: who was stopped goes on behind the last one,
and what was damaged is asked again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoestring.compression.distill.divergence import Drawn, draw, drawn_of
from shoestring.compression.distill.lesson import Lesson, lesson
from shoestring.compression.distill.loss import Sampled, Target, logits_of
from shoestring.compression.distill.teacher import ResidentModel
from shoestring.core import foreign
from shoestring.core.errors import DataError
from shoestring.core.files import atomic_write, clear_errors
from shoestring.core.seeds import generator
from shoestring.core.units import format_bytes
from shoestring.core.waiting import waiting
from shoestring.data.batch import IGNORED, PADDING_SEGMENT, Batch
from shoestring.data.supervised.batches import to_batch
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.packing import best_fit_decreasing
from shoestring.models.weights import TensorFile, save_file
from shoestring.nn.head_blocks import compared_rows

FOLDER = ".samples"
_JOURNAL, _VERSION = "journal.json", 1
_PART_TOKENS = 32_768  # of the examples of a part, about: what is asked again after a kill
_MOST_PARTS = 200  # which are open together


class Asking(NamedTuple):
    """What is drawn. draws: K. rows, length: of a batch that the teacher is asked about."""

    teacher: str  # digest of its weights
    data: str  # of the examples
    draws: int
    temperature: float
    seed: int
    rows: int
    length: int
    compute: str  # what the teacher's products run in
    threads: int


class Place(NamedTuple):
    """Of an example: its part, and where its labels and its drawn tokens begin and end there."""

    part: int
    labels: tuple[int, int]
    drawn: tuple[int, int]


def sample(
    folder: Path,
    asking: Asking,
    dataset: SupervisedDataset,
    open_model: Callable[[], ResidentModel],
    together: int = 1,
) -> SampledTeacher:
    """The samples of all examples that are trained on; the teacher is asked for those that are not there yet.

    open_model: called where there are any; it is the caller's to close. together: batches for which a streamed teacher
    reads its layers once. Raises RunError where the disk refuses.
    """
    parts = _parts(dataset, asking)
    with clear_errors(folder):
        done = _done(folder, asking)
        missing = [number for number in range(len(parts)) if number not in done]
        if missing:
            model = open_model()
            total = sum(_tokens(dataset, parts[number]) for number in missing)
            with waiting("samples   of the teacher, in tokens", total) as told:
                for number in missing:
                    tensors = _ask(model, dataset, parts[number], number, asking, together, told.advance)
                    save_file(tensors, _file(folder, number))
                    done[number] = _checksum(_file(folder, number))
                    _write_journal(folder, asking, done)
    return SampledTeacher(folder, len(parts), dataset, asking)


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _done(folder: Path, asking: Asking) -> dict[int, int]:
    """The parts of the same that are whole, by number with their checksums; of anything else the folder is emptied."""
    try:
        journal = foreign.read_json(folder / _JOURNAL)
        same = isinstance(journal, dict) and journal["made_of"] == _made_of(asking)
        parts = {int(number): int(checksum) for number, checksum in journal["parts"].items()} if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same, parts = False, {}
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return {
        number: checksum for number, checksum in parts.items()
        if _file(folder, number).is_file() and _checksum(_file(folder, number)) == checksum
    }  # fmt: skip


def _made_of(asking: Asking) -> dict[str, Any]:
    return {"version": _VERSION, **asking._asdict()}


def _write_journal(folder: Path, asking: Asking, parts: dict[int, int]) -> None:
    with atomic_write(folder / _JOURNAL) as file:
        json.dump({"made_of": _made_of(asking), "parts": parts}, file, indent=1)


def _checksum(file: Path) -> int:
    value = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _parts(dataset: SupervisedDataset, asking: Asking) -> list[list[list[int]]]:
    """For each part its rows, each some examples; always the same ones."""
    examples = np.flatnonzero(~dataset.held_out)
    found: list[list[list[int]]] = []
    lengths = dataset.lengths[examples]
    rows = best_fit_decreasing(lengths, max(asking.length, int(lengths.max())), np.arange(len(examples)))
    tokens = max(_PART_TOKENS, len(rows) * asking.length // _MOST_PARTS)
    together = max(tokens // (asking.rows * asking.length), 1) * asking.rows
    for first in range(0, len(rows), together):
        found.append([[int(examples[n]) for n in row] for row in rows[first : first + together]])
    return found


def _tokens(dataset: SupervisedDataset, rows: list[list[int]]) -> int:
    return int(sum(dataset.lengths[row].sum() for row in rows))


@torch.no_grad()
def _ask(
    model: ResidentModel, dataset: SupervisedDataset, rows: list[list[int]], number: int, asking: Asking,
    together: int, done: Callable[[int], object],
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a part."""
    random = generator(asking.seed, "samples", number)
    batches = [to_batch(dataset, rows[first : first + asking.rows]) for first in range(0, len(rows), asking.rows)]
    sizes, entropy, ids, counts = [], [], [], []
    together = together if model.streamed else 1
    for first in range(0, len(batches), together):
        some = batches[first : first + together]
        for batch, hidden_ND in zip(some, model.hidden(some), strict=True):
            for drawn in _drawn(hidden_ND, model, asking, random):
                sizes.append(torch.bincount(drawn.rows, minlength=len(drawn.entropy_N)).to(torch.uint8))
                entropy.append(drawn.entropy_N)
                ids.append(drawn.ids)
                counts.append((drawn.weights * asking.draws).round().to(torch.uint8))
            done(int((batch.segments_BT != PADDING_SEGMENT).sum()))
    sizes_P = torch.cat(sizes)
    examples = [example for row in rows for example in row]
    labels = [int(dataset.example(example)[1][1 : int(dataset.lengths[example]) + 1].sum()) for example in examples]
    places = torch.tensor([0, *np.cumsum(labels)])
    behind = torch.cat([torch.zeros(1, dtype=torch.int64), sizes_P.long().cumsum(0)])
    numbers = torch.cat(ids)
    narrow = model.decoder.config.vocabulary <= 1 << 16
    return {
        "examples": torch.tensor(examples, dtype=torch.int32), "places": places, "drawn": behind[places],
        "sizes": sizes_P, "entropy": torch.cat(entropy).float(), "counts": torch.cat(counts),
        "ids": numbers.to(torch.uint16).view(torch.int16) if narrow else numbers.to(torch.int32),
    }  # fmt: skip


def _drawn(hidden_ND: Tensor, model: ResidentModel, asking: Asking, random: torch.Generator) -> Iterator[Drawn]:
    """On the CPU, a chunk of labels after the other."""
    step = compared_rows(model.decoder.config.vocabulary)
    for first in range(0, len(hidden_ND), step):
        logits_NV, _ = logits_of(hidden_ND[first : first + step], model.decoder.head)
        log_p_NV = torch.log_softmax(logits_NV.div_(asking.temperature), -1)
        p_NV = log_p_NV.exp()
        entropy_N = -log_p_NV.mul_(p_NV).sum(-1)
        yield drawn_of(draw(p_NV.cpu(), asking.draws, random), entropy_N.cpu())


class SampledTeacher:
    """A `Teacher` that was asked before. Batches are known again by their tokens and labels; what was drawn for them is
    read from the disk as they come."""

    def __init__(self, folder: Path, parts: int, dataset: SupervisedDataset, asking: Asking):
        self._asking, self._open = asking, ExitStack()
        self._files = [self._open.enter_context(TensorFile(_file(folder, number))) for number in range(parts)]
        self._places: dict[bytes, Place] = {}
        for number, file in enumerate(self._files):
            examples, places, drawn = (file.read(name).tolist() for name in ("examples", "places", "drawn"))
            for at, example in enumerate(examples):
                ids, supervised = dataset.example(example)
                count = int(dataset.lengths[example])
                labels = np.where(supervised[1 : count + 1], ids[1 : count + 1], IGNORED)
                place = Place(number, (places[at], places[at + 1]), (drawn[at], drawn[at + 1]))
                self._places[_name(ids[:count], labels)] = place

    @property
    def size(self) -> str:
        """On the disk."""
        return format_bytes(sum(file.path.stat().st_size for file in self._files))

    def look(self, batches: list[Batch]) -> list[Batch]:
        return [lesson(batch, self._of(batch)) for batch in batches]

    def target(self, batch: Batch) -> Target:
        assert isinstance(batch, Lesson) and isinstance(batch.told, Drawn)
        return Sampled(batch.told, self._asking.temperature)

    def close(self) -> None:
        self._open.close()

    def _of(self, batch: Batch) -> Drawn:
        rows, ids, weights, entropy = [], [], [], []
        before = 0
        for tokens, labels in _examples(batch):
            place = self._places.get(_name(tokens, labels))
            if place is None:
                raise DataError("these examples are not those that the teacher was asked about", hint="start a new run")
            file = self._files[place.part]
            sizes = file.read_rows("sizes", *place.labels).long()
            rows.append(before + torch.repeat_interleave(torch.arange(len(sizes)), sizes))
            narrow = file.read_rows("ids", *place.drawn)
            ids.append((narrow.view(torch.uint16) if narrow.dtype == torch.int16 else narrow).long())
            weights.append(file.read_rows("counts", *place.drawn).float() / self._asking.draws)
            entropy.append(file.read_rows("entropy", *place.labels))
            before += len(sizes)
        return Drawn(torch.cat(rows), torch.cat(ids), torch.cat(weights), torch.cat(entropy))


def _name(tokens: np.ndarray, labels: np.ndarray) -> bytes:
    """Of an example: the same one, or one that reads and learns the same."""
    return hashlib.sha256(tokens.astype(np.int64).tobytes() + labels.astype(np.int64).tobytes()).digest()[:16]


def _examples(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and labels of each, in the order in which labels count."""
    arrays: Sequence[Any] = [part.numpy() for part in (batch.tokens_BT, batch.labels_BT, batch.segments_BT)]
    for tokens_T, labels_T, segments_T in zip(*arrays, strict=True):
        borders = [0, *(np.flatnonzero(segments_T[1:] != segments_T[:-1]) + 1).tolist(), len(segments_T)]
        for begin, end in zip(borders, borders[1:], strict=False):
            if segments_T[begin] != PADDING_SEGMENT:
                yield tokens_T[begin:end], labels_T[begin:end]
