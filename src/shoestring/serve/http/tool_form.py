"""How a model writes a call of a function: what stands before the name, between name and arguments, and behind.

Qwen's way, and that of many others, is <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>. Which one a chat
template means is tried out once, on a call with words of our own. Templates that know no functions, or write arguments
otherwise than as JSON, get Qwen's way, and are told of it in the system message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from shoestring.core.errors import TokenizerError
from shoestring.data.tokenizer import Tokenizer

Message = dict[str, Any]
_NAME = "zqnameqz"
_ARGUMENTS = re.compile(r'\{\s*"zqkeyqz"\s*:\s*"zqvalueqz"\s*\}')
_PROBE = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "zqtextqz",
        "parameters": {"type": "object", "properties": {"zqkeyqz": {"type": "string"}}},
    },
}
_CALLED = {"type": "function", "id": "zqcallqz0", "function": {"name": _NAME, "arguments": {"zqkeyqz": "zqvalueqz"}}}


class ToolForm(NamedTuple):
    """A call is before + NAME + between + ARGUMENTS + behind. native: the chat template writes it, and knows tools."""

    before: str = '<tool_call>\n{"name": "'
    between: str = '", "arguments": '
    behind: str = "}\n</tool_call>"
    native: bool = False

    def begin(self, name: str) -> str:
        """Up to the arguments."""
        return self.before + name + self.between

    @property
    def trigger(self) -> str:
        """By which a call is known in running text: its first line."""
        return self.before.split("\n")[0] or self.before

    def call(self, name: str, arguments: str) -> str:
        return self.begin(name) + arguments + self.behind


def tool_form(tokenizer: Tokenizer) -> ToolForm:
    """The form that a tokenizer's chat template means."""
    asked: Message = {"role": "user", "content": "zqaskqz"}
    called: Message = {"role": "assistant", "content": "", "tool_calls": [_CALLED]}
    try:
        opened = tokenizer.render_chat([asked], [_PROBE])
        whole = tokenizer.render_chat([asked, called], [_PROBE], add_generation_prompt=False)
    except TokenizerError:
        return ToolForm()
    found = _ARGUMENTS.search(whole, len(opened))
    at = whole.find(_NAME, len(opened))
    if _NAME not in opened or not whole.startswith(opened) or found is None or not 0 <= at < found.start():
        return ToolForm()
    before, between = whole[len(opened) : at], whole[at + len(_NAME) : found.start()]
    specials = [token.content for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special]
    behind = whole[found.end() :]
    ends = [place for name in specials if (place := behind.find(name)) >= 0]
    behind = behind[: min(ends, default=len(behind))].rstrip()
    if not before.strip() or not between or any(name in before + between for name in specials):
        return ToolForm()
    return ToolForm(before, between, behind, native=True)


def with_tools(messages: Sequence[Message], tools: Sequence[Message], form: ToolForm) -> list[Message]:
    """A conversation for a template that knows no tools: they stand in the system message, and calls and their results
    are text."""
    told = [_as_text(message, form) for message in messages]
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = form.call("NAME", "{...}")
    words = f"These functions can be called:\n{listed}\nTo call one, write nothing but\n{example}"
    if told and told[0]["role"] == "system":
        return [{"role": "system", "content": f"{told[0]['content']}\n\n{words}"}, *told[1:]]
    return [{"role": "system", "content": words}, *told]


def _as_text(message: Message, form: ToolForm) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls: Iterable[Any] = message.get("tool_calls") or ()
    lines = [message["content"]] if message["content"] else []
    for call in calls:
        function = call["function"]
        lines.append(form.call(function["name"], json.dumps(function["arguments"], ensure_ascii=False)))
    return {"role": message["role"], "content": "\n".join(lines)}
