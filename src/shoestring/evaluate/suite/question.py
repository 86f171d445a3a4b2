"""A question of the suite, and what is wanted of a category.

A question carries its own check: a program that says whether a reply is right. Which side it belongs to, development or
held out, is decided by a hash of its problem, as for exercises (`data.synthetic.exercise`): a problem that is held
out here is never one to train on, whatever the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoestring.data.synthetic.exercise import RESERVED, is_held_out

HELD_OUT = RESERVED  # of all problems
ITEMS = 30  # of a category and side
_TRIES = 20_000  # draws without a new question


@dataclass(frozen=True)
class Reply:
    """What a model said. stopped: whether it ended by itself."""

    text: str
    stopped: bool = True


Check = Callable[[Reply], bool]


@dataclass(frozen=True)
class Question:
    """problem: canonical, whatever the wording. messages: up to the reply. answer: a right one, word for word.

    options: where a choice can be made by log-likelihood as well, the replies among which `answer` is. result: what of
    the answer is checked, where that is not all of it.
    """

    problem: str
    messages: tuple[dict[str, Any], ...]
    answer: str
    check: Check = field(repr=False)
    options: tuple[str, ...] = ()
    result: str = ""
    max_tokens: int = 48

    @property
    def asked(self) -> str:
        """What the user says last."""
        return str(self.messages[-1]["content"])

    @property
    def shown(self) -> str:
        """As a person reads it, with what was said before."""
        if len(self.messages) == 1:
            return self.asked
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    def right(self, reply: Reply) -> bool:
        """An echo of the question counts for nothing."""
        text = reply.text.replace(self.asked, "").strip()
        return bool(text) and self.check(Reply(text, reply.stopped))


Draw = Callable[[random.Random], Question]


@dataclass(frozen=True)
class Category:
    """about: what it checks, in a few words. chance: of a reply at random among those that are of the right form.

    needs_code: whether checking runs what the model wrote. share: of the problems that is held out; more than of
    exercises where nothing that this package makes to train on has such problems.
    """

    name: str
    group: str
    about: str
    draw: Draw = field(repr=False)
    chance: float = 0.0
    needs_code: bool = False
    share: float = HELD_OUT


def ask(problem: str, text: str, answer: str, check: Check, **more: Any) -> Question:
    """A question of one message."""
    return Question(problem, ({"role": "user", "content": text},), answer, check, **more)


def questions(category: Category, side: str, count: int = ITEMS, seed: int = 1) -> list[Question]:
    """Different questions of one side, "development" or "held-out"; the same for the same arguments, the first of more.

    No answer is right more often than chance allows, so that who always says the same gains nothing.
    """
    assert side in ("development", "held-out") and count <= ITEMS
    rng = random.Random(f"{category.name} {side} {seed}")
    found: dict[str, Question] = {}
    answers: Counter[str] = Counter()
    idle, most = 0, max(int(ITEMS * category.chance), 1)
    while len(found) < ITEMS and idle < _TRIES:
        question = category.draw(rng)
        idle += 1
        key = "\n".join(message["content"] for message in question.messages)
        own = is_held_out(question.problem, category.share) == (side == "held-out")
        if own and key not in found and answers[question.result or question.answer] < most:
            found[key] = question
            answers[question.result or question.answer] += 1
            idle = 0
    assert len(found) == ITEMS, f"{category.name} has {len(found)} questions"
    return list(found.values())[:count]
