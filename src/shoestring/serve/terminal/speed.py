"""How fast a chat has been, in words."""

from __future__ import annotations

from shoestring.core.units import counted, format_seconds
from shoestring.generate.request import Speed
from shoestring.serve.conversation import Conversation


def figures(conversation: Conversation) -> str:
    """Of the latest reply, of all, and how full the context is."""
    context = conversation.model.decoder.config.context
    lines = []
    if conversation.spent.prompt_tokens:
        lines += [f"latest    {_of(conversation.model.speed)}", f"all       {_of(conversation.spent)}"]
    return "\n".join([*lines, f"context   {conversation.tokens():,} of {counted(context, 'token')}"])


def _of(speed: Speed) -> str:
    read = f"{counted(speed.prompt_tokens, 'token')} read in {format_seconds(speed.prompt_seconds)}"
    if speed.prompt_seconds:
        read += f" ({speed.prompt_tokens / speed.prompt_seconds:,.0f} a second)"
    written = f"{speed.new_tokens:,} written in {format_seconds(speed.new_seconds)}"
    if speed.tokens_per_second:
        written += f" ({speed.tokens_per_second:,.1f} tokens/s)"
    return f"{read}, {written}"
