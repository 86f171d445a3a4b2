"""Chatting in a terminal: reads lines, streams replies, obeys a few commands.

With a person at the keyboard there are prompts and figures; with a pipe each line is a turn and only replies
are printed. Ctrl-C ends the reply, not the program; Ctrl-D ends the program.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

from rich.console import Console
from rich.text import Text

from shoestring.core import console, interrupt
from shoestring.core.errors import ShoestringError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.text import without_controls
from shoestring.serve.conversation import Conversation

HELP = """\
/help          this list
/reset         forget the conversation
/system TEXT   tell the model what it is, and start again; without TEXT: nothing
/save FILE     write the conversation as JSONL that `shoestring finetune` reads
/exit          leave (also Ctrl-D); Ctrl-C stops a reply"""


class TerminalChat:
    """source: lines typed or piped. output: replies. notes: all else, dim. interactive: a person types."""

    def __init__(
        self,
        model: LanguageModel,
        sampling: SamplingConfig,
        system: str | None = None,
        source: TextIO | None = None,
        output: TextIO | None = None,
        notes: Console | None = None,
        interactive: bool | None = None,
    ):
        self.sampling = sampling
        self.conversation = Conversation(model, system)
        self.source = source or sys.stdin
        self.output = output or sys.stdout
        self.notes = notes or console.err
        self.interactive = self.source.isatty() if interactive is None else interactive
        self._turns = 0

    def run(self) -> None:
        """Until the input ends or /exit."""
        if self.interactive:
            with contextlib.suppress(ImportError):  # line editing where the system has it
                import readline  # noqa: F401
            self._note("/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves")
        while True:
            try:
                line = self._read()
                if line is None or not self.handle(line):
                    break
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                interrupt.answered()
                self.output.write("\n")
                self._note("Ctrl-D or /exit leaves")

    def handle(self, line: str) -> bool:
        """One line typed; False to leave. Mistakes are told and change nothing."""
        line = line.strip()
        if not line:
            return True
        try:
            if line.startswith("/"):
                return self._command(*line.partition(" ")[::2])
            self.answer(line)
        except ShoestringError as error:
            self._note(f"error: {error}", style="")
        return True

    def answer(self, text: str) -> None:
        """Ask, and stream the reply. Raises ConfigError when the question does not fit."""
        # Each turn has its own random numbers, or the same question would always get the same answer.
        sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + self._turns})
        turn = self.conversation.ask(text, sampling)
        self._turns += 1
        if turn.forgotten:
            turns = "turn" if turn.forgotten == 1 else f"{turn.forgotten} turns"
            self._note(
                f"the context is full: the oldest {turns} were forgotten".replace("turn were", "turn was")
            )
        with contextlib.closing(self.conversation.reply(turn, sampling)) as pieces:
            try:
                for piece in pieces:
                    self.output.write(without_controls(piece) if self.output.isatty() else piece)
                    self.output.flush()
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                interrupt.answered()
        self.output.write("\n")
        self.output.flush()
        self._report()

    def _report(self) -> None:
        reason = self.conversation.reason
        speed = self.conversation.model.speed
        if reason == "max_tokens":
            self._note(f"(cut after {self.sampling.max_tokens} tokens; --max-tokens allows more)")
        elif reason == "context":
            self._note("(cut: the model's context is full; /reset starts again)")
        elif reason == "interrupted":
            self._note("(stopped)")
        if self.interactive and speed.tokens_per_second:
            new = speed.new_tokens + 1
            self._note(
                f"{speed.prompt_tokens} tokens read, {new} written, {speed.tokens_per_second:.1f} tokens/s"
            )

    def _command(self, name: str, argument: str) -> bool:
        argument = argument.strip()
        match name:
            case "/exit" | "/quit":
                return False
            case "/help":
                self._note(HELP, style="")
            case "/reset":
                self.conversation.reset(self.conversation.system)
                self._note("a new conversation")
            case "/system":
                self.conversation.reset(argument or None)
                self._note(
                    "a new conversation, with this system message" if argument else "a new conversation"
                )
            case "/save" if argument:
                self.conversation.save(argument)
                self._note(f"saved {argument}")
            case "/save":
                self._note("/save needs a file name", style="")
            case _:
                self._note(f"unknown command {name}; /help lists them", style="")
        return True

    def _read(self) -> str | None:
        """The next line, None at the end of the input."""
        if self.interactive and self.source is sys.stdin:
            try:
                return input("> ")
            except EOFError:
                self.output.write("\n")
                return None
        return self.source.readline() or None

    def _note(self, text: str, style: str = "dim") -> None:
        self.notes.print(Text(text, style=style))
