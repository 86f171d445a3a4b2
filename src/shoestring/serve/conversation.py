"""A conversation of many turns with one model: its messages, and a scheduler whose one slot remembers them.

So a turn costs its new tokens, and an edited conversation is read again from the edit. When the context is full the
oldest turns are forgotten, a question with its answer at a time; the system message stays. Messages live here, never
in the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoestring.core.errors import ConfigError, ModelFileError, TokenizerError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.live_adapters import LiveAdapters
from shoestring.generate.request import Speed, StopReason
from shoestring.generate.scheduler import Scheduler
from shoestring.models.resolve import Say
from shoestring.serve.conversation_file import cache_beside, read_conversation, write_conversation

_LEAST_ROOM = 64  # tokens that an answer should have, when forgetting older turns can make room
_FIRST_CAPACITY = 1024  # tokens of the slot, which grows with the conversation


@dataclass(frozen=True)
class Turn:
    """A question made ready: its ids, and how many older turns had to be forgotten for it."""

    prompt: list[int]
    forgotten: int


class Conversation:
    """messages: roles system (first, optional), user, assistant. adapters: on the model. spent: of all replies."""

    def __init__(self, model: LanguageModel, system: str | None = None):
        self.model = model
        self.messages: list[dict[str, Any]] = []
        self.reason: StopReason | None = None  # why the latest reply ended
        self.adapters = LiveAdapters(model)
        self.spent = Speed()
        self._scheduler = self._empty()
        self.reset(system)
        model.encode_chat([{"role": "user", "content": ""}])  # raises at once when the model cannot chat

    def reset(self, system: str | None = None) -> None:
        """Forget everything that was said."""
        self.messages = [{"role": "system", "content": system}] if system else []

    @property
    def system(self) -> str | None:
        """What the model was told to be."""
        first = self.messages[0] if self.messages else {}
        return first.get("content") if first.get("role") == "system" else None

    def ask(self, text: str, sampling: SamplingConfig) -> Turn:
        """Add a question, forgetting oldest turns until there is room for an answer.

        Raises ConfigError, and leaves the conversation as it was, when the question alone is too long.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        context = self.model.decoder.config.context
        room = min(sampling.max_tokens, max(_LEAST_ROOM, context // 4), context // 2)
        forgotten = 0
        try:
            prompt = self.model.encode_chat(self.messages)
            while len(prompt) + room > context and self._forget_oldest():
                forgotten += 1
                prompt = self.model.encode_chat(self.messages)
            if len(prompt) >= context:
                raise ConfigError(
                    f"the message is too long: with it the conversation has {len(prompt):,} tokens, "
                    f"and the model's context is {context:,}"
                )
        except BaseException:
            self.messages = before
            raise
        return Turn(prompt, forgotten)

    def reply(self, turn: Turn, sampling: SamplingConfig) -> Generator[str, None, None]:
        """The answer in pieces; what was said until then counts as the answer when the reader stops early."""
        said: list[str] = []
        self.reason = "interrupted"
        try:
            with contextlib.closing(self.model.events([turn.prompt], sampling, self._scheduler)) as events:
                for event in events:
                    if event.reason is not None:
                        self.reason = event.reason
                    if event.text:
                        said.append(event.text)
                        yield event.text
        finally:
            self._spend(self.model.speed)
            self.messages.append({"role": "assistant", "content": "".join(said)})

    def take_back(self) -> str | None:
        """Forget the latest question with its answer; -> the question, None where there is none."""
        asked = self._asked()
        if not asked:
            return None
        question = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return question

    def save(self, file: str | Path) -> int:
        """Write the messages as one line of the JSONL that fine-tuning reads, and beside it what the cache holds of
        them; -> how many tokens that are. Raises RunError."""
        write_conversation(file, self.messages)
        beside = cache_beside(file)
        try:
            return self.model.save_prefix(beside, self.model.encode_chat(self.messages), self._scheduler)
        except (ConfigError, TokenizerError):  # nothing is held, or nothing can be
            beside.unlink(missing_ok=True)
            return 0

    def load(self, file: str | Path) -> tuple[int, str | None]:
        """Go on with a saved conversation; -> tokens that need not be read again, and why the cache beside the file
        was of no use, where there is one.

        Raises DataError, and leaves everything as it was, for a file that holds no conversation.
        """
        self.messages = read_conversation(file)
        beside = cache_beside(file)
        if not beside.exists():
            return 0, None
        try:
            return self.model.load_prefix(beside, self._scheduler), None
        except (ConfigError, ModelFileError) as error:
            return 0, error.message

    def use_adapter(self, folder: str, say: Say | None = None) -> str | None:
        """Answer with an adapter from now on; -> the model that it says it was trained on. Raises ModelFileError."""
        base = self.adapters.use(folder, say)
        self._scheduler = self._empty()  # what was read before was read without it
        return base

    def drop_adapter(self) -> None:
        """Answer with the model alone from now on."""
        self.adapters.off()
        self._scheduler = self._empty()

    def speculate(self, by: Literal["lookup"] | LanguageModel | None) -> None:
        """Guess ahead from the next answer on; see `LanguageModel.speculate`."""
        self.model.speculate(by)
        self._scheduler.speculate(self.model.speculation)

    def tokens(self) -> int:
        """Of the conversation so far; 0 where the template takes it only with a question."""
        try:
            return len(self.model.encode_chat(self.messages)) if self.messages else 0
        except TokenizerError:
            return 0

    def _empty(self) -> Scheduler:
        return self.model.scheduler(1, min(_FIRST_CAPACITY, self.model.decoder.config.context))

    def _spend(self, speed: Speed) -> None:
        self.spent.prompt_tokens += speed.prompt_tokens
        self.spent.prompt_seconds += speed.prompt_seconds
        self.spent.new_tokens += speed.new_tokens
        self.spent.new_seconds += speed.new_seconds
        self.spent.guessed += speed.guessed
        self.spent.right += speed.right

    def _forget_oldest(self) -> bool:
        """Drop the first question and its answer, never the latest question."""
        users = self._asked()
        if len(users) < 2:
            return False
        del self.messages[users[0] : users[1]]
        return True

    def _asked(self) -> list[int]:
        """Where the questions stand."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "user"]
