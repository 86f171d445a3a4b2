"""How fast a chat has been, in words."""

from __future__ import annotations

from shoestring.core.units import counted, format_seconds
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Speed
from shoestring.serve.conversation import Conversation


def figures(conversation: Conversation) -> str:
    """Of the latest reply, of all, and how full the context is."""
    context = conversation.model.decoder.config.context
    lines = []
    if conversation.spent.prompt_tokens:
        lines += [f"latest    {_of(conversation.model.speed)}", f"all       {_of(conversation.spent)}"]
    return "\n".join([*lines, f"context   {conversation.tokens():,} of {counted(context, 'token')}"])


def guessing(model: LanguageModel) -> str:
    """What guesses ahead, and whether it does at present."""
    speculation = model.speculation
    if speculation is None:
        return "nothing is guessed ahead; /speculate lookup or MODEL begins"
    name = "the text itself" if speculation.draft is None else "a smaller model"
    return f"{name} guesses ahead, where that is measured to pay"


def _of(speed: Speed) -> str:
    read = f"{counted(speed.prompt_tokens, 'token')} read in {format_seconds(speed.prompt_seconds)}"
    if speed.prompt_seconds:
        read += f" ({speed.prompt_tokens / speed.prompt_seconds:,.0f} a second)"
    written = f"{speed.new_tokens:,} written in {format_seconds(speed.new_seconds)}"
    if speed.tokens_per_second:
        written += f" ({speed.tokens_per_second:,.1f} tokens/s)"
    guessed = f"; {speed.right:,} of {speed.guessed:,} guesses right" if speed.guessed else ""
    return f"{read}, {written}{guessed}"
