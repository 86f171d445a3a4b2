"""A conversation to the text that the model reads, and which characters of it the model is to learn.

Templates are programs, and say nothing about who wrote what. An assistant's turn begins where the same
conversation, cut before that turn and with the generation prompt added, ends: exactly what the model sees when
it has to answer. It ends with the first stop token after that. `{% generation %}` blocks win where a template
has them. What a template leaves out, or moves about, is found and refused.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from typing import Any

from shoestring.core.errors import DataError, TokenizerError
from shoestring.data.plain_names import PlainNames
from shoestring.data.sources import Skipped
from shoestring.data.tokenizer import Tokenizer

Message = dict[str, Any]
Span = tuple[int, int]

# Marks in rendered text: noncharacters, which no text should contain.
_MARKS = ("\ufdd0", "\ufdd1")
# Of a message: what is looked for by itself (`_words`), or names a call without being content.
_KNOWN = ("role", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "id")

_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize + ':\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def plain_template(tokenizer: Tokenizer) -> str:
    """A chat template for a tokenizer that has none: roles by name, answers end with eos."""
    return ("{{ bos_token }}" if tokenizer.opens_with_bos() else "") + _PLAIN_TEMPLATE


class DroppedContent(DataError):
    """The template leaves out part of a conversation."""


class MovedContent(DataError):
    """The template changes a conversation so that the assistant's words cannot be told apart."""


@dataclass(frozen=True)
class Rendered:
    """text, and the character spans [start, end) to be learned: one for each turn, in order.

    names: where a special token's name begins that stands in a message, and is text.
    """

    text: str
    spans: list[Span]
    names: list[int]


class ChatRenderer:
    """Conversations through one tokenizer's template. stops: the tokens that end a reply, as text.

    date: what templates that ask for today's date are told, so that the same data gives the same text tomorrow.
    last: whether only the last turn is learned. remarks: what a person should know, and of how many conversations.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str], date: datetime.date, last: bool = False) -> None:
        self._tokenizer = tokenizer
        self._names = PlainNames(tokenizer)
        self._last = last
        self.remarks = Skipped()
        self._stops = stops
        self._variables = {"date_string": date.strftime("%d %b %Y"), "strftime_now": date.strftime}
        self._marked = any("endgeneration" in template for template in tokenizer.chat_templates.values())
        self._proven: dict[Any, list[str]] = {}
        self._added: dict[Any, str] = {}

    def render(self, messages: list[Message], tools: list[Any] | None, learned: list[int], where: str) -> Rendered:
        """learned: indices of the messages to be learned, all of the assistant's.

        Raises DroppedContent and MovedContent, and TokenizerError when the template refuses the conversation.
        """
        for index in learned:
            self._refuse_stops(messages[index], index, where)
        try:
            full, names = self._names.rendered(lambda m, t: self._text(m, t, False), messages, tools)
            # What stands before the first learned turn of a cut conversation may be shortened as the template likes.
            needed = [i for i, m in enumerate(messages) if i in learned or m["role"] != "assistant"]
            self._prove(messages, tools, needed, where)
            spans = self._generation_blocks(full, messages, tools, learned) if self._marked else None
            if spans is None:
                spans = [self._span(full, messages, tools, index, where) for index in learned]
        except TokenizerError as error:
            raise TokenizerError(error.message, where, error.hint) from error
        for index in needed:
            content = full[slice(*spans[learned.index(index)])] if index in learned else full
            self._check_present(messages[index], index, content, where)
        self._remark(full, messages, tools, dict(zip(learned, spans, strict=True)), where)
        return Rendered(full, spans, names)

    def _text(self, messages: list[Message], tools: list[Any] | None, prompt: bool, **more: Any) -> str:
        return self._tokenizer.render_chat(messages, tools, prompt, **self._variables, **more)

    # Where a turn stands

    def _generation_blocks(
        self, full: str, messages: list[Message], tools: list[Any] | None, learned: list[int]
    ) -> list[Span] | None:
        if any(mark in full for mark in _MARKS):
            return None
        marked = self._text(messages, tools, False, generation_marks=_MARKS)
        if "".join(part for part in _split_marks(marked)) != full:
            return None  # the template looked at its own output, and the marks changed it
        spans, at = [], 0
        for number, part in enumerate(_split_marks(marked)):
            if number % 2:
                spans.append((at, self._with_stop(full, at + len(part))))
            at += len(part)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if len(spans) != len(turns):
            return None  # blocks that some turns do not have: the turns are found without them
        return [spans[turns.index(index)] for index in learned]

    def _with_stop(self, full: str, end: int) -> int:
        """Blocks that leave out the end token take it in: without it a model learns to talk on for ever."""
        if full[:end].endswith(tuple(self._stops)):
            return end
        return end + max((len(stop) for stop in self._stops if full.startswith(stop, end)), default=0)

    def _span(self, full: str, messages: list[Message], tools: list[Any] | None, index: int, where: str) -> Span:
        start, certain = self._start(full, messages, tools, index)
        found = None if start is None else self._from(start, full, messages, tools, index)
        if found is not None and certain:
            if self._has_content(messages[index], full[slice(*found)]):
                return found
        # What the model writes does not begin where its prompt ends: the content itself must be found.
        found = self._search(full, messages, tools, index) or found
        if found is None:
            raise MovedContent(
                f"the chat template rearranges this conversation, so that what message {index + 1} (assistant) became"
                " cannot be told from the rest",
                where,
                "data.template FILE.jinja gives another chat template"
                + ("" if self._last else "; data.supervise last learns only the last turn"),
            )
        return found

    def _start(
        self, full: str, messages: list[Message], tools: list[Any] | None, index: int
    ) -> tuple[int | None, bool]:
        """Where the model begins to write, after the generation prompt, and whether that is certain."""
        try:
            prompt = self._text(messages[:index], tools, True)
            if full.startswith(prompt):
                return len(prompt), True
            before = self._text(messages[:index], tools, False)
        except TokenizerError:  # some refuse a conversation that begins with the assistant
            return None, False
        if not full.startswith(before):
            return None, False
        # A generation prompt that says more than training text does (an opened <think>): up to where they agree.
        return len(os.path.commonprefix([prompt, full])), False

    def _from(self, start: int, full: str, messages: list[Message], tools: list[Any] | None, index: int) -> Span | None:
        """The turn that begins at `start`: to its first stop token, or to its end without one."""
        limit, exact = self._limit(full, messages, tools, index, start)
        ends = [at + len(stop) for stop in self._stops if (at := full.find(stop, start, limit)) >= 0]
        if ends:
            return start, min(ends)
        return (start, start + len(full[start:limit].rstrip())) if exact else None

    def _limit(
        self, full: str, messages: list[Message], tools: list[Any] | None, index: int, start: int
    ) -> tuple[int, bool]:
        """An end that the turn cannot pass, and whether it is the turn's own."""
        if index == len(messages) - 1:
            return len(full), True
        after = self._text(messages[: index + 1], tools, False)
        if full.startswith(after) and len(after) >= start:
            return len(after), True
        # Templates that write the last turn differently: the same up to somewhere in the next message.
        following = {**messages[index + 1], "content": _MARKS[0]}
        probe = self._text([*messages[: index + 1], following, *messages[index + 2 :]], tools, False)
        return max(start, len(os.path.commonprefix([full, probe]))), False

    def _search(self, full: str, messages: list[Message], tools: list[Any] | None, index: int) -> Span | None:
        """The content itself, found by marks put around it; for templates that rearrange what is before it."""
        content = messages[index]["content"]
        for inner in (content, content.strip()):
            if not inner:
                return None
            changed = [*messages]
            changed[index] = {**messages[index], "content": inner.join(_MARKS)}
            try:
                parts = _split_marks(self._text(changed, tools, False))
            except TokenizerError:
                return None
            if len(parts) == 3 and "".join(parts) == full:
                return len(parts[0]), self._with_stop(full, len(parts[0]) + len(parts[1]))
        return None

    # What a person should know

    def _remark(
        self, full: str, messages: list[Message], tools: list[Any] | None, spans: dict[int, Span], where: str
    ) -> None:
        """Count replies that are taught after another beginning than the model will get, or begin in two ways."""
        openings, missing = set(), set()
        for index, (begin, end) in spans.items():
            added = self._generation_prompt(messages[:index], tools)
            if not full[:begin].endswith(added):
                shared = max((n for n in range(len(added)) if full[:begin].endswith(added[:n])), default=0)
                missing.add(added[shared:])
            message = messages[index]
            words = message["content"].strip()[:40]
            at = full.find(words, begin, end) if words else -1
            if at >= 0 and not (message.get("reasoning_content") or message.get("thinking")):
                openings.add(full[begin:at].strip())
        for text in sorted(missing):
            self.remarks.add(f"conversations taught without {text!r}, which the model will see when it answers", where)
        if len(openings) > 1:
            written = max(openings, key=len)
            self.remarks.add(f"conversations in which the template puts {written!r} before some replies only", where)

    def _generation_prompt(self, messages: list[Message], tools: list[Any] | None) -> str:
        """What the template adds where the model is to answer; once for each shape of conversation."""
        shape = (tuple(m["role"] for m in messages), bool(tools))
        if shape not in self._added:
            try:
                before, prompt = self._text(messages, tools, False), self._text(messages, tools, True)
            except TokenizerError:  # some refuse a conversation that begins with the assistant
                before = prompt = ""
            self._added[shape] = prompt[len(before) :] if prompt.startswith(before) else ""
        return self._added[shape]

    # What a template leaves out

    def _prove(self, messages: list[Message], tools: list[Any] | None, needed: list[int], where: str) -> None:
        """Once for each shape of conversation: words that stand nowhere else must all come through.

        Fields that the template does not read are counted in every conversation.
        """
        shape = (tuple((m["role"], *sorted(m)) for m in messages), bool(tools), tuple(needed))
        if shape not in self._proven:
            self._prove_shape(messages, tools, needed, where)
            self._proven[shape] = self._unread(messages, tools)
        for field in self._proven[shape]:
            self.remarks.add(f"conversations with {field!r} in messages, which the template does not read", where)

    def _unread(self, messages: list[Message], tools: list[Any] | None) -> list[str]:
        fields = dict.fromkeys(key for message in messages for key in message if key not in _KNOWN)
        text = self._text(messages, tools, False) if fields else ""
        return [
            field
            for field in fields
            if text == self._text([{k: v for k, v in m.items() if k != field} for m in messages], tools, False)
        ]

    def _prove_shape(self, messages: list[Message], tools: list[Any] | None, needed: list[int], where: str) -> None:
        probe = [_with_words(message, number) for number, message in enumerate(messages)]
        text = self._text(probe, tools, False)
        for index in needed:
            for part, word in _words(messages[index], index).items():
                if word not in text:
                    raise _dropped(part, index, messages[index]["role"], where, self._last)
        if tools and self._text(probe, None, False) == text:
            raise DroppedContent(
                "the chat template leaves out the tools",
                where,
                "this model was not taught tools: use another model, or leave them out of the data",
            )

    def _refuse_stops(self, message: Message, index: int, where: str) -> None:
        """A stop token's name in an answer would be learned as letters, or end the turn there."""
        for stop in self._stops:
            if stop in message["content"]:
                raise DroppedContent(
                    f"message {index + 1} (assistant) contains {stop}, which ends its turn there",
                    where,
                    "take the token's name out of the text; the template writes it",
                )

    def _check_present(self, message: Message, index: int, text: str, where: str) -> None:
        if self._has_content(message, text):
            return
        raise _dropped("content", index, message["role"], where, self._last)

    def _has_content(self, message: Message, text: str) -> bool:
        """Whether a text holds all of a message's words, white space aside; some templates write JSON."""
        content = message["content"]
        if content.strip() in text:
            return True
        squeezed = _squeeze(text)
        forms = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
        return any(_squeeze(form) in squeezed for form in forms)


def _dropped(part: str, index: int, role: str, where: str, last: bool) -> DroppedContent:
    what = {"content": "text", "reasoning_content": "reasoning", "thinking": "thinking"}.get(part, part)
    hint = "a model would learn, or learn from, other text than yours: use another model or change the data"
    if role == "assistant":
        hint = "data.template FILE.jinja gives another chat template"
        if not last:
            hint = f"data.supervise last learns only the last turn, if earlier ones may be shortened;\n{hint}"
    elif role == "system":
        hint = "put the system message's text into the first question"
    return DroppedContent(f"the chat template drops {what} of message {index + 1} ({role})", where, hint)


def _with_words(message: Message, index: int) -> Message:
    words = _words(message, index)
    changed = {**message, **{part: word for part, word in words.items() if part in message and part != "tool_calls"}}
    if "tool_calls" in words:
        call = {"type": "function", "function": {"name": words["tool_calls"], "arguments": {"x": "y"}}}
        changed["tool_calls"] = [{**message["tool_calls"][0], **call}, *message["tool_calls"][1:]]
    return changed


def _words(message: Message, index: int) -> dict[str, str]:
    """A word of its own for each part of a message that must not be lost."""
    parts = [part for part in ("content", "reasoning_content", "thinking") if message.get(part)]
    parts += ["tool_calls"] if message.get("tool_calls") else []
    return {part: f"zq{part.replace('_', '')}{index}qz" for part in parts}


def _split_marks(text: str) -> list[str]:
    return text.replace(_MARKS[1], _MARKS[0]).split(_MARKS[0])


def _squeeze(text: str) -> str:
    return "".join(text.split())
