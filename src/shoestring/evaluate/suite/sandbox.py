"""Runs what a model wrote, in a process that can do no harm: no network, no files but an empty folder, little of all else.

On Linux the process gets a user, mount, network and process namespace of its own (`unshare`), in which everything but the
interpreter is out of sight or read-only; where the system allows none, nothing is run, and the category is left out. Limits:
seconds of the processor and of the clock, memory, open files, size of files, processes.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 5  # of the processor; twice that of the clock
MEMORY = 512 * 2**20
_FILES, _FILE_BYTES, _PROCESSES = 32, 2**20, 8
_DONE = "every assertion held"
_LIMITS = f"""
import resource
for name, most in (("CPU", {SECONDS}), ("AS", {MEMORY}), ("NOFILE", {_FILES}), ("FSIZE", {_FILE_BYTES}), ("NPROC", {_PROCESSES}),
                   ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
"""


def why_not() -> str | None:
    """Why code cannot be run here; None where it can."""
    if sys.platform != "linux":
        return "code is run in namespaces of Linux, which this system does not have"
    if shutil.which("unshare") is None:
        return "code is run by unshare (util-linux), which is not installed"
    return None if _works() else "this system allows no namespaces, in which code is run without a network"


def passes(program: str, tests: str) -> bool:
    """Whether a program followed by its tests comes to its end. False for one that is stopped. Wants `why_not` None."""
    if why_not() is not None:
        raise RuntimeError("no sandbox")
    return _run(f"{program}\n{tests}\n")


@functools.cache
def _works() -> bool:
    return _run("import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError:\n    pass\n")


def _run(source: str) -> bool:
    """The last line of the output says that it came to its end: `exit(0)` half way is no success."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        script = _LIMITS + f"exec(compile({source!r}, 'reply', 'exec'), {{'__name__': '__main__'}})\nprint({_DONE!r})\n"
        command = [
            "unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child",
            "sh", "-c", _ENTER, "sh", str(scratch), sys.executable, "-I", "-S", "-c", script,
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=scratch,
            env={"PATH": os.defpath, "HOME": "/", "LANG": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return False
        return process.returncode == 0 and output.decode(errors="replace").rstrip().endswith(_DONE)


# Everything read-only, the places where people keep files out of sight, and the scratch folder alone to be written into.
_ENTER = """
scratch=$1; shift
mount --make-rprivate / || exit 70
mount -t tmpfs -o size=1m tmpfs /mnt || exit 71
mount --bind "$scratch" /mnt || exit 72
for hidden in /root /home /tmp /var/tmp /run /srv /media; do
    case "$1" in "$hidden"/*) continue;; esac
    [ -d "$hidden" ] && mount -t tmpfs -o size=64k,ro tmpfs "$hidden"
done
mount -o remount,bind,ro / || exit 73
cd /mnt || exit 74
exec "$@"
"""
