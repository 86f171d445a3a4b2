"""Prompts in a file: rows of JSON (CSV, Parquet) with `prompt` or `messages`, or a prompt on each line of text.

{"prompt": "...", "id"?}                                                  continued as plain text
{"messages": [{"role", "content"}, ...], "system"?, "id"?}                answered in the model's chat template

`sampling`, an object of options by their names, is of this row alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ConfigError, DataError, TokenizerError
from shoestring.data.reading import streams
from shoestring.data.reading.kinds import has_rows, rows
from shoestring.data.reading.row import UTF8_HINT
from shoestring.data.supervised.conversation import conversation_of
from shoestring.generate.config import CONSTRAINTS, SamplingConfig, sampling_config
from shoestring.generate.constraint import check_constraint
from shoestring.generate.request import check_prompt

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel, SpecialTokens

EXPECTED = 'expected {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
_READ = ("prompt", "messages", "system", "id", "sampling")


@dataclass(frozen=True)
class PromptRow:
    """row: its number in the file, which is its seed's row too. asked: a text, or messages. sampling: options of
    this row alone. unused: fields with something in them that is not read."""

    row: int
    where: str
    id: Any
    asked: str | list[dict[str, Any]]
    unused: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)

    def settings(self, options: dict[str, Any], make: Callable[..., SamplingConfig] | None = None) -> SamplingConfig:
        """How its text is made, where `options` are those of all rows. make: `LanguageModel.sampling`, if there is a
        model. Raises DataError."""
        given = {name: value for name, value in self.sampling.items() if value is not None}
        if given.keys() & set(CONSTRAINTS):  # one takes the place of another
            options = {name: value for name, value in options.items() if name not in CONSTRAINTS}
        try:
            config = sampling_config({}, {**options, **given})  # first: it knows the names
            if make is not None:
                return make(**{**options, **given})
            check_constraint(config)
            return config
        except ConfigError as error:
            raise DataError(error.message, self.where, error.hint) from None

    def encode(self, model: LanguageModel, special_tokens: SpecialTokens, sampling: SamplingConfig) -> array[int]:
        """Its tokens. Raises DataError where they are none, too many, the template refuses them, or no text can obey
        the constraint."""
        try:
            if isinstance(self.asked, str):
                tokens = model.encode_prompt(self.asked, special_tokens)
            else:
                tokens = model.encode_chat(self.asked)
            check_prompt(tokens, model.decoder.config.context, model.decoder.config.vocabulary)
            if self.sampling and sampling.constraint is not None:
                model.request(tokens, sampling)
        except (ConfigError, TokenizerError) as error:
            raise DataError(error.message, self.where, error.hint) from None
        return array("q", tokens)


def prompt_rows(file: Path) -> Iterator[PromptRow]:
    """Every row of the file. Raises DataError at the first that is bad, with file and line."""
    try:
        found = False
        for prompt in _rows(file) if has_rows(file) else _lines(file):
            found = True
            yield prompt
    except OSError as error:
        raise DataError(f"prompts cannot be read: {error.strerror}", str(file)) from None
    if not found:
        raise DataError("no prompts in this file", str(file), EXPECTED if has_rows(file) else "write one prompt a line")


def _lines(file: Path) -> Iterator[PromptRow]:
    for number, line in streams.lines(file):
        where = f"{file}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError("not UTF-8", where, UTF8_HINT) from None
        if text.strip():
            yield PromptRow(number, where, None, text)


def _rows(file: Path) -> Iterator[PromptRow]:
    for row in rows(file):
        content, where = row.content, row.where
        if isinstance(content, DataError):
            raise DataError(content.message, content.where, content.hint or EXPECTED)
        if not isinstance(content, dict):
            raise DataError("not a JSON object", where, EXPECTED)
        given = [name for name in ("prompt", "messages") if content.get(name) is not None]
        if len(given) != 1:
            what = "both prompt and messages" if given else "neither prompt nor messages"
            raise DataError(f"it has {what}", where, EXPECTED)
        asked = content[given[0]]
        if given == ["prompt"]:
            if not isinstance(asked, str):
                raise DataError("prompt is not a text", where, EXPECTED)
            if content.get("system"):
                raise DataError("system goes with messages, and a prompt is continued as it is", where, EXPECTED)
        else:
            asked = conversation_of({name: content.get(name) for name in ("messages", "system")}, where)
            if asked[-1]["role"] == "assistant":
                raise DataError("the conversation ends with an answer, so there is nothing to answer", where)
        sampling = content.get("sampling") or {}
        if not isinstance(sampling, dict):
            raise DataError("sampling is no object of options", where, 'as {"sampling": {"temperature": 0}}')
        unused = tuple(name for name, value in content.items() if name not in _READ and value not in (None, "", []))
        yield PromptRow(row.number, where, content.get("id"), asked, unused, sampling)
