"""Rows of the five common forms of training examples, brought into one: messages, or a prompt and its completion.

{"messages": [{"role", "content"}, ...], "system"?, "tools"?}    OpenAI's and Hugging Face's form
{"conversations": [{"from", "value"}, ...], "system"?}           ShareGPT
{"instruction", "input"?, "output", "history"?, "system"?}       Alpaca
{"prompt", "completion", "system"?}                              strings, or lists of messages
{"text"}                                                         everything is learned
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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
    learned from. plain: (prompt, completion) to be joined as they are, where the form has them. unused: names of
    fields that hold something and are not read.
    """

    where: str
    messages: list[dict[str, Any]]
    learn: list[bool]
    tools: list[Any] | None = None
    plain: tuple[str, str] | None = None
    unused: tuple[str, ...] = ()

    def question(self) -> str:
        """Canonical text of all that is not an answer: equal questions go to the same split."""
        asked = [(m["role"], m["content"]) for m in self.messages if m["role"] != "assistant"]
        if not asked and self.plain is not None:
            asked = [("text", self.plain[0] or self.plain[1])]
        return json.dumps([asked, self.tools], ensure_ascii=True, sort_keys=True, default=str)


def detect(rows: Iterable[dict[str, Any]], where: str, hint: str = EXPECTED) -> Format:
    """The form that most of these rows have. Raises DataError when there is none."""
    counts = dict.fromkeys(_HAS, 0)
    keys: dict[str, None] = {}
    for row in rows:
        keys.update(dict.fromkeys(row))
        for name, has in _HAS.items():
            counts[name] += has(row)
    # A row may carry several (messages and the rendered text): the richest comes first in the table.
    most = max(_HAS, key=lambda name: counts[name])
    if counts[most]:
        return most  # the rows that differ are named, one by one, when they are read
    found = ", ".join(map(repr, keys)) or "nothing"
    raise DataError(f"rows of an unknown form, with the fields {found}", where, hint)


def to_example(row: Any, form: Format, where: str, columns: Mapping[str, str] | None = None) -> Example:
    """columns: field of the form -> its name in the row. Raises DataError that says what is missing."""
    if not isinstance(row, dict):
        is_list = "\na list of all rows goes into a .json file" if isinstance(row, list) else ""
        raise DataError("not a JSON object", where, f"{EXPECTED}\n{SKIP}{is_list}")
    columns = columns or {}
    fields = named(row, columns)
    read_as = "".join(f"\n{name} is read as {field}" for field, name in columns.items())
    if not _HAS[form](fields):
        found = ", ".join(map(repr, row)) or "nothing"
        hint = f"{_NEEDS[form]}{read_as}\n--format names another form\n{SKIP}"
        raise DataError(f"not a row of the form {form}: it has the fields {found}", where, hint)
    try:
        example = _MAKE[form](fields, where)
    except _Wrong as error:
        raise DataError(str(error), where, f"{_NEEDS[form]}{read_as}\n{SKIP}") from None
    read = {columns.get(field, field) for field in _READ[form]}
    unused = tuple(str(name) for name, value in row.items() if name not in read and not is_empty(value))
    return replace(example, unused=unused)


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: absent, or there only because other rows have it."""
    return value is None or (isinstance(value, (str, list, dict, tuple)) and not value)


class _Wrong(Exception):
    """What is wrong with a row; `to_example` adds where."""


def named(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under the names of its form; `columns` wins over a field that has such a name already."""
    taken = set(columns.values())
    others = {name: value for name, value in row.items() if name not in taken}
    return others | {field: row[name] for field, name in columns.items() if name in row}


def _from_messages(row: dict[str, Any], where: str) -> Example:
    return _chat(where, _opened(row, parsed(row["messages"])), _tools(row))


def _from_sharegpt(row: dict[str, Any], where: str) -> Example:
    turns = parsed(row["conversations"])
    if not isinstance(turns, list):
        raise _Wrong("conversations is not a list")
    messages: list[Any] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise _Wrong(f"turn {number} is not an object")
        if "role" in turn and "from" not in turn:
            messages.append(turn)
            continue
        speaker, value, content = turn.get("from"), turn.get("value"), turn.get("content")
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise _Wrong(f"turn {number} is from {speaker!r}, which is none of {', '.join(_SHAREGPT_ROLES)}")
        if value is not None and content not in (None, value):
            raise _Wrong(f"turn {number} has a value and a content, which differ")
        rest = {key: part for key, part in turn.items() if key not in ("from", "value")}
        message = {**rest, "role": _SHAREGPT_ROLES[speaker], "content": content if value is None else value}
        if speaker == "function_call" and (calls := _calls(value)):
            message |= {"content": "", "tool_calls": calls}
        messages.append(message)
    return _chat(where, _opened(row, messages), _tools(row))


def _from_alpaca(row: dict[str, Any], where: str) -> Example:
    texts = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(text, str) for text in [*texts, row["output"]]):
        raise _Wrong("instruction, input and output must be strings")
    question = "\n\n".join(text for text in texts if text)
    messages = [*_history(row), _said("user", question), _said("assistant", row["output"])]
    return _pair(row, where, messages, (f"{question}\n\n", row["output"]))


def _from_prompt(row: dict[str, Any], where: str) -> Example:
    prompt, completion = _conversation(row["prompt"]), _conversation(row["completion"])
    if isinstance(prompt, str) and isinstance(completion, str):
        messages = [_said("user", prompt), _said("assistant", completion)]
        return _pair(row, where, messages, (prompt, completion))
    if not all(isinstance(part, (str, list)) for part in (prompt, completion)):
        raise _Wrong("prompt and completion must both be strings, or lists of messages")
    asked = [_said("user", prompt)] if isinstance(prompt, str) else prompt
    answered = [_said("assistant", completion)] if isinstance(completion, str) else completion
    if asked and answered[: len(asked)] == asked:  # preference sets begin the chosen conversation with its question
        asked, answered = answered[:-1], answered[-1:]
    messages = _opened(row, [*asked, *answered])
    example = _chat(where, messages, _tools(row))
    before = len(messages) - len(answered)
    learn = [may and number >= before for number, may in enumerate(example.learn)]
    return Example(where, example.messages, learn, example.tools)


def _from_text(row: dict[str, Any], where: str) -> Example:
    if not isinstance(row["text"], str):
        raise _Wrong("text is not a string")
    return Example(where, [], [], None, ("", row["text"]))


def _conversation(value: Any) -> Any:
    """Messages that a table holds as JSON; any other text is text, also "[3, 1, 2]"."""
    held = parsed(value)
    is_messages = isinstance(held, list) and held and all(isinstance(one, dict) and "role" in one for one in held)
    return held if is_messages else value


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def _pair(row: dict[str, Any], where: str, messages: list[dict[str, Any]], plain: tuple[str, str]) -> Example:
    """A question and its answer, which can be joined as they are if nothing stands beside them."""
    opened, tools = _opened(row, messages), _tools(row)
    example = _chat(where, opened, tools)
    alone = len(opened) == 2 and tools is None
    return Example(where, example.messages, example.learn, tools, plain if alone else None)


def _opened(row: dict[str, Any], messages: Any) -> Any:
    """The messages, behind the system message that stands beside them in the row."""
    system = row.get("system")
    if is_empty(system) or not isinstance(messages, list) or not messages:
        return messages
    if not isinstance(system, str):
        raise _Wrong("system is not a string")
    first = messages[0]
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        if first.get("content") != system:
            raise _Wrong("there are two system messages, which differ: the field system and the first message")
        return messages
    return [_said("system", system), *messages]


def _history(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Alpaca's earlier turns, [[question, answer], ...]."""
    history = parsed(row.get("history"))
    if is_empty(history):
        return []
    turns: list[dict[str, Any]] = []
    for number, pair in enumerate(history if isinstance(history, list) else [None], 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _Wrong(f"entry {number} of history is not a question with its answer, as [question, answer]")
        turns += [_said("user", pair[0]), _said("assistant", pair[1])]
    return turns


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
    if "function_call" in clean and "tool_calls" not in clean:  # OpenAI's name for it until 2023
        clean["tool_calls"] = clean.pop("function_call")
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
    """Tool calls with arguments as an object; templates that want text get it when they are rendered."""
    value = parsed(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict):
            return None
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        function = {key: item for key, item in function.items() if item is not None}
        arguments = parsed(function.get("arguments", {}))
        calls.append({"type": "function", "function": {**function, "arguments": arguments}})
        calls[-1] |= {key: call[key] for key in ("id",) if call.get(key) is not None}
    return calls or None


def parsed(value: Any) -> Any:
    """What a string of JSON holds, or the value itself."""
    if isinstance(value, str):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _tools(row: dict[str, Any]) -> list[Any] | None:
    tools = parsed(row.get("tools") or None)
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
_READ: dict[Format, tuple[str, ...]] = {
    "messages": ("messages", "system", "tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "prompt": ("prompt", "completion", "system", "tools"),
    "alpaca": ("instruction", "input", "output", "history", "system", "tools"),
    "text": ("text",),
}
_NEEDS: dict[Format, str] = {
    "messages": 'expected {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "sharegpt": 'expected {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "prompt": 'expected {"prompt": "...", "completion": "..."}',
    "alpaca": 'expected {"instruction": "...", "input": "...", "output": "..."}',
    "text": 'expected {"text": "..."}',
}
