"""A chat template as a fixed form: what stands before and after each role's words. Ollama takes such a form alone.

A Jinja template is a program; its form is found by rendering conversations of marks, and holds only if a longer
conversation is rendered just so. Templates of which it does not hold have no form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoestring.core.errors import TokenizerError
from shoestring.data.tokenizer import Tokenizer

_SYSTEM, _USER, _REPLY, _NEXT, _LAST = (f"{mark}words{mark}" for mark in "\u2460\u2461\u2462\u2463\u2464")


class _Irregular(Exception):
    """What a template does with a message is no text before and after it."""


@dataclass(frozen=True)
class ChatForm:
    """opening: of a conversation without a system message, which may bring one of its own. system, user, assistant:
    before and after the words; system is None where the template takes none. prompt: what a reply follows."""

    opening: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str

    def render(self, messages: list[dict[str, Any]]) -> str:
        """As the template renders them, with the prompt for a reply at the end."""
        parts = [] if messages[0]["role"] == "system" else [self.opening]
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        for message in messages:
            pair = around[message["role"]]
            assert pair is not None
            parts.append(f"{pair[0]}{message['content']}{pair[1]}")
        return "".join([*parts, self.prompt])


def chat_form(tokenizer: Tokenizer) -> ChatForm | None:
    """None where there is no template, or one that is more than a form."""
    if tokenizer.chat_template is None:
        return None
    try:
        form = _found(tokenizer)
        if form is None:
            return None
        turns = [("user", _USER), ("assistant", _REPLY), ("user", _NEXT), ("assistant", _LAST), ("user", "e")]
        talks = [turns] if form.system is None else [turns, [("system", _SYSTEM), *turns]]
        for talk in talks:
            messages = [{"role": role, "content": content} for role, content in talk]
            if form.render(messages) != tokenizer.render_chat(messages):
                return None
    except (TokenizerError, _Irregular):
        return None
    return form


def _found(tokenizer: Tokenizer) -> ChatForm | None:
    def rendered(*turns: tuple[str, str], reply: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return tokenizer.render_chat(messages, add_generation_prompt=reply)

    asked = rendered(("user", _USER))
    prompted = rendered(("user", _USER), reply=True)
    answered = rendered(("user", _USER), ("assistant", _REPLY))
    talk = rendered(("user", _USER), ("assistant", _REPLY), ("user", _NEXT))
    if not prompted.startswith(asked) or _NEXT not in talk or _REPLY not in answered or _USER not in asked:
        return None
    head, _, after_user = asked.partition(_USER)
    before_reply = talk.partition(_USER)[2].partition(_REPLY)[0]
    after_reply = answered.partition(_REPLY)[2]
    between = talk.partition(_REPLY)[2].partition(_NEXT)[0]
    if not before_reply.startswith(after_user) or not between.startswith(after_reply):
        return None
    before_user = between[len(after_reply) :]
    if not head.endswith(before_user):
        return None
    user, assistant = (before_user, after_user), (before_reply[len(after_user) :], after_reply)
    opening, prompt = head[: len(head) - len(before_user)], prompted[len(asked) :]
    return ChatForm(opening, _system_of(rendered, before_user), user, assistant, prompt)


def _system_of(rendered: Callable[..., str], before_user: str) -> tuple[str, str] | None:
    """None where the template refuses system messages. Raises _Irregular where it does something else with one."""
    try:
        text = rendered(("system", _SYSTEM), ("user", _USER))
    except TokenizerError:
        return None
    before, _, after = text.partition(_SYSTEM)
    after = after.partition(_USER)[0]
    if _SYSTEM not in text or not after.endswith(before_user):
        raise _Irregular
    return before, after[: len(after) - len(before_user)]
