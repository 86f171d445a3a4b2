"""A few held-out questions, answered before and after training, side by side: what a person sees of a run.

The questions are the first held-out examples, up to where the model is to write; answers are decoded greedily.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from shoestring.core.device import resolve_device
from shoestring.core.errors import RunError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import read_json
from shoestring.core.waiting import waiting
from shoestring.data.sources import Skipped
from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.rows import ExampleSource
from shoestring.finetuning.write import as_at, best_checkpoint
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.text import without_controls
from shoestring.models.decoder import Decoder
from shoestring.models.folder import GenerationDefaults
from shoestring.train import parallel
from shoestring.train.brought import bring_folder
from shoestring.train.checkpoint import STATE
from shoestring.train.run import Run

ANSWERS = "answers.json"
ANSWER = 64  # tokens of an answer
STREAMED_ANSWER = 16  # while each of them reads the model from disk
_SHOWN = 160  # characters of a question or an answer
_OPENING = 16  # tokens of a text that has no question


@dataclass
class Answer:
    """question: as a person reads it. expected: what the data says. after: None until the run has ended."""

    question: str
    expected: str
    before: str
    after: str | None = None


@dataclass(frozen=True)
class Question:
    """ids: the prompt, as the model sees it."""

    text: str
    ids: list[int]
    expected: str


def choose_questions(dataset: SupervisedDataset, config: SupervisedDataConfig, count: int) -> list[Question]:
    """The first held-out examples, or the first examples where none are held out."""
    held_out = dataset.indices("validation")
    chosen = (held_out if len(held_out) else dataset.indices("train"))[:count].tolist()
    asked = _asked(dataset, config, {dataset.where[index] for index in chosen})
    questions = []
    for index in chosen:
        ids, supervised = dataset.example(index)
        learned = supervised.nonzero()[0]
        begin = int(learned[0])
        if begin < 2:  # a plain text: all of it is learned
            begin = min(_OPENING, max(len(ids) // 2, 1))
        end = begin
        while end < len(ids) and supervised[end]:
            end += 1
        prompt = ids[:begin].tolist()
        text = asked.get(dataset.where[index]) or dataset.tokenizer.decode(prompt)
        questions.append(Question(text.strip(), prompt, dataset.tokenizer.decode(ids[begin:end].tolist()).strip()))
    return questions


class Interview:
    """The same held-out questions put to a model before and after it is trained, by the first process.

    longest: tokens of an answer. Each one costs a streamed model a reading of its layers.
    """

    def __init__(
        self, dataset: SupervisedDataset, config: SupervisedDataConfig, defaults: GenerationDefaults, count: int,
        longest: int,
    ):  # fmt: skip
        self._dataset, self._defaults, self._longest = dataset, defaults, longest
        self._questions = choose_questions(dataset, config, count)

    def before(self, decoder: Decoder, out: Path) -> None:
        said = self._ask(decoder, "before")
        answers = [
            Answer(question.text, question.expected, text) for question, text in zip(self._questions, said, strict=True)
        ]
        if parallel.rank() == 0:
            save_answers(answers, out)

    def after(self, run: Run, decoder: Decoder) -> list[Answer]:
        """What it said before, and what its best checkpoint says. decoder: as it is at the end of the run."""
        answers, best, out = load_answers(run.out), best_checkpoint(run), run.out
        if parallel.rank() != 0 and not parallel.are_stages():
            return answers
        if best != run.checkpoint:
            bring_folder(best, STATE)
            decoder = as_at(best, run.recipe, decoder, resolve_device(run.recipe.device))
        for one, said in zip(answers, self._ask(decoder, "after"), strict=False):
            one.after = said
        if parallel.rank() == 0:
            save_answers(answers, out)
        return answers

    def _ask(self, decoder: Decoder, when: str) -> list[str]:
        """Greedy answers, a few dozen tokens each. The decoder's training mode is put back."""
        if not self._questions:
            return []
        training = decoder.training
        try:
            model = LanguageModel(decoder, self._dataset.tokenizer, defaults=self._defaults)
            room = max(decoder.config.context - ANSWER, 1)
            prompts = [question.ids[-room:] for question in self._questions]
            with waiting(f"{when:<9} answers to held-out questions", len(prompts)) as told:
                done = model.complete_ids(
                    prompts, told.advance, temperature=0.0, repetition_penalty=1.0, max_tokens=self._longest, seed=0
                )
        finally:
            decoder.train(training)
        return [completion.text.strip() for completion in done]


def save_answers(answers: list[Answer], out: Path) -> None:
    with atomic_write(out / ANSWERS) as file:
        json.dump([asdict(one) for one in answers], file, indent=1, ensure_ascii=False)
        file.write("\n")


def load_answers(out: Path) -> list[Answer]:
    """Those of a run, [] where there are none."""
    file = out / ANSWERS
    if not file.is_file():
        return []
    try:
        return [Answer(**values) for values in read_json(file)]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"not the answers of a run: {error}", str(file), "remove this file") from error


def side_by_side(answers: list[Answer], width: int = 80) -> str:
    """Two columns, before and after."""
    each = max(min(width, 120) // 2 - 2, 20)
    lines = [f"{'before':<{each}}  after"]
    for one in answers:
        columns = [
            [*_wrap(f"Q: {one.question}", each), *_wrap(f"A: {text}", each)] for text in (one.before, one.after or "")
        ]
        rows = max(map(len, columns))
        left, right = (column + [""] * (rows - len(column)) for column in columns)
        lines += [f"{a:<{each}}  {b}".rstrip() for a, b in zip(left, right, strict=True)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _wrap(text: str, width: int) -> list[str]:
    flat = without_controls(" ".join(text.split()))
    return textwrap.wrap(flat if len(flat) <= _SHOWN else flat[: _SHOWN - 3] + "...", width) or [""]


def _asked(dataset: SupervisedDataset, config: SupervisedDataConfig, places: set[str]) -> dict[str, str]:
    """What the user asks first in the examples at these places."""
    found: dict[str, str] = {}
    parts = [(part.source, part.format, part.columns) for part in config.parts]
    if config.validation_source is not None:
        parts.append((config.validation_source, config.format, config.columns))
    for source, form, columns in parts:
        if len(found) == len(places):
            break
        rows = ExampleSource(source, form, config.on_bad_line, None, columns)
        for example in rows.examples(Skipped()):
            if example.where in places:
                user = [message["content"] for message in example.messages if message["role"] == "user"]
                found[example.where] = user[0] if user else example.plain[0] if example.plain else ""
                if len(found) == len(places):
                    break
    return found
