"""What models are called that a server is given on a command line. Torch-free, so that a wrong one is told at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shoestring.core.errors import ConfigError

_NAME = re.compile(r"[\w.:-]{1,100}(/[\w.:-]{1,100})?")
_NO_NAMES = ("", ".", "..", "latest", "best")  # of paths: a run is called as its folder is


class Named(NamedTuple):
    """A name and what it stands for, a MODEL or an adapter's folder."""

    name: str
    what: str


def named(text: str, kind: str = "MODEL") -> Named:
    """NAME=WHAT, or WHAT alone, which is then called as its folder is. Raises ConfigError for a name that is none."""
    name, equals, what = text.partition("=")
    if equals and not Path(text).expanduser().exists():
        if not _NAME.fullmatch(name) or not what:
            hint = "a name has letters, digits and . _ - :"
            raise ConfigError(f"{text!r} is not NAME={kind} (command line)", hint=hint)
        return Named(name, what)
    words = [word for word in re.split(r"[/\\]", text.removeprefix("hf:")) if word not in _NO_NAMES]
    last = re.sub(r"[^\w.:-]", "-", words[-1].removesuffix(".gguf")) if words else ""
    if not last:
        raise ConfigError(f"{text!r} says no name for the model (command line)", hint=f"write NAME={text}")
    return Named(last[:100], text)


def all_named(models: Sequence[str], adapters: Sequence[str]) -> tuple[list[Named], list[Named]]:
    """Of a command line. Raises ConfigError where two have one name."""
    bases = [named(text) for text in models]
    others = []
    for text in adapters:
        if "=" not in text:
            raise ConfigError(f"--adapter {text} is not NAME=FOLDER (command line)", hint=f"as --adapter mine={text}")
        others.append(named(text, "FOLDER"))
    names = [one.name for one in (*bases, *others)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two models would be called {twice} (command line)", hint=f"name one of them: other={twice}")
    return bases, others
