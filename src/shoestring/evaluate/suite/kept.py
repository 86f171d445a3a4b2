"""Answers of a model, kept some categories at a time: a killed evaluation goes on with the next ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from shoestring.core import console
from shoestring.core.files import atomic_write, cache_dir
from shoestring.core.foreign import parse_json
from shoestring.evaluate.suite.question import Question
from shoestring.evaluate.suite.results import Answered
from shoestring.generate.language_model import LanguageModel
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.gguf.split import part_paths
from shoestring.models.peft_folder import find_base, is_adapter

VERSION = 1  # of how answers are decoded and checked: what was kept under another one is asked again


class Kept:
    """digest: of the model whose answers these are. folder: where; a file for what is decoded together, a line for each
    question."""

    def __init__(self, digest: str, folder: Path | None = None):
        self._digest, self._folder = digest, folder or cache_dir() / "answers"

    def read(self, categories: Sequence[str], asked: Sequence[Sequence[Question]]) -> list[Answered] | None:
        """The answers to the questions of these categories, in this order; None where they are not there or cannot be
        read."""
        file = self._file(categories, asked)
        if not file.is_file():
            return None
        try:
            found = [Answered(**parse_json(line)) for line in file.read_bytes().splitlines()]
        except (ValueError, TypeError):
            found = []
        if [one.asked for one in found] != [question.shown for some in asked for question in some]:
            console.say(f"{file} is damaged: the questions of {', '.join(categories)} are asked again")
            return None
        return found

    def write(
        self, categories: Sequence[str], asked: Sequence[Sequence[Question]], answered: Sequence[Answered]
    ) -> None:
        write_answers(answered, self._file(categories, asked))

    def _file(self, categories: Sequence[str], asked: Sequence[Sequence[Question]]) -> Path:
        """What is decoded together, and how far, decides what is said, so it decides the name."""
        questions = [[[*one.messages, one.answer, one.max_tokens] for one in some] for some in asked]
        key = json.dumps([VERSION, self._digest, [*categories], questions])
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.jsonl"


def digest_of(model: LanguageModel, adapter: Path | None = None) -> str | None:
    """Of the files of its folder, an adapter's base too, and of the number formats; None for one without a folder."""
    if model.folder is None:
        return None
    folders = [model.folder, *([find_base(model.folder)] if is_adapter(model.folder) else [])]
    folders += [adapter] if adapter is not None else []
    paths = [path for folder in folders for path in _files(folder)]
    dtype = next(model.decoder.parameters()).dtype
    kept = "" if model.weights == "source" else f" {model.weights}"
    kept += "" if model.cache == "source" else f" cache {model.cache}"
    return f"{Fingerprint.of([path for path in paths if path.is_file()]).digest} {dtype}{kept}"


def _files(folder: Path) -> list[Path]:
    """Of a model folder, or of a GGUF file and the parts beside it."""
    return part_paths(folder) if folder.is_file() else sorted(folder.glob("*"))


def write_answers(answered: Sequence[Answered], file: Path) -> None:
    """Each question, answer and verdict as a line of JSON."""
    with atomic_write(file) as out:
        for one in answered:
            out.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
