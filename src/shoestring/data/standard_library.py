"""The running Python's own source, as text that people wrote: what programs made is left out, by what it looks like."""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

from shoestring.core.errors import DataError

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_NUMBER = re.compile(r"\\[xuUN]\{?[0-9a-fA-F]+\}?|\b0[xX][0-9a-fA-F]+|\d+")
_WORD = re.compile(r"\w+")
MOST_NUMBERS = 0.15  # of the characters that are not white space
MOST_REPEATED = 0.6  # of the lines
_FEWEST_LINES = 40  # from which repetition says anything


def standard_library() -> list[tuple[str, Path]]:
    """(name, file) of the modules, tests and installed packages left out, sorted by name.

    Also left out: `pydoc_data`, one generated file of prose that would be most of the held-out text.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if folder not in _LEFT_OUT and not folder.startswith("."))
        files = [Path(parent) / name for name in names if name.endswith(".py")]
        found += [(file.relative_to(root).as_posix(), file) for file in files]
    if not found:
        raise DataError("this Python has no standard library source files", str(root), "give another data.source")
    return sorted(found)


def is_generated(text: str) -> bool:
    """Whether a program wrote it: a table of numbers, or lines of one form again and again."""
    return share_of_numbers(text) > MOST_NUMBERS or share_repeated(text) > MOST_REPEATED


def share_of_numbers(text: str) -> float:
    """Of the characters that are not white space those in digits, hexadecimal numbers and escapes."""
    return sum(len(found) for found in _NUMBER.findall(text)) / max(sum(map(len, text.split())), 1)


def share_repeated(text: str) -> float:
    """Of the lines with words those of the commonest form, words and numbers being alike; 0 for a few lines."""
    forms: dict[str, int] = {}
    for line in text.splitlines():
        if _WORD.search(line):
            form = _WORD.sub("w", line)
            forms[form] = forms.get(form, 0) + 1
    lines = sum(forms.values())
    return max(forms.values()) / lines if lines >= _FEWEST_LINES else 0.0
