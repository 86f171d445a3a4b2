"""What begins with / in a chat: a table of commands, each a function of the chat and the words behind its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoestring.core.units import counted, format_bytes
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.text import without_controls
from shoestring.serve.conversation_file import cache_beside
from shoestring.serve.terminal.settings import change, shown
from shoestring.serve.terminal.speed import figures, guessing

if TYPE_CHECKING:
    from shoestring.serve.terminal.chat import TerminalChat

_SHOWN = 60  # characters of a question that is named


@dataclass(frozen=True)
class Command:
    """names: the first one is the one told first. argument: as the list shows it. run: False leaves the chat."""

    names: tuple[str, ...]
    argument: str
    about: str
    run: Callable[[TerminalChat, str], bool | None]


def find(line: str) -> Command | None:
    """The command that a line asks for."""
    name = line.strip().partition(" ")[0]
    return next((command for command in COMMANDS if name in command.names), None)


def unknown(name: str) -> str:
    """What to say about a name that no command has."""
    near = difflib.get_close_matches(name, [name for command in COMMANDS for name in command.names], 1)
    meant = f", did you mean {near[0]}?" if near else ""
    return f'unknown command {name}{meant}; /help lists them, and """{name}""" is a message'


def _help(chat: TerminalChat, argument: str) -> None:
    rows = [(" ".join([", ".join(each.names), each.argument]).strip(), each.about) for each in COMMANDS]
    rows += [("\\ at a line's end", "one more line"), ('"""', "begins and ends a message of several lines")]
    rows += [("Ctrl-C", "stops a reply; twice at the prompt leaves, as Ctrl-D does")]
    width = max(len(left) for left, _ in rows) + 2
    chat.note("\n".join(f"{left:<{width}}{right}" for left, right in rows), style="")


def _again(chat: TerminalChat, argument: str) -> None:
    before = list(chat.conversation.messages)
    question = chat.conversation.take_back()
    if question is None:
        chat.note("nothing has been asked yet", style="")
        return
    try:
        chat.answer(question)
    except Exception:
        chat.conversation.messages = before
        raise


def _undo(chat: TerminalChat, argument: str) -> None:
    question = chat.conversation.take_back()
    if question is None:
        chat.note("nothing has been asked yet", style="")
        return
    first = " ".join(without_controls(question).split())
    chat.note(f"forgotten: {first if len(first) <= _SHOWN else first[: _SHOWN - 3] + '...'}")


def _set(chat: TerminalChat, argument: str) -> None:
    changed = change(chat.sampling, argument)
    chat.conversation.model.check_ids(changed, changed.differing(chat.sampling))
    chat.sampling = changed
    chat.note(shown(chat.sampling))


def _speed(chat: TerminalChat, argument: str) -> None:
    chat.note(figures(chat.conversation), style="")


def _clear(chat: TerminalChat, argument: str) -> None:
    chat.conversation.reset(chat.conversation.system)
    chat.note("a new conversation")


def _system(chat: TerminalChat, argument: str) -> None:
    chat.conversation.reset(argument or None)
    chat.note("a new conversation, with this system message" if argument else "a new conversation")


def _save(chat: TerminalChat, argument: str) -> None:
    if not argument:
        chat.note("/save needs a file name", style="")
        return
    kept = chat.conversation.save(argument)
    if kept:
        beside = cache_beside(argument)
        size = format_bytes(beside.stat().st_size)
        chat.note(f"saved {argument}, and what the model read of it in {beside.name} ({size})")
    else:
        chat.note(f"saved {argument}")


def _load(chat: TerminalChat, argument: str) -> None:
    if not argument:
        chat.note("/load needs a file name", style="")
        return
    held, useless = chat.conversation.load(argument)
    messages = chat.conversation.messages
    turns = counted(sum(message["role"] == "user" for message in messages), "question")
    cache = f"; {counted(held, 'token')} need not be read again" if held else ""
    chat.note(f"loaded {argument}: {turns}{cache}")
    if useless:
        chat.note(f"its cache is not used, and it is read again: {useless}")
    if messages[-1]["role"] == "user":
        chat.note("the latest question has no answer: /regenerate gives one")


def _adapter(chat: TerminalChat, argument: str) -> None:
    conversation = chat.conversation
    if not argument:
        active = conversation.adapters.active
        chat.note(f"adapter {active}" if active else "no adapter; /adapter FOLDER switches to one", style="")
    elif argument == "off":
        conversation.drop_adapter()
        chat.note("the model alone")
    else:
        base = conversation.use_adapter(argument, chat.note)
        chat.note(f"adapter {argument}" + (f", trained on {base}" if base else ""))


def _speculate(chat: TerminalChat, argument: str) -> None:
    model = chat.conversation.model
    if argument == "off":
        chat.conversation.speculate(None)
    elif argument == "lookup":
        chat.conversation.speculate("lookup")
    elif argument:
        model.check_memory_of_draft()
        device = model.decoder.embedding.weight.device
        chat.conversation.speculate(LanguageModel.load(argument, device, say=chat.note, weights=model.weights))
    chat.note(guessing(model), style="" if not argument else "dim")


def _exit(chat: TerminalChat, argument: str) -> bool:
    return False


COMMANDS = (
    Command(("/regenerate", "/again", "/retry"), "", "answer the latest question anew", _again),
    Command(("/undo",), "", "forget the latest question and its answer", _undo),
    Command(("/set", "/settings"), "", "how replies are made; /set temperature 0.2 changes it", _set),
    Command(("/speed",), "", "tokens read and written, and how fast", _speed),
    Command(("/clear", "/reset"), "", "forget the conversation", _clear),
    Command(("/system",), "TEXT", "tell the model what it is, and start again; without TEXT: nothing", _system),
    Command(("/save",), "FILE", "write the conversation as JSONL that `shoestring finetune` reads", _save),
    Command(("/load",), "FILE", "go on with a saved conversation", _load),
    Command(("/adapter",), "FOLDER", "answer with an adapter (PEFT folder or run); off: without", _adapter),
    Command(("/speculate",), "MODEL", "a smaller model guesses ahead; lookup: the text itself; off: none", _speculate),
    Command(("/help", "/?"), "", "this list", _help),
    Command(("/exit", "/quit", "/bye"), "", "leave (also Ctrl-D)", _exit),
)
