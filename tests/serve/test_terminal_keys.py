"""The chat at a real terminal: what is pasted, typed again, interrupted and resized."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.serve.test_terminal import ROOT, wait_for

# The lines alone, without a model: each message is said again.
LINES = """
import json, sys
from shoestring.serve.terminal.keyboard import Keyboard
from shoestring.serve.terminal.lines import Lines

lines = Lines(sys.stdin, Keyboard(sys.stdin), True, lambda line: line.startswith("/"), print)
lines.begin()
while (message := lines.message()) is not None:
    print("got", json.dumps(message[0]), "end", flush=True)
print("left")
"""
# The whole chat. Replies say what was asked; a question with "long" is answered for a long time, and tries to steer.
CHAT = """
import json, time
from shoestring.core import interrupt
from shoestring.generate.config import SamplingConfig
from shoestring.serve.terminal.chat import TerminalChat
from tests.generate.tiny import Script, tiny_model

model = tiny_model(context=4000)
script = Script(model)
encode = model.encode_chat

def encode_chat(messages):
    asked = messages[-1]["content"]
    if messages[-1]["role"] == "user" and asked:
        endless = b"\\x1b]0;evil\\x07 endless " * 90
        script.skip()
        script.replies = [[*(endless if "long" in asked else b"got " + json.dumps(asked).encode() + b" end"), 257]]
    return encode(messages)

model.encode_chat = encode_chat
model.decoder.register_forward_hook(lambda *arguments: time.sleep(0.005))
with interrupt.listening():
    TerminalChat(model, SamplingConfig(max_tokens=1500, temperature=0)).run()
print("left")
"""


@contextlib.contextmanager
def talking(tmp_path, program, columns=300):
    ours, theirs = pty.openpty()
    resize(theirs, columns)
    fixed = ("COLUMNS", "LINES")  # readline sets them in a process that starts the tests; a terminal's size is its own
    environment = {name: value for name, value in os.environ.items() if name not in fixed}
    environment |= {"SHOESTRING_CACHE": str(tmp_path), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=_leads_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    try:
        wait_for(ours, b"> ")
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _leads_the_terminal():
    """So that the terminal's Ctrl-C and its resizing are signals to it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def resize(terminal, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def answered(terminal, keys):
    """What these keys asked."""
    os.write(terminal, keys)
    wait_for(terminal, b"got ")
    seen = wait_for(terminal, b" end").decode()
    wait_for(terminal, b"> ")
    return json.loads(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen).removesuffix(" end"))


@pytest.mark.parametrize("readline", [True, False])
def test_pasted_text_of_several_lines_is_one_message_and_so_are_opened_lines(readline, tmp_path):
    program = LINES if readline else "import sys\nsys.modules['readline'] = None\n" + LINES
    with talking(tmp_path, program) as (terminal, process):
        assert answered(terminal, b"one\ntwo\n\n  three\n") == "one\ntwo\n\n  three"
        if readline:  # as terminals send it that are asked to mark what is pasted
            assert answered(terminal, b"\x1b[200~def f():\r\treturn 1\r\x1b[201~# ok\n") == "def f():\n\treturn 1\n# ok"
        else:
            os.write(terminal, b"\xff\xfe is no UTF-8\n")
            wait_for(terminal, b" end")
            wait_for(terminal, b"> ")
        os.write(terminal, b"first\\\n")
        wait_for(terminal, b". ")
        assert answered(terminal, b"second\n") == "first\nsecond"
        os.write(terminal, b'"""a\n')
        wait_for(terminal, b". ")
        assert answered(terminal, b'/b"""\n') == "a\n/b"
        os.write(terminal, b"/first\nsecond\n")  # behind a command nothing is joined
        assert wait_for(terminal, b'"second" end').count(b'got "/first" end') == 1
        wait_for(terminal, b"> ")
        os.write(terminal, b"\x04")
        wait_for(terminal, b"left")
        assert process.wait(20) == 0


def test_what_was_typed_is_kept_for_the_arrow_keys_in_this_chat_and_the_next(tmp_path):
    with talking(tmp_path, LINES) as (terminal, _):
        assert answered(terminal, b"one\ntwo\n") == "one\ntwo"
        assert answered(terminal, b"three\n") == "three"
        assert answered(terminal, b"\x1b[A\x1b[A\n") == "one\ntwo"
    file = tmp_path / "chat-history.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["one\ntwo", "three", "one\ntwo"]
    assert file.stat().st_mode & 0o777 == 0o600
    with open(file, "a") as lines:
        lines.write('"half a li\n')
    with talking(tmp_path, LINES) as (terminal, _):
        assert answered(terminal, b"\x1b[A\x1b[A!\n") == "three!"


def test_ctrl_c_stops_the_answer_a_resize_rewraps_it_and_a_second_one_at_the_prompt_leaves(tmp_path):
    with talking(tmp_path, CHAT, 60) as (terminal, process):
        os.write(terminal, b"long\nindeed\n")
        wait_for(terminal, b"endless")
        resize(terminal, 20)
        wait_for(terminal, b"\r\n")
        seen = b"".join(wait_for(terminal, b"\r\n") for _ in range(3))
        assert b"\x1b" not in seen and b"\x07" not in seen  # nothing steers the terminal
        assert all(len(line) <= 20 for line in seen.split(b"\r\n"))
        os.write(terminal, b"\x03")
        wait_for(terminal, b"(stopped)")
        wait_for(terminal, b"> ")
        resize(terminal, 300)
        os.write(terminal, b"half a thought")
        wait_for(terminal, b"thought")
        os.write(terminal, b"\x03")
        wait_for(terminal, b"/exit leaves")
        wait_for(terminal, b"> ")
        assert answered(terminal, b"still\nthere\n") == "still\nthere"
        os.write(terminal, b"\x03")
        wait_for(terminal, b"/exit leaves")
        wait_for(terminal, b"> ")
        os.write(terminal, b"\x03")
        wait_for(terminal, b"left")
        assert process.wait(20) == 0


def test_a_history_grown_too_long_keeps_its_end(tmp_path):
    from shoestring.serve.terminal.history import MOST, History

    file = tmp_path / "history"
    file.write_text("".join(f"{json.dumps(f'{n}')}\n" for n in range(2 * MOST + 5)))
    assert History(file).read() == [str(n) for n in range(MOST + 5, 2 * MOST + 5)]
    assert len(file.read_text().splitlines()) == MOST and file.stat().st_mode & 0o777 == 0o600
