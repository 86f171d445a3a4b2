"""A machine's own part of the work runs in a process of its own, which may be killed and begun again. Torch-free.

The process that talks with the other machines stays small and answers at any time; the worker may compute for minutes
or hang in a library, and is then ended from here. Lines of JSON pass between the two: what the worker says on its
stdout, and what it is told on its stdin, whose end means that whoever began it is gone, and so it ends as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from shoestring.core.errors import RunError
from shoestring.core.foreign import parse_json

GRACE = 30.0  # seconds from asking a worker to save itself until it is ended


class Worker:
    """heard: told of every line, as a dictionary, and at last of {"ended": exit code}, in a thread of its own.

    log: where its stderr goes, None: where ours does. folder: where it works.
    """

    def __init__(
        self, arguments: list[str], heard: Callable[[dict[str, Any]], Any], folder: Path, log: IO[str] | None = None,
        environment: dict[str, str] | None = None,
    ):  # fmt: skip
        command = [sys.executable, "-m", "shoestring.laptops.worker", *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", cwd=folder,
            env={**os.environ, **_importable(), **(environment or {})},
            start_new_session=True,  # Ctrl-C at the terminal is for the process that talks with the others
        )  # fmt: skip
        self._heard = heard
        self._lock = threading.Lock()
        self._deadline: float | None = None
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    def tell(self, **values: Any) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # it has just ended
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()

    def stop(self, grace: float = GRACE) -> None:
        """Finish the step, save, leave; ended after `grace` seconds. Asked again, nothing changes."""
        if self._deadline is not None or not self.alive:
            return
        self._deadline = time.monotonic() + grace
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGTERM)
        threading.Thread(target=self._enforce, daemon=True).start()

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code; None while it is alive after so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def _enforce(self) -> None:
        assert self._deadline is not None
        if self.wait(max(self._deadline - time.monotonic(), 0)) is None:
            self.kill()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                values = parse_json(line)
                if isinstance(values, dict):
                    self._heard(values)
        self._heard({"ended": self._process.wait()})


def call(module: str, values: dict[str, Any], folder: Path | None = None) -> Any:
    """What `python -m MODULE` answers on its stdout, a JSON value, to one on its stdin: torch is loaded there, and gone
    with it. Raises RunError with the sentence that it ends with."""
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(values), stdout=subprocess.PIPE, text=True, encoding="utf-8",
        cwd=folder, env={**os.environ, **_importable()},
    )  # fmt: skip
    try:
        answer = parse_json(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RunError(f"{module} ended with exit code {done.returncode}") from None
    if "error" in answer:
        raise RunError(answer["error"], answer.get("where"), answer.get("hint"))
    return answer["value"]


def _importable() -> dict[str, str]:
    """This package is found from another folder too, however it was found here."""
    import shoestring

    source = str(Path(shoestring.__file__).resolve().parents[1])
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
