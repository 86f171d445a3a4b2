"""Ctrl-C ends a command wherever it is, unless somebody answers it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from shoestring.core import interrupt

# Each begins in `with listening()`, PATIENCE being 0.2 s; press() is Ctrl-C.
MOMENTS = {
    "swallowed in an import": """
        raises = "signal.raise_signal(signal.SIGINT)"
        (folder / "module.py").write_text(f"import signal\\ntry: {raises}\\nexcept BaseException: pass")
        import module
        """,
    "swallowed in a callback": """
        class Thing: pass
        thing = Thing()
        reference = weakref.ref(thing, lambda _: press())
        del thing
        time.sleep(5)
        """,
    "inside a long call of a library": """
        threading.Timer(0.1, press).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 50_000_000)
        """,
    "again while the first is being answered": """
        try:
            press()
        except KeyboardInterrupt:
            press()
        """,
}  # fmt: skip
PROGRAM = """
import hashlib, pathlib, signal, sys, textwrap, threading, time, weakref
from shoestring.core import interrupt
interrupt.PATIENCE = 0.2
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))

def press():
    signal.raise_signal(signal.SIGINT)

with interrupt.listening():
    exec(textwrap.dedent(sys.argv[2]))
    print("went on")
"""


def run(moment: str, folder) -> tuple[int, str, str, float]:
    command, started = [sys.executable, "-c", PROGRAM, str(folder), moment], time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr, time.monotonic() - started


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_the_process(moment, tmp_path):
    code, said, told, seconds = run(MOMENTS[moment], tmp_path)
    assert (code, said) == (130, ""), told
    assert told.endswith("interrupted\n") and seconds < 4


def test_who_answers_goes_on(tmp_path):
    answers = """
        for _ in range(2):
            try:
                press()
            except KeyboardInterrupt:
                interrupt.answered()
        time.sleep(0.4)
        """
    assert run(answers, tmp_path)[:3] == (0, "went on\n", "")


def test_whoever_takes_the_signal_over_is_left_alone(tmp_path):
    saves = """
        signal.signal(signal.SIGINT, lambda *_: None)
        press()
        time.sleep(0.4)
        """
    assert run(saves, tmp_path)[:3] == (0, "went on\n", "")


def test_outside_the_handler_is_the_one_of_before():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.listening():
        assert signal.getsignal(signal.SIGINT) is not before
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    interrupt.answered()


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.listening():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.parametrize("seconds", [number / 10 for number in range(1, 41, 3)])
def test_every_moment_of_a_verb(seconds, tmp_path):
    """From the interpreter's start on; a verb that imports all there is, loads a model and waits."""
    from tests.finetuning import tiny

    tiny.chat_model(tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "chat", str(tmp_path / "model")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    told = process.stderr.read().decode()
    process.wait(interrupt.PATIENCE + 10)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in told
