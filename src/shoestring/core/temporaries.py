"""Names of temporaries: siblings of what is being written, with the host and the process of who writes them.

So those that a dead process left are known, and those of a living one are let alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import secrets
import sys
import time
from pathlib import Path

PATTERN = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})\.(?P<kind>tmp|old)"
)
_FOREIGN_AGE = 7 * 86400.0  # seconds: those of other hosts (a shared disk, a past container) are stale after a week
_live_tokens: set[str] = set()


def host() -> str:
    """Six hexadecimal digits that stand for this machine."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def new(path: Path, kind: str) -> Path:
    """A new name beside `path`; kind: tmp of what becomes it, old of what it replaces."""
    token = secrets.token_hex(4)
    _live_tokens.add(token)
    return path.with_name(f".{path.name}.{host()}-{os.getpid()}-{token}.{kind}")


def forget(name: Path) -> None:
    """This process is done with it."""
    match = PATTERN.fullmatch(name.name)
    assert match is not None
    _live_tokens.discard(match["token"])


def of(path: Path) -> list[tuple[Path, re.Match[str]]]:
    """Those of `path` that are there, whoever made them."""
    found = []
    for name in os.listdir(path.parent):
        match = PATTERN.fullmatch(name)
        if match is not None and match["name"] == path.name:
            found.append((path.with_name(name), match))
    return found


def is_stale(found: Path, match: re.Match[str]) -> bool:
    """Whether its writer is gone."""
    if match["host"] != host():
        try:
            return time.time() - found.lstat().st_mtime > _FOREIGN_AGE
        except FileNotFoundError:
            return False
    pid = int(match["pid"])
    if pid == os.getpid():  # ids are reused, in containers above all
        return match["token"] not in _live_tokens
    return not process_alive(pid)


def process_alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    if pid <= 0:
        return False
    if sys.platform == "win32":  # os.kill(pid, 0) would end the process there
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return kernel.GetLastError() == 5  # access denied: it exists
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
