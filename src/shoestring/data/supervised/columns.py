"""Fields under other names, as people's own tables have them: question and answer, query and response, ...

    the fields of the first rows -> a form, and {field of that form: its name in the rows}, told in the header

Names are compared without regard to case. `--columns prompt=Q completion=A` says it for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shoestring.core.errors import ConfigError, DataError
from shoestring.data.supervised.config import COLUMNS, Format
from shoestring.data.supervised.formats import parsed

Row = Mapping[str, Any]

_QUESTIONS = ("prompt", "question", "query", "input")
_ANSWERS = ("completion", "answer", "response", "output")
_CHOSEN = "chosen"  # the preferred answer, or conversation, of a preference set
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", _CHOSEN)
_INPUTS, _SYSTEMS = ("input", "context"), ("system", "system_prompt")
HINT = "--columns prompt=NAME completion=NAME says which fields are meant"


def check_columns(columns: Mapping[str, str], rows: Iterable[Row], where: str) -> None:
    """Raises ConfigError for a field that no form has, DataError for a column that none of these rows has."""
    for field in columns:
        if field not in COLUMNS:
            raise ConfigError(f"no form of examples has a field {field!r}", hint=f"there are: {', '.join(COLUMNS)}")
    names = dict.fromkeys(name for row in rows for name in row)
    for field, name in columns.items():
        if names and name not in names:
            shown = ", ".join(map(repr, names))
            raise DataError(f"there is no column {name!r} to be read as {field}; there are {shown}", where)


def recognise(rows: Sequence[Row], asked: Format = "auto") -> tuple[Format, dict[str, str]] | None:
    """The form of these rows by the names of their fields, and those that are not the form's own; None: no usual names.

    asked: only this form. A field counts where all rows have it; of several the first in the tables above.
    """
    has, may = _fields(rows, all), _fields(rows, any)
    own = _first(has, ("prompt",), ("completion",))
    candidates: list[tuple[Format, list[str] | None]] = []
    if (name := _conversation(rows, has)) is not None:
        speaks = any(_speaks(parsed(row[name]), "from") for row in rows) or name == has.get("conversations")
        form: Format = "sharegpt" if speaks or asked == "sharegpt" else "messages"
        candidates.append((form, [name]))
    candidates += [
        ("prompt", own), ("alpaca", _first(has, ("instruction",), _ANSWERS[::-1])),
        ("prompt", _first(has, _QUESTIONS, (*_ANSWERS, _CHOSEN))), ("text", _first(has, ("text",))),
    ]  # fmt: skip
    for form, names in candidates:
        if names is None or asked not in ("auto", form):
            continue
        found = dict(zip(_NEEDED[form], names, strict=True))
        for field, others in (("input", _INPUTS), ("system", _SYSTEMS)):
            other = _first(may, others)
            if other is not None and field in _OPTIONAL[form] and other[0] not in names:
                found[field] = other[0]
        return form, {field: name for field, name in found.items() if field != name}
    return None


_NEEDED: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",), "sharegpt": ("conversations",), "prompt": ("prompt", "completion"),
    "alpaca": ("instruction", "output"), "text": ("text",),
}  # fmt: skip
_OPTIONAL: dict[Format, tuple[str, ...]] = {
    "messages": ("system",), "sharegpt": ("system",), "prompt": ("system",), "alpaca": ("input", "system"), "text": (),
}  # fmt: skip


def described(columns: Mapping[str, str]) -> str:
    """For the header."""
    return ", ".join(f"{name} as {field}" for field, name in columns.items())


def _fields(rows: Sequence[Row], how: Any) -> dict[str, str]:
    """Names in small letters -> as they are, of the fields that all rows have, or any."""
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
    return {name.strip().lower(): name for name in reversed(names) if how(row.get(name) is not None for row in rows)}


def _first(has: dict[str, str], *choices: tuple[str, ...]) -> list[str] | None:
    """Of each the first name that there is; None where one has none."""
    found: list[str] = []
    for names in choices:
        name = next((has[name] for name in names if name in has and has[name] not in found), None)
        if name is None:
            return None
        found.append(name)
    return found


def _conversation(rows: Sequence[Row], has: dict[str, str]) -> str | None:
    for name in _CONVERSATIONS:
        if name not in has or (name == _CHOSEN and "prompt" in has):
            continue
        turns = [parsed(row[has[name]]) for row in rows]
        if name in ("messages", "conversations") or any(_speaks(each, "role", "from") for each in turns):
            return has[name]
    return None


def _speaks(turns: Any, *keys: str) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, dict) and key in turn for turn in turns for key in keys)
