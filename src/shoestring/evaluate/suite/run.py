"""`evaluate(model)`: the suite put to a model, category by category.

Questions of some categories are decoded together, greedily and always the same ones, so that the same model has the
same scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from shoestring.core.errors import ConfigError
from shoestring.core.waiting import Waiting, waiting
from shoestring.evaluate.suite import sandbox
from shoestring.evaluate.suite.categories.every import CATEGORIES, GROUPS
from shoestring.evaluate.suite.kept import Kept
from shoestring.evaluate.suite.likelihood import likeliest
from shoestring.evaluate.suite.question import ITEMS, Category, Question, Reply, questions
from shoestring.evaluate.suite.results import Answered, Evaluation, Score
from shoestring.generate.language_model import SLOTS, LanguageModel

Side = Literal["development", "held-out"]
_TOGETHER = 4  # categories
_LONG = 512  # tokens of a question with its answer, from which its category goes alone
_CACHED = 2**14  # tokens of all texts that are decoded together
_SANDBOXES = 2  # programs that run at once


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
    left_out: dict[str, str] = {}
    answered: list[Answered] = []
    with waiting("asking    questions of the suite", len(chosen) * items) as told:
        for batch in _batches(_possible(model, chosen, side, items, left_out, told)):
            names, asked = [one.category.name for one in batch], [one.asked for one in batch]
            found = kept.read(names, asked) if kept is not None else None
            if found is not None:
                told.found(len(found))
            else:
                found = _ask(model, batch, told)
                if kept is not None:
                    kept.write(names, asked, found)
            answered += found
    place = {category.name: number for number, category in enumerate(chosen)}
    answered.sort(key=lambda one: place[one.category])
    scores = [score(one, [a for a in answered if a.category == one.name]) for one in chosen if one.name not in left_out]
    return Evaluation(name, side, tuple(scores), time.monotonic() - began, left_out), answered


@dataclass(frozen=True)
class _Asked:
    """A category's questions, and what the model is to go on from for each."""

    category: Category
    asked: list[Question]
    prompts: list[list[int]]

    @property
    def most(self) -> int:
        """Tokens of an answer."""
        return max(question.max_tokens for question in self.asked)

    @property
    def longest(self) -> int:
        """Tokens of a question with its answer."""
        return max(map(len, self.prompts)) + self.most


def _possible(
    model: LanguageModel, chosen: list[Category], side: Side, items: int, left_out: dict[str, str], told: Waiting
) -> Iterator[_Asked]:
    """Those that can be scored here; the others get a reason in `left_out`."""
    why_not = sandbox.why_not() if any(category.needs_code for category in chosen) else None
    context = model.decoder.config.context
    for category in chosen:
        asked = questions(category, side, items)
        one = _Asked(category, asked, [prompt(model, question) for question in asked])
        if category.needs_code and why_not is not None:
            left_out[category.name] = why_not
        elif one.longest > context:
            takes = f"its questions and answers take up to {one.longest:,} tokens"
            left_out[category.name] = f"{takes}, and the model's context is of {context:,} tokens"
        else:
            yield one
            continue
        told.found(items)


def _batches(all_of: Iterable[_Asked]) -> Iterator[list[_Asked]]:
    """Categories whose answers are as long, some at a time: the more texts there are, the more is made of each reading
    of the weights."""
    waiting_for: dict[int, list[_Asked]] = {}
    for one in all_of:
        batch = waiting_for.setdefault(one.most, [])
        batch.append(one)
        if len(batch) == _TOGETHER or one.longest > _LONG:
            yield waiting_for.pop(one.most)
    yield from waiting_for.values()


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


def _ask(model: LanguageModel, batch: list[_Asked], told: Waiting) -> list[Answered]:
    said = iter(_replies(model, batch, told))
    found = []
    for one in batch:
        replies = [next(said) for _ in one.asked]
        chosen = likeliest(model, one.prompts, [question.options for question in one.asked])
        with ThreadPoolExecutor(_SANDBOXES if one.category.needs_code else 1) as pool:
            right = list(pool.map(Question.right, one.asked, replies))
        for question, reply, option, verdict in zip(one.asked, replies, chosen, right, strict=True):
            choice = None if option is None else question.options[option] == question.answer
            found.append(Answered(one.category.name, question.shown, question.answer, reply.text, verdict, choice))
    return found


def _replies(model: LanguageModel, batch: list[_Asked], told: Waiting) -> list[Reply]:
    """Greedy; as many together as there is room for, the next one beginning where one has ended."""
    prompts = [ids for one in batch for ids in one.prompts]
    longest = max(one.longest for one in batch)
    slots = max(min((model.at_once or _CACHED) // longest, SLOTS, len(prompts)), 1)
    said = model.complete_ids(
        prompts, told.advance, model.scheduler(slots, longest),
        temperature=0.0, repetition_penalty=1.0, max_tokens=batch[0].most,
    )  # fmt: skip
    return [Reply(one.text.strip(), one.reason in ("stop_token", "stop_string")) for one in said]
