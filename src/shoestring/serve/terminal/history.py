"""What a person has typed in earlier chats, for the arrow keys: a JSON string a line, for their eyes only."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir

MOST = 1000  # messages that are kept
_LONGEST = 10_000  # characters of one: what is longer was pasted, and nobody scrolls through it


class History:
    """file: made with the first message. What cannot be read or written there is done without."""

    def __init__(self, file: Path | None = None):
        self._file = file or cache_dir() / "chat-history.jsonl"
        self._latest: str | None = None

    def read(self) -> list[str]:
        """Oldest first."""
        try:
            lines = self._file.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines[-MOST:]:
            try:
                text = json.loads(line)
            except ValueError:
                continue  # half a line of a chat that was killed
            if isinstance(text, str):
                found.append(text)
        if len(lines) > 2 * MOST:
            self._rewrite(found)
        return found

    def add(self, text: str) -> bool:
        """Whether it is worth a place: not the same again, nor very long."""
        if text == self._latest or len(text) > _LONGEST:
            return False
        self._latest = text
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(descriptor, "a", encoding="utf-8") as file:
                file.write(json.dumps(text) + "\n")
        except OSError:
            pass
        return True

    def _rewrite(self, texts: list[str]) -> None:
        try:
            with atomic_write(self._file) as file:
                os.chmod(file.name, 0o600)
                file.writelines(json.dumps(text) + "\n" for text in texts)
        except (OSError, ShoestringError):
            pass
