"""A kind of foreign files: a sound one, how it is damaged, and what of the product reads it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.cli.main import main
from shoestring.core.errors import ShoestringError

Damage = Callable[[bytes, random.Random], bytes]


@dataclass
class Kind:
    """files: of `sound`, one of which is damaged, by one of its ways. read: runs in a folder with a copy of `sound`; ->
    the exit code."""

    name: str
    sound: Path
    files: dict[str, list[Damage]]
    read: Callable[[Path, random.Random], int]

    def answer(self, folder: Path, rng: random.Random | None) -> int:
        shutil.copytree(self.sound, folder / "it", symlinks=True)
        if rng is not None:
            name = rng.choice(list(self.files))
            file = folder / "it" / name
            data = rng.choice(self.files[name])(file.read_bytes(), rng)
            file.write_bytes(data)
        return self.read(folder / "it", rng or random.Random(0))


def command(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def call(function: Callable[..., Any], *arguments: Any, **settings: Any) -> int:
    """A function of the library, with the command line's exit codes."""
    try:
        function(*arguments, **settings)
    except ShoestringError as error:
        print(f"error: {error}")
        return 2
    return 0
