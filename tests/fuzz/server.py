"""`python -m tests.fuzz.server SEED FIRST COUNT`: so many cases from FIRST on, each in a fork with limits.

Everything is imported once, so a case costs what it does and some milliseconds. For each case that ends in other than
an answer or one sentence, one JSON line on stdout; at the end one with the counts. Needs fork: Linux and macOS.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "SHOESTRING_MATMUL": "mkl", "NO_COLOR": "1"}

SECONDS, MEGABYTES = 2, 500  # of the processor, and of memory beyond what the imports take
PATIENCE = 60.0  # by the clock, on a machine that does other things


def main(seed: int, first: int, count: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="shoestring-fuzz-"))
    os.environ["SHOESTRING_CACHE"] = str(root / "cache")
    try:
        from tests.fuzz.kinds import make_kinds

        kinds = make_kinds(root / "sound")
        for kind in kinds:  # the sound files are read, and what is imported at first use is imported once
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                (root / "warm").mkdir()
                os.chdir(root / "warm")
                code = kind.answer(root / "warm", None)
                os.chdir(root)
                shutil.rmtree(root / "warm")
            assert code == 0 or kind.name == "value", f"{kind.name}: the sound files fail:\n{said.getvalue()}"
        least = run(kinds[0], None, root / "case", fork_only=True)[3]
        answered: dict[str, list[int]] = {kind.name: [0, 0] for kind in kinds}
        for case in range(first, first + count):
            kind = kinds[case % len(kinds)]
            code, said, seconds, memory = run(kind, random.Random(f"{seed} {case}"), root / f"case-{case}")
            memory -= least
            wrong = wrong_with(code, said, seconds, memory)
            if wrong is None:
                answered[kind.name][code == 2] += 1
            else:
                report = {
                    "case": case,
                    "kind": kind.name,
                    "wrong": wrong,
                    "seconds": round(seconds, 2),
                    "said": said[-1500:],
                }
                print(json.dumps({**report, "megabytes": memory >> 20}), flush=True)
        print(json.dumps({"answered_and_refused": answered}), flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def wrong_with(code: int, said: str, seconds: float, memory: int) -> str | None:
    """What is not an answer or one sentence within the limits."""
    if code not in (0, 2):
        return f"a signal {-code}" if code < 0 else f"exit {code}"
    if "Traceback" in said:
        return "a traceback"
    if code == 2 and said.count("error: ") < 1:
        return "no sentence"
    if seconds > SECONDS:
        return "too long"
    return "too much memory" if memory > MEGABYTES << 20 else None


def run(kind, rng: random.Random | None, folder: Path, fork_only: bool = False) -> tuple[int, str, float, int]:
    """Exit code (negative: the signal), what was said, seconds of the processor, largest resident set in bytes.

    rng: None leaves the files sound.
    """
    folder.mkdir()
    log = folder / "said.txt"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _limit()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", errors="replace"), open(2, "w", errors="replace")
            os.chdir(folder)
            code = 0 if fork_only else kind.answer(folder, rng)
        except BaseException:  # a panic of Rust is no Exception
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ended = time.monotonic() + PATIENCE
    while True:
        reaped, status, used = os.wait4(child, os.WNOHANG)
        if reaped:
            break
        if time.monotonic() > ended:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    said = log.read_text(errors="replace") if log.is_file() else ""
    shutil.rmtree(folder, ignore_errors=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), said, used.ru_utime + used.ru_stime, used.ru_maxrss * unit


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    if sys.platform == "linux":  # so that nothing harms the machine; the largest resident set is what is judged
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (3 << 30), now + (3 << 30)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
