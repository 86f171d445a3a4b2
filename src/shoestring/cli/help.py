"""What `shoestring VERB --help` prints: usage, one aligned line for each argument and flag, two examples.

Our own page rather than cyclopts' panels: examples stay on one line, so that they can be copied, and flags
stand in the order in which the verb declares them.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts import App

_COLUMN = 26
# What stands for a flag's value, where that says more than its type.
_VALUES = {
    "--time": "TIME", "--finetune-time": "TIME", "--memory": "SIZE", "--out": "PATH", "--model": "MODEL",
    "--recipe": "RECIPE", "--data": "DATA", "--preserve": "DATA", "--calibrate": "DATA",
    "--columns": "FIELD=NAME", "--device": "DEVICE", "--dtype": "DTYPE", "--adapter": "NAME=FOLDER",
    "--tokenizer": "MODEL", "--template": "FILE", "--text-field": "NAME", "--filters": "NAMES",
    "--teacher": "MODEL", "--student": "MODEL",
}  # fmt: skip


def page(command: App, chain: tuple[str, ...]) -> str:
    """The help of the command that `chain` (verb and sub-verb) leads to."""
    rows, usage = [], ["usage: shoestring", *chain]
    if command.default_command is None:
        usage.append("COMMAND")
        rows = [(name, command[name].help) for name in command if not name.startswith("-")]
    else:
        arguments = [argument for argument in command.assemble_argument_collection() if argument.parse]
        for argument in arguments:
            if argument.show:
                rows.append((_label(argument), _explanation(argument)))
                if not argument.names[0].startswith("-"):
                    usage.append(argument.name if argument.required else f"[{argument.name}]")
                elif argument.required:
                    usage.append(_label(argument))
        if any(argument.names[0].startswith("-") and not argument.required for argument in arguments):
            usage.append("[flags]")
        if "overrides" in inspect.signature(command.default_command).parameters:
            usage.append("[--dotted.key value ...]")
            rows.append(
                ("--dotted.key VALUE", "any setting of the recipe; shoestring recipe show RECIPE lists them")
            )
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    lines = [" ".join(usage), "", *textwrap.wrap(command.help, width), ""]
    for label, text in rows:
        lines += _row(label, text, width)
    if command.help_epilogue:
        lines += ["", str(command.help_epilogue)]
    return "\n".join(lines)


def _row(label: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, width - _COLUMN) or [""]
    first = f"  {label}"
    if len(first) + 2 > _COLUMN:
        return [first, *(" " * _COLUMN + line for line in wrapped)]
    return [f"{first:<{_COLUMN}}{wrapped[0]}".rstrip(), *(" " * _COLUMN + line for line in wrapped[1:])]


def _label(argument: Any) -> str:
    name = ", ".join(argument.names)
    switch = "bool" in str(argument.hint)  # cyclopts counts a value for one that may be left out
    if not name.startswith("-") or argument.token_count()[0] == 0 or switch:
        return name
    if argument.get_choices():
        return f"{name} {'|'.join(argument.get_choices())}"
    if argument.names[0] in _VALUES:
        return f"{name} {_VALUES[argument.names[0]]}"
    hint = str(argument.hint)
    for kind, word in (("int", "N"), ("float", "X"), ("Path", "PATH"), ("str", "TEXT")):
        if kind in hint:
            return f"{name} {word}"
    return f"{name} VALUE"


def _explanation(argument: Any) -> str:
    text, default = argument.parameter.help or "", argument.field_info.default
    if argument.get_choices() and not argument.names[0].startswith("-"):
        return f"{text}: {', '.join(argument.get_choices())}"
    if argument.required and argument.names[0].startswith("-"):
        return f"{text} [required]"
    if default in (inspect.Parameter.empty, None, False, ()):
        return text
    return f"{text} [{default}]"
