"""`evaluate(model)`: the suite put to a model, category by category.

Questions of a category are decoded together, greedily, so that the same model has the same scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from shoestring.core.errors import ConfigError
from shoestring.core.waiting import Waiting, waiting
from shoestring.evaluate.suite import sandbox
from shoestring.evaluate.suite.categories.every import CATEGORIES, GROUPS
from shoestring.evaluate.suite.kept import Kept
from shoestring.evaluate.suite.likelihood import likeliest
from shoestring.evaluate.suite.question import ITEMS, Category, Question, Reply, questions
from shoestring.evaluate.suite.results import Answered, Evaluation, Score
from shoestring.generate.language_model import Completion, LanguageModel

Side = Literal["development", "held-out"]
_CACHED = 2**14  # tokens of all texts that are decoded together


def evaluate(
    model: LanguageModel,
    side: Side = "held-out",
    only: Sequence[str] = (),
    items: int = ITEMS,
    name: str = "",
    kept: Kept | None = None,
) -> tuple[Evaluation, list[Answered]]:
    """only: names of categories or groups; all by default. name: of the model, for people. kept: answers of before,
    which are not asked for again, and where new ones are kept category by category.

    Categories that cannot be scored here are left out, with the reason. Raises ConfigError for a name that is none.
    """
    chosen, began = categories(only), time.monotonic()
    why_not = sandbox.why_not() if any(category.needs_code for category in chosen) else None
    left_out: dict[str, str] = {}
    scores, answered = [], []
    with waiting("asking    questions of the suite", len(chosen) * items) as told:
        for category in chosen:
            asked = questions(category, side, items)
            prompts = [prompt(model, question) for question in asked]
            if category.needs_code and why_not is not None:
                left_out[category.name] = why_not
            elif (longest := _longest(prompts, asked)) > model.decoder.config.context:
                context = f"the model's context is of {model.decoder.config.context:,} tokens"
                left_out[category.name] = f"its questions and answers take up to {longest:,} tokens, and {context}"
            else:
                found = kept.read(category.name, asked) if kept is not None else None
                if found is not None:
                    told.found(len(found))
                else:
                    found = _ask(model, category, asked, prompts, told)
                    if kept is not None:
                        kept.write(category.name, asked, found)
                answered += found
                scores.append(score(category, found))
                continue
            told.found(len(asked))
    return Evaluation(name, side, tuple(scores), time.monotonic() - began, left_out), answered


def categories(only: Sequence[str]) -> list[Category]:
    """Those of these names, or of these groups."""
    known = {category.name for category in CATEGORIES} | set(GROUPS)
    for name in only:
        if name not in known:
            raise ConfigError(f"no category or group {name!r}", hint=f"the groups are {', '.join(GROUPS)}")
    return [one for one in CATEGORIES if not only or one.name in only or one.group in only]


def prompt(model: LanguageModel, question: Question) -> list[int]:
    """The conversation in the model's template; one without a template gets it written out."""
    if model.tokenizer.chat_template is not None:
        return model.encode_chat(list(question.messages))
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in question.messages]
    return model.encode_prompt("\n".join([*lines, "Assistant:"]), "text")


def score(category: Category, answered: Sequence[Answered]) -> Score:
    """Of one category, from its own answers."""
    choices = [one.chosen for one in answered if one.chosen is not None]
    chosen = sum(choices) if choices and len(choices) == len(answered) else None
    right = sum(one.right for one in answered)
    return Score(category.name, category.group, right, len(answered), category.chance, chosen)


def _ask(
    model: LanguageModel, category: Category, asked: list[Question], prompts: list[list[int]], told: Waiting
) -> list[Answered]:
    said = _replies(model, prompts, max(question.max_tokens for question in asked), told)
    chosen = likeliest(model, prompts, [question.options for question in asked])
    found = []
    for question, completion, option in zip(asked, said, chosen, strict=True):
        text = completion.text.strip()
        right = question.right(Reply(text, completion.reason in ("stop_token", "stop_string")))
        choice = None if option is None else question.options[option] == question.answer
        found.append(Answered(category.name, question.shown, question.answer, text, right, choice))
    return found


def _replies(model: LanguageModel, prompts: list[list[int]], most: int, told: Waiting) -> list[Completion]:
    """Greedy, so many tokens at most; as many together as there is room for."""
    room = _CACHED if model.at_once is None else model.at_once
    at_once = max(room // (max(map(len, prompts)) + most), 1)
    said: list[Completion] = []
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        said += model.complete_ids(some, told.advance, temperature=0.0, repetition_penalty=1.0, max_tokens=most)
    return said


def _longest(prompts: list[list[int]], asked: list[Question]) -> int:
    return max(len(ids) + question.max_tokens for ids, question in zip(prompts, asked, strict=True))
