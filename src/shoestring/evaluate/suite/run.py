"""`evaluate(model)`: the suite put to a model, category by category, and gone on with where it was stopped.

Questions of a category are decoded together, greedily, so that the same model has the same scores. What was answered is kept
in a file, a line for each question, under a name made of the model, the side and the questions; a killed evaluation reads it
and goes on with the next category.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.files import atomic_write, cache_dir
from shoestring.core.foreign import parse_json
from shoestring.core.waiting import Waiting, waiting
from shoestring.evaluate.suite import sandbox
from shoestring.evaluate.suite.categories.every import CATEGORIES, GROUPS
from shoestring.evaluate.suite.likelihood import likeliest
from shoestring.evaluate.suite.question import ITEMS, Category, Question, Reply, questions
from shoestring.evaluate.suite.results import Answered, Evaluation, Score
from shoestring.generate.language_model import LanguageModel
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.peft_folder import find_base, is_adapter

Side = Literal["development", "held-out"]


def evaluate(
    model: LanguageModel,
    side: Side = "held-out",
    only: Sequence[str] = (),
    items: int = ITEMS,
    name: str = "",
    digest: str = "",
) -> tuple[Evaluation, list[Answered]]:
    """only: names of categories or groups; all by default. name: of the model, for people. digest: of its weights, under
    which answers are kept; "" keeps none.

    Raises ConfigError for a name that is none.
    """
    chosen, began = categories(only), time.monotonic()
    left_out = {one.name: why for one in chosen if one.needs_code and (why := sandbox.why_not()) is not None}
    chosen = [one for one in chosen if one.name not in left_out]
    answered: list[Answered] = []
    with waiting("asking    questions", len(chosen) * items) as told:
        for category in chosen:
            asked = questions(category, side, items)
            answered += _kept(model, category, asked, digest, told)
    scores = tuple(_score(category, answered) for category in chosen)
    return Evaluation(name, side, scores, time.monotonic() - began, left_out), answered


def digest_of(model: LanguageModel) -> str:
    """Of the files of its folder, adapters and bases included, and of the number format; "" for one without a folder."""
    if model.folder is None:
        return ""
    folders = [model.folder, *([find_base(model.folder)] if is_adapter(model.folder) else [])]
    paths = [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]
    dtype = next(model.decoder.parameters()).dtype
    return f"{Fingerprint.of(paths).digest} {dtype}"


def categories(only: Sequence[str]) -> list[Category]:
    """Those of these names, or of these groups."""
    known = {category.name for category in CATEGORIES} | set(GROUPS)
    for name in only:
        if name not in known:
            groups = ", ".join(GROUPS)
            raise ConfigError(f"no category or group {name!r}", hint=f"the groups are {groups}")
    return [one for one in CATEGORIES if not only or one.name in only or one.group in only]


def _kept(
    model: LanguageModel, category: Category, asked: list[Question], digest: str, told: Waiting
) -> list[Answered]:
    """From the file, where the same questions have been put to the same model."""
    key = json.dumps([digest, category.name, [[*question.messages] for question in asked]])
    file = cache_dir() / "answers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.jsonl"
    if digest and file.is_file():
        try:
            found = [Answered(**parse_json(line)) for line in file.read_bytes().splitlines()]
            if len(found) == len(asked):
                told.advance(len(asked))
                return found
        except (ValueError, TypeError):
            console.say(f"{file} is damaged: {category.name} is asked again")
    found = _ask(model, category, asked, told)
    if digest:
        with atomic_write(file) as out:
            out.write("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found))
    return found


def _ask(model: LanguageModel, category: Category, asked: list[Question], told: Waiting) -> list[Answered]:
    prompts = [prompt(model, question) for question in asked]
    most = max(question.max_tokens for question in asked)
    said = model.complete_ids(prompts, told.advance, temperature=0.0, repetition_penalty=1.0, max_tokens=most)
    chosen = likeliest(model, prompts, [question.options for question in asked])
    found = []
    for question, completion, option in zip(asked, said, chosen, strict=True):
        text = completion.text.strip()
        right = question.right(Reply(text, completion.reason in ("stop_token", "stop_string")))
        choice = None if option is None else question.options[option] == question.answer
        found.append(Answered(category.name, _shown(question), question.answer, text, right, choice))
    return found


def prompt(model: LanguageModel, question: Question) -> list[int]:
    """The conversation in the model's template; one without a template gets it written out."""
    if model.tokenizer.chat_template is not None:
        return model.encode_chat(list(question.messages))
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in question.messages]
    return model.encode_prompt("\n".join([*lines, "Assistant:"]), "text")


def _shown(question: Question) -> str:
    if len(question.messages) == 1:
        return question.asked
    return "\n".join(f"{message['role']}: {message['content']}" for message in question.messages)


def _score(category: Category, answered: Sequence[Answered]) -> Score:
    own = [one for one in answered if one.category == category.name]
    choices = [one.chosen for one in own if one.chosen is not None]
    chosen = sum(choices) if len(choices) == len(own) and own else None
    return Score(category.name, category.group, sum(one.right for one in own), len(own), category.chance, chosen)


def transcripts(answered: Sequence[Answered], file: Path) -> None:
    """Each question, answer and verdict as a line of JSON."""
    with atomic_write(file) as out:
        for one in answered:
            line: dict[str, Any] = asdict(one)
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
