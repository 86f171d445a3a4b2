"""Sums put to a model that chats, and how many of its answers are right.

Questions are asked each by itself in the model's chat template and decoded greedily, many at once. The last whole
number of an answer counts (`data.synthetic.arithmetic.is_right`), however the model words it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.core.waiting import Waiting, waiting
from shoestring.data.synthetic.arithmetic import is_right
from shoestring.generate.language_model import LanguageModel

_AT_ONCE = 50  # questions decoded together
_LONGEST = 40  # tokens of an answer


@dataclass(frozen=True)
class Reply:
    """result: the right answer, bare. text: what the model said."""

    question: str
    result: str
    text: str

    @property
    def right(self) -> bool:
        return is_right(self.text, self.result)


def ask(model: LanguageModel, problems: Sequence[tuple[str, str]]) -> list[Reply]:
    """The model's replies to problems (question, result), in order. Raises TokenizerError without a chat template."""
    with waiting("asking    problems", len(problems)) as told:
        return _asked(model, problems, told)


def _asked(model: LanguageModel, problems: Sequence[tuple[str, str]], told: Waiting) -> list[Reply]:
    replies = []
    for first in range(0, len(problems), _AT_ONCE):
        some = problems[first : first + _AT_ONCE]
        prompts = [model.encode_chat([{"role": "user", "content": question}]) for question, _ in some]
        said = model.complete_ids(prompts, told.advance, temperature=0.0, repetition_penalty=1.0, max_tokens=_LONGEST)
        replies += [
            Reply(question, result, completion.text.strip())
            for (question, result), completion in zip(some, said, strict=True)
        ]
    return replies


def accuracy(replies: Sequence[Reply]) -> float:
    """Share of the replies that are right; 0 of none."""
    return sum(reply.right for reply in replies) / max(len(replies), 1)
