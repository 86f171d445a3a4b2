"""Tool calls as one chat template expects them: arguments as an object or as JSON text, an empty content or none.

Most templates write an object as JSON themselves. DeepSeek's join a string to what stands before it, and some write a
call only where the content is none. Which of the four a template means is tried out once, on words of our own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from shoestring.core.errors import TokenizerError

Message = dict[str, Any]
_NAME, _ARGUMENTS = "zqnameqz", {"zqkeyqz": "zqvalueqz"}


class CallForm(NamedTuple):
    """text: arguments are JSON in a string. none: a message without words has the content None, not ""."""

    text: bool = False
    none: bool = False

    def of(self, messages: list[Message]) -> list[Message]:
        """The messages, with their calls in this form."""
        return [self._call(message) if message.get("tool_calls") else message for message in messages]

    def _call(self, message: Message) -> Message:
        if self.none and message.get("content") == "":
            message = {**message, "content": None}
        if not self.text:
            return message
        return {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}


_FORMS = (CallForm(), CallForm(text=True), CallForm(text=True, none=True), CallForm(none=True))


def call_form(render: Callable[[list[Message]], str]) -> CallForm:
    """The first form in which a call comes through whole; the usual one where none does."""
    call = {"type": "function", "id": "zqcallqz0", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    asked, called = {"role": "user", "content": "zqaskqz"}, {"role": "assistant", "content": "", "tool_calls": [call]}
    said: list[Message] = [asked, called]
    for form in _FORMS:
        try:
            text = render(form.of(said))
        except TokenizerError:
            continue
        # Python's own writing of a dictionary is no JSON: such a template was made for text.
        if all(word in text for word in (_NAME, *_ARGUMENTS, *_ARGUMENTS.values())) and str(_ARGUMENTS) not in text:
            return form
    return CallForm()


def _with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or isinstance(function.get("arguments", ""), str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
