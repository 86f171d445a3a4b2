"""What makes a reply right: each check is a function of the reply's text, made from what is wanted."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from shoestring.data.synthetic.arithmetic import is_right
from shoestring.evaluate.suite.question import Check, Reply

_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NUMBERS = 3  # in a sentence that answers with one


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def plain(text: str) -> str:
    """Without case, white space at both ends, quotation marks and a full stop."""
    return " ".join(text.casefold().split()).strip(" .!\"'`*“”‘’")


def number(result: int | str) -> Check:
    """The last whole number of the reply is the result."""
    return lambda reply: is_right(reply.text, str(result))


def exactly(wanted: str) -> Check:
    """Nothing but the answer, letter for letter, and it ends there."""
    return lambda reply: reply.stopped and reply.text.strip() == wanted


def says(*wanted: str) -> Check:
    """The answer alone, or a sentence with one of its wordings as whole words; where it is a number, not one among
    many."""
    patterns = [re.compile(rf"(?<![\w-]){re.escape(plain(one))}(?![\w-]|\.\d)") for one in wanted]
    numeric = any(one.isdigit() for one in wanted)

    def check(reply: Reply) -> bool:
        if numeric and len(re.findall(r"\d+", reply.text)) > _NUMBERS:
            return False
        return any(pattern.search(plain(reply.text)) for pattern in patterns)

    return check


def continues(wanted: str, item: str) -> Check:
    """What the reply calls the next item is the wanted one; where it calls none so, its first or its last item is.
    item: a pattern of all items. Those on the way to it count for nothing, and neither does one in a long list."""
    form = re.compile(item)
    called = re.compile(
        rf"(?i:\b(?:next|follow\w*|continu\w*)\b[^.\n]*?\b(?:is|be|by|with)\b)[^\w.\n-]*({item})(?![\w-]|\.\d)"
    )

    def check(reply: Reply) -> bool:
        named = called.search(reply.text)
        found = [named[1]] if named else form.findall(reply.text)
        texts = [one.replace(",", "").casefold() for one in found]
        return bool(texts) and wanted.casefold() in (texts[0], texts[-1])

    return check


def chooses(right: str, wrong: Sequence[str]) -> Check:
    """Of several options the right one is named, and named first; naming all of them before saying one is no choice."""

    def check(reply: Reply) -> bool:
        text, found = plain(reply.text), {}
        for option in (right, *wrong):
            match = re.search(rf"(?<![\w.]){re.escape(plain(option))}(?!\w|\.\d)", text)
            if match:
                found[option] = match.start()
        return bool(found) and min(found, key=found.__getitem__) == right

    return check


def yes_or_no(right: bool) -> Check:
    """The first of the two words that the reply has."""

    def check(reply: Reply) -> bool:
        found = re.search(r"\b(yes|no|true|false)\b", reply.text.casefold())
        return found is not None and (found[1] in ("yes", "true")) == right

    return check


def all_of(*checks: Check) -> Check:
    return lambda reply: all(check(reply) for check in checks)


# --- instructions ------------------------------------------------------------------------------------------------


def with_words(*wanted: str) -> Check:
    return lambda reply: {word.casefold() for word in wanted} <= {word.casefold() for word in words(reply.text)}


def without_words(*unwanted: str) -> Check:
    return lambda reply: not {word.casefold() for word in unwanted} & {word.casefold() for word in words(reply.text)}


def word_count(least: int, most: int) -> Check:
    return lambda reply: least <= len(words(reply.text)) <= most


def sentence_count(count: int) -> Check:
    return lambda reply: len(re.findall(r"[.!?]+(?=\s|$)", reply.text.strip())) == count


def upper() -> Check:
    return lambda reply: reply.text == reply.text.upper() and bool(words(reply.text))


def lower() -> Check:
    return lambda reply: reply.text == reply.text.lower() and bool(words(reply.text))


def begins(text: str) -> Check:
    return lambda reply: reply.text.lstrip().startswith(text)


def ends(text: str) -> Check:
    return lambda reply: reply.text.rstrip().endswith(text)


def lacks(mark: str) -> Check:
    return lambda reply: mark not in reply.text


def item_lines(pattern: str, count: int) -> Check:
    """So many lines, all of this form."""
    form = re.compile(pattern)

    def check(reply: Reply) -> bool:
        lines = [line for line in reply.text.strip().splitlines() if line.strip()]
        return len(lines) == count and all(form.fullmatch(line.strip()) for line in lines)

    return check


# --- structure ---------------------------------------------------------------------------------------------------


def fenced(text: str) -> str:
    """What stands in the first fence, else the text itself."""
    found = _FENCE.search(text)
    return (found[1] if found else text).strip()


def as_json(wanted: Any) -> Check:
    """The reply is JSON, perhaps in a fence, of this value."""

    def check(reply: Reply) -> bool:
        try:
            return bool(json.loads(fenced(reply.text)) == wanted)
        except (ValueError, RecursionError):
            return False

    return check


def as_lines(wanted: Sequence[str]) -> Check:
    """These lines and no others, white space at their ends aside."""

    def check(reply: Reply) -> bool:
        return [line.strip() for line in fenced(reply.text).splitlines() if line.strip()] == list(wanted)

    return check


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Check:
    """A Markdown table of these cells, whatever its spaces."""

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip().strip("|").split("|")]

    def check(reply: Reply) -> bool:
        lines = [line for line in fenced(reply.text).splitlines() if line.strip()]
        if len(lines) != 2 + len(rows) or not all("|" in line for line in lines):
            return False
        ruled = all(re.fullmatch(r":?-{1,}:?", cell) for cell in cells(lines[1]))
        found = [cells(line) for line in (lines[0], *lines[2:])]
        return ruled and found == [list(header), *map(list, rows)]

    return check


def defines(name: str, arguments: Sequence[str]) -> Check:
    """Python that parses, with this function of these arguments that gives something back."""

    def check(reply: Reply) -> bool:
        try:
            tree = ast.parse(fenced(reply.text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                given = [argument.arg for argument in node.args.args]
                returns = any(isinstance(part, ast.Return) and part.value is not None for part in ast.walk(node))
                return given == list(arguments) and returns
        return False

    return check
