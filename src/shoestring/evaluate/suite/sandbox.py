"""Runs what a model wrote in a process that can do no harm: no network, no files but an empty folder, little else.

On Linux the process gets a user, mount, network and process namespace of its own (`unshare`), and a root of its own in
which there is nothing but the system's libraries and the interpreter, both read-only, and an empty scratch folder in
memory: what cannot be named cannot be read or deleted. Where the system allows no namespaces, nothing is run, and the
category is left out. Limits: seconds of the processor and of the clock, memory, open files, size and number of files,
processes.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 5  # of the processor; twice that of the clock
MEMORY = 512 * 2**20
_FILES, _FILE_BYTES, _PROCESSES = 32, 2**20, 8
_NOBODY = "65534"
_LIMITS = f"""
import resource
for name, most in (("CPU", {SECONDS}), ("AS", {MEMORY}), ("NOFILE", {_FILES}), ("FSIZE", {_FILE_BYTES}),
                   ("NPROC", {_PROCESSES}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
"""
# $1: an empty folder that becomes the root, $2: where Python is installed, then the command.
_ENTER = """
set -e
root=$1; prefix=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o size=4m,nr_inodes=256,mode=755 tmpfs "$root"
cd "$root"
mkdir usr python scratch proc old
for place in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$place" ]; then cp -P "/$place" .
    elif [ -d "/$place" ]; then mkdir "$place"; mount --bind "/$place" "$place"; mount -o remount,bind,ro "$place"; fi
done
mount --bind /usr usr; mount -o remount,bind,ro usr
mount --bind "$prefix" python; mount -o remount,bind,ro python
mount -t tmpfs -o size=2m,nr_inodes=64,mode=777 tmpfs scratch
mount -t proc -o ro,nosuid,nodev,noexec proc proc
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,ro /
cd /scratch
exec "$@"
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
    """The last line of the output is a word that a program does not know and that is written at its end: `exit(0)` half
    way is no success. Output goes into a file, which is held to the limit on files."""
    done = secrets.token_hex(16)
    script = _LIMITS + f"exec(compile({source!r}, 'reply', 'exec'), {{'__name__': '__main__'}})\nprint({done!r})\n"
    prefix = os.path.realpath(sys.base_prefix)
    interpreter = Path("/python") / Path(os.path.realpath(sys.executable)).relative_to(prefix)
    apart = ["unshare", "--net", "--ipc", "--pid", "--fork", "--mount", "--kill-child"]
    python = [str(interpreter), "-I", "-S", "-c", script]
    if os.geteuid() == 0:  # becomes nobody instead of being root in a world of its own
        python = [
            "setpriv",
            "--reuid",
            _NOBODY,
            "--regid",
            _NOBODY,
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
            *python,
        ]
    else:
        apart += ["--user", "--map-root-user"]
    with tempfile.TemporaryDirectory(prefix="sandbox-") as root, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*apart, "sh", "-c", _ENTER, "sh", root, prefix, *python],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/scratch", "LANG": "C.UTF-8"},
        )  # fmt: skip
        try:
            code = process.wait(timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        output.seek(0)
        return code == 0 and output.read().rstrip().endswith(done.encode())
