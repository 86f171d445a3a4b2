'''Chatting in a terminal: reads messages, streams replies, obeys a few commands.

With a person at the keyboard there are prompts and figures; with a pipe each line is a turn and only replies are
printed. A message of several lines begins and ends with """. Ctrl-C ends the reply, not the program; Ctrl-D ends the
program.
'''

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from shoestring.core import console, interrupt
from shoestring.core.console import fold
from shoestring.core.errors import ConfigError, ShoestringError
from shoestring.core.units import counted, format_count
from shoestring.core.yaml_document import parse_value
from shoestring.generate.config import SamplingConfig, sampling_config
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.text import TextOutput
from shoestring.serve.conversation import Conversation
from shoestring.serve.keyboard import Keyboard

HELP = """\
/again            answer the latest question anew
/set              how replies are made; /set temperature 0.2 changes it
/reset            forget the conversation
/system TEXT      tell the model what it is, and start again; without TEXT: nothing
/save FILE        write the conversation as JSONL that `shoestring finetune` reads
/help             this list
/exit             leave (also Ctrl-D); Ctrl-C stops a reply
\"\"\"               begins and ends a message of several lines"""
_QUOTES = '"""'
_SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


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
        self._turns = 0

    def run(self) -> None:
        """Until the input ends or /exit."""
        if self.interactive:
            with contextlib.suppress(ImportError):  # line editing where the system has it
                import readline  # noqa: F401
            config = self.conversation.model.decoder.config
            size = f"{format_count(config.parameter_count())} parameters, {config.context:,} tokens of context"
            self._note(f"{self.name}: {size}")
            self._note("/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves")
        while True:
            try:
                line = self._read("> ")
                if line is None:
                    break
                if line.lstrip().startswith(_QUOTES):
                    self._told(self.answer, self._rest_of(line.strip().removeprefix(_QUOTES)))
                elif not self.handle(line):
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
        if line.startswith("/"):
            return self._told(self._command, *line.partition(" ")[::2]) is not False
        self._told(self.answer, line)
        return True

    def answer(self, text: str) -> None:
        """Ask, and stream the reply. Raises ConfigError when the question does not fit."""
        if not text.strip():
            return
        # Each turn has its own random numbers, or the same question would always get the same answer.
        sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + self._turns})
        with self._keyboard.silent() if self.interactive else contextlib.nullcontext():
            turn = self.conversation.ask(text, sampling)
            self._turns += 1
            if turn.forgotten:
                were = "turn was" if turn.forgotten == 1 else f"{turn.forgotten} turns were"
                self._note(f"the context is full: the oldest {were} forgotten")
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
            self._note(f"(cut after {counted(self.sampling.max_tokens, 'token')}; {more} allows more)")
        elif reason == "context":
            self._note("(cut: the model's context is full; /reset starts again)")
        elif reason == "interrupted":
            self._note("(stopped)")
        if self.interactive and speed.tokens_per_second:
            read, new = counted(speed.prompt_tokens, "token"), speed.new_tokens + 1
            self._note(f"{read} read, {new:,} written, {speed.tokens_per_second:.1f} tokens/s")

    def _command(self, name: str, argument: str) -> bool:
        argument = argument.strip()
        match name:
            case "/exit" | "/quit" | "/bye":
                return False
            case "/help" | "/?":
                self._note(HELP, style="")
            case "/again" | "/retry" | "/regenerate":
                question = self.conversation.take_back()
                if question is None:
                    self._note("nothing has been asked yet", style="")
                else:
                    self.answer(question)
            case "/set":
                self._set(argument)
            case "/reset" | "/clear":
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

    def _set(self, argument: str) -> None:
        """Show how replies are made, or change one setting. Raises ConfigError."""
        name, _, text = argument.replace("=", " ", 1).partition(" ")
        name, text = name.lstrip("-").replace("-", "_"), text.strip()
        if name:
            if not text:
                raise ConfigError(f"/set {name} needs a value", hint=f"/set {name} VALUE; /set alone shows all")
            value = text if name == "stop" else parse_value(text, "/set")
            self.sampling = sampling_config(self.sampling.model_dump(), {name: text if value is None else value})
        stop = f" · stop {', '.join(map(repr, self.sampling.stop))}" if self.sampling.stop else ""
        shown = " · ".join(f"{name} {getattr(self.sampling, name):,}" for name in _SETTINGS)
        self._note(shown + stop)

    def _rest_of(self, line: str) -> str:
        """A message up to the quotes that end it, or the end of the input."""
        lines: list[str] = []
        more: str | None = line
        while more is not None:
            text = more.rstrip()
            if text.endswith(_QUOTES):
                lines.append(text.removesuffix(_QUOTES))
                break
            lines.append(text)
            more = self._read(". ")
        return "\n".join(lines).strip("\n")

    def _told(self, action: Callable[..., bool | None], *arguments: str) -> bool | None:
        """What `action` gives; its mistakes are told."""
        try:
            return action(*arguments)
        except ShoestringError as error:
            self._note(f"error: {error}", style="")
            return None

    def _read(self, prompt: str) -> str | None:
        """The next line, None at the end of the input."""
        if self.interactive and self.source is sys.stdin:
            if typed := self._keyboard.offer():
                self._note(f"(typed during the answer, and not sent: {typed})")
            try:
                return input(prompt)
            except EOFError:
                self.output.write("\n")
                return None
        return self.source.readline() or None

    def _note(self, text: str, style: str = "dim") -> None:
        if self.notes.is_terminal:
            text = fold(text, self.notes.width)
        self.notes.print(Text(text, style=style))
