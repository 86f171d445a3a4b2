"""Rows of the five common forms of training examples, brought into one: messages, or a prompt and its completion.

{"messages": [{"role", "content"}, ...], "tools"?}        OpenAI's and Hugging Face's form
{"conversations": [{"from", "value"}, ...], "system"?}    ShareGPT
{"instruction", "input"?, "output"}                       Alpaca
{"prompt", "completion"}                                  strings, or lists of messages
{"text"}                                                  everything is learned
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shoestring.core.errors import DataError
from shoestring.core.foreign import parse_json
from shoestring.data.supervised.config import Format

EXPECTED = (
    'expected one of: {"messages": [...]}, {"prompt": ..., "completion": ...}, {"instruction": ..., "output": ...},'
    ' {"conversations": [...]}, {"text": ...}'
)
SKIP = "--on-bad-line skip leaves such lines out and counts them"
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class Example:
    """One row. where: "file:line".

    messages: role, content (a string) and what else a template may read. learn: whether each message may be
    learned from. plain: (prompt, completion) to be joined as they are, where the form has them.
    """

    where: str
    messages: list[dict[str, Any]]
    learn: list[bool]
    tools: list[Any] | None = None
    plain: tuple[str, str] | None = None

    def question(self) -> str:
        """Canonical text of all that is not an answer: equal questions go to the same split."""
        asked = [(m["role"], m["content"]) for m in self.messages if m["role"] != "assistant"]
        if not asked and self.plain is not None:
            asked = [("text", self.plain[0] or self.plain[1])]
        return json.dumps([asked, self.tools], ensure_ascii=True, sort_keys=True, default=str)


def detect(rows: Iterable[dict[str, Any]], where: str) -> Format:
    """The form that all of these rows have. Raises DataError when there is none."""
    counts: dict[Format, int] = {}
    keys: dict[str, None] = {}
    total = 0
    for row in rows:
        total += 1
        keys.update(dict.fromkeys(row))
        for name, has in _HAS.items():
            counts[name] = counts.get(name, 0) + has(row)
    # A row may carry several (messages and the rendered text): the richest comes first in the table.
    for name in _HAS:
        if total and counts[name] == total:
            return name
    most = max(_HAS, key=lambda name: counts.get(name, 0))
    if counts.get(most):
        return most  # the rows that differ are named, one by one, when they are read
    found = ", ".join(map(repr, keys)) or "nothing"
    raise DataError(f"rows of an unknown form, with the fields {found}", where, EXPECTED)


def to_example(row: Any, form: Format, where: str) -> Example:
    """Raises DataError that says what is missing."""
    if not isinstance(row, dict):
        raise DataError("not a JSON object", where, f"{EXPECTED}\n{SKIP}")
    if not _HAS[form](row):
        found = ", ".join(map(repr, row)) or "nothing"
        hint = f"{_NEEDS[form]}\n--format names another form\n{SKIP}"
        raise DataError(f"not a row of the form {form}: it has the fields {found}", where, hint)
    try:
        return _MAKE[form](row, where)
    except _Wrong as error:
        raise DataError(str(error), where, f"{_NEEDS[form]}\n{SKIP}") from None


class _Wrong(Exception):
    """What is wrong with a row; `to_example` adds where."""


def _from_messages(row: dict[str, Any], where: str) -> Example:
    return _chat(where, row["messages"], _tools(row))


def _from_sharegpt(row: dict[str, Any], where: str) -> Example:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise _Wrong("conversations is not a list")
    messages: list[Any] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise _Wrong(f"turn {number} is not an object")
        if "role" in turn and "from" not in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise _Wrong(f"turn {number} is from {speaker!r}, which is none of {', '.join(_SHAREGPT_ROLES)}")
        message = {"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")}
        if speaker == "function_call" and (calls := _calls(turn.get("value"))):
            message |= {"content": "", "tool_calls": calls}
        messages.append(message | {key: turn[key] for key in ("weight", "train") if key in turn})
    return _chat(where, messages, _tools(row))


def _from_alpaca(row: dict[str, Any], where: str) -> Example:
    texts = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(text, str) for text in [*texts, row["output"]]):
        raise _Wrong("instruction, input and output must be strings")
    question = "\n\n".join(text for text in texts if text)
    system = row.get("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    example = _chat(where, messages, None)
    return Example(where, example.messages, example.learn, None, (f"{question}\n\n", row["output"]))


def _from_prompt(row: dict[str, Any], where: str) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        example = _chat(
            where, [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], None
        )
        return Example(where, example.messages, example.learn, None, (prompt, completion))
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise _Wrong("prompt and completion must both be strings, or both lists of messages")
    example = _chat(where, [*prompt, *completion], _tools(row))
    learn = [may and number >= len(prompt) for number, may in enumerate(example.learn)]
    return Example(where, example.messages, learn, example.tools)


def _from_text(row: dict[str, Any], where: str) -> Example:
    if not isinstance(row["text"], str):
        raise _Wrong("text is not a string")
    return Example(where, [], [], None, ("", row["text"]))


def _chat(where: str, messages: Any, tools: list[Any] | None) -> Example:
    if not isinstance(messages, list) or not messages:
        raise _Wrong("no list of messages, or an empty one")
    cleaned = [_message(message, number) for number, message in enumerate(messages, 1)]
    return Example(where, [m for m, _ in cleaned], [learn for _, learn in cleaned], tools)


def _message(message: Any, number: int) -> tuple[dict[str, Any], bool]:
    """A message as templates expect it, and whether it may be learned (OpenAI's `weight`, axolotl's `train`)."""
    if not isinstance(message, dict):
        raise _Wrong(f"message {number} is not an object")
    # Parquet fills the fields that only other messages have with nulls.
    clean = {key: value for key, value in message.items() if value is not None and value != []}
    role = clean.get("role")
    if role not in ROLES:
        raise _Wrong(f"message {number} has the role {role!r}, which is none of {', '.join(ROLES)}")
    weight, train = clean.pop("weight", 1), clean.pop("train", True)
    if weight not in (0, 1):
        raise _Wrong(f"message {number} has the weight {weight!r}; 0 and 1 are possible")
    if "tool_calls" in clean:
        calls = _calls(clean["tool_calls"])
        if not calls:
            raise _Wrong(f"message {number} has tool_calls that are not a list of calls with a name")
        clean["tool_calls"] = calls
        clean.setdefault("content", "")
    if "content" not in clean:
        raise _Wrong(f"message {number} ({role}) has no content")
    clean["content"] = _text(clean["content"], number)
    return clean, bool(weight) and bool(train)


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
        kinds = sorted({str(part.get("type")) for part in content if isinstance(part, dict)} - {"text"})
        raise _Wrong(f"message {number} has parts that are not text: {', '.join(kinds) or 'of no type'}")
    raise _Wrong(f"message {number} has a content that is neither a string nor a list of text parts")


def _calls(value: Any) -> list[dict[str, Any]] | None:
    """Tool calls with arguments as an object, which templates write as JSON themselves."""
    value = _parsed(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict):
            return None
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        function = {key: item for key, item in function.items() if item is not None}
        arguments = _parsed(function.get("arguments", {}))
        calls.append({"type": "function", "function": {**function, "arguments": arguments}})
        calls[-1] |= {key: call[key] for key in ("id",) if call.get(key) is not None}
    return calls or None


def _parsed(value: Any) -> Any:
    """What a string of JSON holds, or the value itself."""
    if isinstance(value, str):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _tools(row: dict[str, Any]) -> list[Any] | None:
    tools = _parsed(row.get("tools") or None)
    if tools is not None and not isinstance(tools, list):
        raise _Wrong("tools is not a list")
    return tools or None


def _given(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(row.get(name) is not None for name in names)


_HAS: dict[Format, Callable[[dict[str, Any]], bool]] = {
    "messages": _given("messages"),
    "sharegpt": _given("conversations"),
    "prompt": _given("prompt", "completion"),
    "alpaca": _given("instruction", "output"),
    "text": _given("text"),
}
_MAKE: dict[Format, Callable[[dict[str, Any], str], Example]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt": _from_prompt,
    "alpaca": _from_alpaca,
    "text": _from_text,
}
_NEEDS: dict[Format, str] = {
    "messages": 'expected {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "sharegpt": 'expected {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "prompt": 'expected {"prompt": "...", "completion": "..."}',
    "alpaca": 'expected {"instruction": "...", "input": "...", "output": "..."}',
    "text": 'expected {"text": "..."}',
}
