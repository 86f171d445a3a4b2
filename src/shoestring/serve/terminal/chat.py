"""Chatting in a terminal: reads messages, streams replies, obeys commands.

With a person at the keyboard there are prompts and figures; with a pipe each line is a turn and only replies are
printed. Ctrl-C ends the reply, not the program; a second one at the prompt and Ctrl-D end the program.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from shoestring.core import console, interrupt
from shoestring.core.console import fold
from shoestring.core.errors import DataError, ShoestringError
from shoestring.core.units import counted, format_count
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.text import TextOutput
from shoestring.serve.conversation import Conversation
from shoestring.serve.terminal.commands import find, unknown
from shoestring.serve.terminal.keyboard import Keyboard
from shoestring.serve.terminal.lines import Lines


class TerminalChat:
    """source: lines typed or piped. output: replies. notes: all else, dim. interactive: a person types. name: of the
    model, as it is told to a person."""

    def __init__(
        self,
        model: LanguageModel,
        sampling: SamplingConfig,
        system: str | None = None,
        source: TextIO | None = None,
        output: TextIO | None = None,
        notes: Console | None = None,
        interactive: bool | None = None,
        name: str = "a model",
    ):
        self.sampling, self.name = sampling, name
        self.conversation = Conversation(model, system)
        self.source = source or sys.stdin
        self.output = output or sys.stdout
        self.notes = notes or console.err
        self.interactive = self.source.isatty() if interactive is None else interactive
        self._keyboard = Keyboard(self.source)
        self._lines = Lines(
            self.source, self._keyboard, self.interactive, lambda line: find(line) is not None, self.note
        )
        self._answering = False  # a message has been read, and is being seen to
        self._turns = 0

    def run(self) -> None:
        """Until the input ends or /exit."""
        if self.interactive:
            self._lines.begin()
            config = self.conversation.model.decoder.config
            size = f"{format_count(config.parameter_count())} parameters, {config.context:,} tokens of context"
            self.note(f"{self.name}: {size}")
            self.note("/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves")
        leaving = False  # Ctrl-C came at the prompt, and nothing since
        while True:
            self._answering = False
            try:
                message = self._read()
                if message is None:
                    if self.interactive:
                        self.output.write("\n")
                    break
                leaving = False
                text, quoted = message
                if quoted:
                    self._told(self.answer, text)
                elif not self.handle(text):
                    break
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                interrupt.answered()
                self.output.write("\n")
                if leaving:
                    break
                leaving = not self._answering
                self.note("Ctrl-C again, Ctrl-D or /exit leaves" if leaving else "(stopped)")

    def handle(self, text: str) -> bool:
        """One message typed; False to leave. Mistakes are told and change nothing."""
        text = text.strip()
        if not text:
            return True
        if text.startswith("/") and "\n" not in text:
            self._answering = True
            name, _, argument = text.partition(" ")
            command = find(text)
            if command is None:
                self.note(unknown(name), style="")
                return True
            return self._told(command.run, self, argument.strip()) is not False
        self._told(self.answer, text)
        return True

    def answer(self, text: str) -> None:
        """Ask, and stream the reply. Raises ConfigError when the question does not fit."""
        if not text.strip():
            return
        self._answering = True
        # Each turn has its own random numbers, or the same question would always get the same answer.
        sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + self._turns})
        with self._keyboard.silent() if self.interactive else contextlib.nullcontext():
            turn = self.conversation.ask(text, sampling)
            self._turns += 1
            if turn.forgotten:
                were = "turn was" if turn.forgotten == 1 else f"{turn.forgotten} turns were"
                self.note(f"the context is full: the oldest {were} forgotten")
            output = TextOutput(self.output)
            with contextlib.closing(self.conversation.reply(turn, sampling)) as pieces:
                try:
                    for piece in pieces:
                        output.add(piece)
                except KeyboardInterrupt:
                    if not self.interactive:
                        raise
                    interrupt.answered()
                finally:
                    output.end()
            self._report()

    def _report(self) -> None:
        reason = self.conversation.reason
        speed = self.conversation.model.speed
        if reason == "max_tokens":
            more = "/set max_tokens N" if self.interactive else "--max-tokens"
            self.note(f"(cut after {counted(self.sampling.max_tokens, 'token')}; {more} allows more)")
        elif reason == "context":
            self.note("(cut: the model's context is full; /reset starts again)")
        elif reason == "dead_end":
            self.note("(cut: no token of the model leads on to a text that the constraint allows)")
        elif reason == "interrupted":
            self.note("(stopped)")
        if self.interactive and speed.tokens_per_second:
            read, new = counted(speed.prompt_tokens, "token"), speed.new_tokens + 1
            self.note(f"{read} read, {new:,} written, {speed.tokens_per_second:.1f} tokens/s")

    def _told(self, action: Callable[..., bool | None], *arguments: Any) -> bool | None:
        """What `action` gives; its mistakes are told."""
        try:
            return action(*arguments)
        except ShoestringError as error:
            self.note(f"error: {error}", style="")
            return None

    def _read(self) -> tuple[str, bool] | None:
        """The next message. What cannot be read is told to a person; a pipe ends with it."""
        while True:
            try:
                return self._lines.message()
            except DataError as error:
                if not self.interactive:
                    raise
                self.note(f"error: {error}", style="")

    def note(self, text: str, style: str = "dim") -> None:
        """Tell a person something that is no reply."""
        if self.notes.is_terminal:
            text = fold(text, self.notes.width)
        self.notes.print(Text(text, style=style))
