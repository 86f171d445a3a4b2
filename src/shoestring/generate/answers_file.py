"""Answers as lines of JSON in a file that grows, and is gone on with where it stopped.

Each line is written whole when its answer is: a process that is killed leaves at most half a line, which is taken off.
What the answers belong to (prompts, model, options) stands in a file beside, ANSWERS.of, and must be the same when they
are gone on with. When all are there, they are put in the order of the prompts, so that an interrupted run leaves the
same file as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from shoestring.core.errors import RunError
from shoestring.core.files import Held, atomic_write, cache_dir, clear_errors, hold
from shoestring.core.foreign import parse_json, read_json

_ANOTHER = "give the same ones to go on, or choose another --out"


class AnswersFile:
    """of: what the answers belong to, texts and numbers by name. done: the rows that have an answer.

    Raises RunError for answers that belong to something else, and for a file that is none of ours.
    """

    def __init__(self, file: Path, of: dict[str, Any]):
        self.file, self.done = file, set[int]()
        self.mended = False  # half a line was taken off
        self._beside = Path(f"{file}.of")
        self._held = self._hold()
        try:
            self._open(json.loads(json.dumps(of)))
            with clear_errors(file):
                self._out = open(file, "ab")
        except BaseException:
            self._held.release()
            raise

    def add(self, answer: dict[str, Any]) -> None:
        """Write an answer, with its `row`."""
        with clear_errors(self.file):
            self._out.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
            self._out.flush()
        self.done.add(answer["row"])

    def sort(self) -> None:
        """Put the answers in the order of their rows; nothing is added after this."""
        self._finish()
        places, at = [], 0
        with open(self.file, "rb") as lines:
            for line in lines:
                places.append((parse_json(line)["row"], at))
                at += len(line)
            if places == sorted(places):
                return
            with atomic_write(self.file, "wb") as out:
                for _, at in sorted(places):
                    lines.seek(at)
                    out.write(lines.readline())

    def close(self) -> None:
        try:
            self._finish()
        finally:
            self._held.release()

    def _finish(self) -> None:
        if not self._out.closed:
            with clear_errors(self.file), self._out:
                self._out.flush()
                os.fsync(self._out.fileno())

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _hold(self) -> Held:
        name = hashlib.sha256(str(self.file.resolve()).encode("utf-8", "replace")).hexdigest()[:24]
        held = hold(cache_dir() / f"answers-{name}.lock")
        if held is None:
            message = "another process is writing this file"
            raise RunError(message, str(self.file), "wait for it, or choose another --out")
        return held

    def _open(self, of: dict[str, Any]) -> None:
        if not self._beside.is_file():
            if self.file.exists() and self.file.stat().st_size:
                raise RunError(
                    f"this file exists, and {self._beside.name}, which says what its answers belong to, does not",
                    str(self.file), "choose another --out",
                )  # fmt: skip
            with atomic_write(self._beside) as out:
                json.dump(of, out, ensure_ascii=False, indent=1)
            return
        self._compare(of)
        if self.file.exists():
            self._read()

    def _compare(self, of: dict[str, Any]) -> None:
        where = str(self._beside)
        try:
            before = read_json(self._beside)
        except (OSError, ValueError) as error:
            raise RunError(f"it cannot be read: {error}", where, "choose another --out") from None
        if not isinstance(before, dict):
            raise RunError("not what generate wrote there", where, "choose another --out")
        for name in dict.fromkeys([*of, *before]):
            if before.get(name) != of.get(name):
                old, new = (json.dumps(each.get(name), ensure_ascii=False) for each in (before, of))
                was = f": {old} then, {new} now" if len(old) + len(new) < 100 else ""
                raise RunError(f"these answers were begun with another {name}{was}", str(self.file), _ANOTHER)

    def _read(self) -> None:
        """The rows that are done; half a line at the end goes."""
        whole = 0
        with open(self.file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{self.file}:{number}"
                if not line.endswith(b"\n"):
                    self.mended = True
                    break
                try:
                    answer = parse_json(line)
                except ValueError:
                    answer = None
                row = answer.get("row") if isinstance(answer, dict) else None
                if not isinstance(row, int):
                    raise RunError("this line is no answer", where, "take the line out, and its prompt is asked again")
                if row in self.done:
                    raise RunError(f"row {row} is answered twice", where, "take one of the two lines out")
                self.done.add(row)
                whole += len(line)
        if self.mended:
            with clear_errors(self.file):
                os.truncate(self.file, whole)
