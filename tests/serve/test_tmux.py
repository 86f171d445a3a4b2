"""The verb `chat` as a person has it: in a terminal emulator, tmux, whose screen is read and whose keys are pressed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest

from tests.serve.test_terminal import ROOT

pytestmark = pytest.mark.long  # and tmux must be there

# The whole verb with a scripted model: replies say what was asked, "long" is answered at length, and "evil" by what
# would steer a terminal.
PROGRAM = """
import json, sys, time
import shoestring.offload.load
from shoestring.cli.main import main
from tests.generate.tiny import Script, tiny_model

model = tiny_model(context=4000)
script = Script(model)
encode = model.encode_chat

def encode_chat(messages):
    asked = messages[-1]["content"]
    if messages[-1]["role"] == "user" and asked:
        reply = b"got " + json.dumps(asked).encode() + b" end"
        if "long" in asked:
            reply = " ".join(f"word{n}" for n in range(300)).encode()
        if "evil" in asked:
            reply = b"\\x1b]0;evil\\x07\\x1b[2J\\x1b[1;1H\\x9b2J harmless end"
        script.skip()
        script.replies = [[*reply, 257]]
    return encode(messages)

model.encode_chat = encode_chat
model.decoder.register_forward_hook(lambda *arguments: time.sleep(0.003))
shoestring.offload.load.load = lambda *arguments, **options: model
sys.exit(main(["chat", "scripted", "--temperature", "0", "--max-tokens", "2500"]))
"""


class Screen:
    """A tmux server of our own with one window that runs the chat."""

    def __init__(self, folder, columns=70, rows=40):
        self._folder, self._columns, self._rows = folder, columns, rows
        self._socket = folder / f"socket{len([*folder.glob('socket*')])}"  # a server that ends may keep its own a while

    def __enter__(self):
        program = self._folder / "program.py"
        program.write_text(PROGRAM)
        # The shell says how it ended, and not tmux: after many commands that may not notice (3.3a leaves a zombie).
        run = shlex.join([sys.executable, str(program)])
        command = f"trap : INT; {run}; echo it ended with $?; exec cat"
        size = ["-x", f"{self._columns}", "-y", f"{self._rows}"]
        self.tmux("new-session", "-d", *size, "-c", str(ROOT), "sh", "-c", command)
        self.wait_for("Ctrl-D leaves")
        self.idle()
        return self

    def __exit__(self, *exception):
        self.tmux("kill-server", check=False)

    def tmux(self, *arguments, check=True):
        path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
        environment = {**os.environ, "SHOESTRING_CACHE": str(self._folder / "cache"), "PYTHONPATH": path}
        for name in ("TMUX", "COLUMNS", "LINES"):  # readline leaves the latter in what starts the tests
            environment.pop(name, None)
        (self._folder / "cache").mkdir(exist_ok=True)
        command = ["tmux", "-u", "-S", str(self._socket), "-f", os.devnull, *arguments]
        return subprocess.run(command, env=environment, check=check, capture_output=True, text=True).stdout

    def shown(self):
        """The screen's lines, without the empty ones behind the last."""
        return self.tmux("capture-pane", "-p").rstrip().split("\n")

    def words(self):
        """What is shown, wherever its lines are broken."""
        return " ".join(" ".join(self.shown()).split())

    def wait(self, holds, seconds=30):
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, "\n".join(self.shown())
            time.sleep(0.02)
        return found

    def wait_for(self, text):
        self.wait(lambda: text in self.words())

    def idle(self, prompt=">"):
        """Until the chat waits for a message, or for more of one."""
        self.wait(lambda: self.shown()[-1].rstrip() == prompt)

    def press(self, *keys):
        self.tmux("send-keys", *keys)

    def type(self, text):
        self.tmux("send-keys", "-l", "--", text)

    def clear(self):
        """An empty screen, so that what is found on it is new. Ctrl-L is readline's."""
        self.press("C-l")
        self.wait(lambda: self.shown() == [">"])

    def ask(self, text):
        """-> all that is shown when the reply is there."""
        self.clear()
        self.type(text)
        self.press("Enter")
        self.wait(lambda: len(self.shown()) > 1 and self.shown()[-1].rstrip() == ">")
        return self.words()


def numbers(lines):
    """Of the words in an answer that is streamed; a word that is broken is none."""
    return [int(number) for line in lines for number in re.findall(r"(?<!\S)word(\d+)(?!\S)", line)]


def test_an_answer_streams_is_rewrapped_after_a_resize_and_ends_at_ctrl_c(tmp_path):
    with Screen(tmp_path) as screen:
        screen.type("a long one")
        screen.press("Enter")
        first = screen.wait(lambda: numbers(screen.shown()[:-1]))
        later = screen.wait(lambda: [n for n in numbers(screen.shown()[:-1]) if n > first[-1] + 20])
        assert screen.shown()[-1].rstrip() != ">" and later[-1] < 280  # it is still being written
        for line in screen.shown()[3:-1]:
            assert re.fullmatch(r"(word\d+ ?)+", line.rstrip() + " ") and len(line) <= 70
        screen.tmux("resize-window", "-x", "30", "-y", "40")
        mark = max(numbers(screen.shown())) + 15
        newer = screen.wait(lambda: [n for n in numbers(screen.shown()[:-1]) if n > mark + 20])
        whole = [line for line in screen.shown()[:-1] if (found := numbers([line])) and min(found) > mark]
        assert len(whole) > 3 and all(len(line.rstrip()) <= 30 for line in whole)
        assert all(re.fullmatch(r"(word\d+ ?)+", line.rstrip() + " ") for line in whole)
        written = numbers(whole)
        assert written == list(range(written[0], written[0] + len(written))) and newer[-1] < 290
        screen.press("C-c")
        screen.wait_for("(stopped)")
        screen.idle()
        screen.tmux("resize-window", "-x", "70", "-y", "40")
        assert 'got "still there" end' in screen.ask("still there")
        screen.press("C-c")
        screen.wait_for("Ctrl-C again")
        screen.press("C-d")
        screen.wait_for("it ended with 0")


def test_what_is_pasted_is_one_message_that_can_be_edited_and_the_arrows_bring_back(tmp_path):
    with Screen(tmp_path) as screen:
        pasted = "def f(n):\n  return n\n\nf(1)"
        screen.clear()
        screen.tmux("set-buffer", "--", pasted)
        screen.tmux("paste-buffer", "-p")
        screen.wait_for("f(1)")
        time.sleep(0.3)
        assert "got" not in screen.words()  # it waits to be sent
        screen.type("  # pasted")
        screen.press("Enter")
        screen.wait_for('# pasted" end')
        assert " ".join(f"got {json.dumps(pasted + '  # pasted')} end".split()) in screen.words()
        screen.idle()
        assert 'got "second" end' in screen.ask("second")
        screen.press("Up", "Up")
        screen.wait_for("# pasted")
        screen.type("!")
        screen.press("Enter")
        screen.wait_for('# pasted!" end')
        screen.idle()
        screen.clear()
        screen.type("end")
        screen.press("Home")
        screen.type("from beginning to ")
        screen.press("Enter")
        screen.wait_for('got "from beginning to end" end')
        screen.idle()
        screen.clear()
        screen.type("first \\")
        screen.press("Enter")
        screen.idle(".")
        screen.type("last")
        screen.press("Enter")
        screen.wait_for('got "first \\nlast" end')
        screen.idle()
        screen.type('"""a')
        screen.press("Enter")
        screen.idle(".")
        screen.type('/help"""')
        screen.press("Enter")
        screen.wait_for('got "a\\n/help" end')
        screen.idle()
        screen.press("C-d")
        screen.wait_for("it ended with 0")
    with Screen(tmp_path) as screen:
        screen.press("Up", "Up")
        screen.wait_for("last")
        screen.press("Enter")
        screen.wait_for('got "first ')


def test_every_command_answers_and_nothing_that_is_said_steers_the_terminal(tmp_path):
    with Screen(tmp_path) as screen:
        help = screen.ask("/help")
        for name in ("/regenerate", "/undo", "/set", "/speed", "/clear", "/system", "/save", "/load", "/adapter"):
            assert name in help
        assert "/speculate" in help and "Ctrl-C" in help
        assert "nothing has been asked yet" in screen.ask("/regenerate")
        assert 'got "one" end' in screen.ask("one")
        assert "harmless end" in screen.ask("evil")
        assert screen.tmux("display-message", "-p", "#{pane_title}").strip() != "evil"
        assert "evil" in screen.shown()[0]  # the question is where it was
        assert "forgotten: evil" in screen.ask("/undo")
        assert 'got "one" end' in screen.ask("/regenerate")
        assert re.search("max_tokens 2,500 . temperature 0.5", screen.ask("/set temperature 0.5"))
        assert "error: beam search cannot be combined" in screen.ask("/set num_beams 2")
        assert "tokens/s" in screen.ask("/speed")
        file = tmp_path / "talk.jsonl"
        assert "saved" in screen.ask(f"/save {file}") and len(json.loads(file.read_text())["messages"]) == 2
        assert "a new conversation" in screen.ask("/clear")
        assert "1 question" in screen.ask(f"/load {file}")
        assert "with this system message" in screen.ask("/system Be brief.")
        assert "guesses ahead" in screen.ask("/speculate lookup")
        assert "no adapter" in screen.ask("/adapter")
        assert "did you mean /save" in screen.ask("/sav")
        assert "error: " in screen.ask("/adapter nowhere")
        screen.type("/exit")
        screen.press("Enter")
        screen.wait_for("it ended with 0")
