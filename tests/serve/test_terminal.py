import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from shoestring.core.errors import TokenizerError
from shoestring.generate.config import SamplingConfig
from shoestring.serve.terminal.chat import TerminalChat
from tests.generate.tiny import Script, tiny_model

ROOT = Path(__file__).parents[2]
GREEDY = SamplingConfig(max_tokens=40, temperature=0)


def chat(model, text, sampling=GREEDY, interactive=False, **options):
    """-> (the chat, what it wrote, what it noted) after reading `text` to its end."""
    output, notes = io.StringIO(), io.StringIO()
    session = TerminalChat(
        model, sampling, source=io.StringIO(text), output=output,
        notes=Console(file=notes, width=200, no_color=True), interactive=interactive, **options,
    )  # fmt: skip
    session.run()
    return session, output.getvalue(), notes.getvalue()


def contents(session):
    return [(message["role"], message["content"]) for message in session.conversation.messages]


def test_each_line_of_a_pipe_is_a_turn_and_only_replies_are_printed():
    model = tiny_model(context=400)
    Script(model, b"first", b"second")
    session, output, notes = chat(model, "one\n\ntwo")
    assert output == "first\nsecond\n" and notes == ""
    assert contents(session) == [
        ("user", "one"),
        ("assistant", "first"),
        ("user", "two"),
        ("assistant", "second"),
    ]


def test_a_turn_reads_only_its_new_tokens():
    model = tiny_model(context=400)
    Script(model, b"first", b"second")
    widths = []
    model.decoder.register_forward_pre_hook(lambda module, arguments: widths.append(arguments[0].shape[1]))
    chat(model, "one\ntwo\n")
    added = model.tokenizer.encode("<|end|><|bos|>user:two<|end|><|bos|>assistant:", specials=True)
    assert [width for width in widths if width > 1][1:] == [len(added)]


def test_replies_with_the_kept_cache_equal_replies_computed_anew():
    sampling = GREEDY.model_copy(update={"max_tokens": 10})
    session, output, _ = chat(tiny_model(context=400), "one\ntwo\nthree\n", sampling)
    said = contents(session)
    fresh = tiny_model(context=400)
    for turn in range(3):
        messages = [{"role": role, "content": content} for role, content in said[: 2 * turn + 1]]
        assert fresh.chat(messages, temperature=0, max_tokens=10) == said[2 * turn + 1][1]
    assert output == "".join(reply + "\n" for role, reply in said if role == "assistant")


def test_reset_keeps_the_system_message_and_system_sets_it():
    model = tiny_model(context=400)
    Script(model, b"A", b"B")
    session, _, _ = chat(model, "one\n/reset\n", system="S")
    assert contents(session) == [("system", "S")]
    session, _, notes = chat(model, "one\n/system be brief\n")
    assert contents(session) == [("system", "be brief")] and "system message" in notes
    session.handle("/system")
    assert contents(session) == []


def test_save_writes_the_conversation_as_a_line_of_jsonl(tmp_path):
    model = tiny_model(context=400)
    Script(model, "né".encode())
    file = tmp_path / "talk.jsonl"
    chat(model, f"one\n/save {file}\n")
    assert json.loads(file.read_text("utf-8")) == {
        "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "né"}]
    }


def test_exit_leaves_and_help_and_unknown_commands_are_answered():
    session, output, notes = chat(tiny_model(), "/help\n/dance\n/save\n/exit\nnever read\n")
    assert "/reset" in notes and "unknown command /dance" in notes and "/save needs a file name" in notes
    assert output == "" and session.source.readline() == "never read\n"


def test_when_the_context_is_full_the_oldest_turns_go_and_it_is_said():
    model = tiny_model(context=160)
    Script(model, *[b"reply %d" % i for i in range(6)])
    session, output, notes = chat(model, "".join(f"question {i}\n" for i in range(6)), system="S")
    assert output == "".join(f"reply {i}\n" for i in range(6))
    said = contents(session)
    assert said[0] == ("system", "S") and said[1] != ("user", "question 0")
    assert said[-2:] == [("user", "question 5"), ("assistant", "reply 5")]
    assert "the oldest turn was forgotten" in notes


def test_a_question_longer_than_the_context_is_refused_and_changes_nothing():
    model = tiny_model(context=100)
    Script(model, b"A", b"B")
    session, output, notes = chat(model, "one\n" + "x" * 200 + "\ntwo\n")
    assert output == "A\nB\n" and "error: the message is too long" in notes
    assert [content for _, content in contents(session)] == ["one", "A", "two", "B"]


def test_a_model_without_a_chat_template_is_refused_before_anything_is_read():
    with pytest.raises(TokenizerError, match="shoestring generate"):
        chat(tiny_model(chat_template=None), "one\n")


def test_a_reply_that_was_cut_says_why():
    model = tiny_model(context=400)
    Script(model, b"a long reply")
    _, output, notes = chat(model, "one\n", GREEDY.model_copy(update={"max_tokens": 6}))
    assert output == "a long\n" and "cut after 6 tokens" in notes


def test_a_message_of_several_lines_stands_between_quotes_and_may_look_like_a_command():
    model = tiny_model(context=400)
    Script(model, b"A", b"B", b"C")
    session, output, _ = chat(model, '"""one\n  two\n\n/reset"""\n"""\nthree\n"""\n"""four"""\n"""\n"""\n')
    asked = [content for role, content in contents(session) if role == "user"]
    assert asked == ["one\n  two\n\n/reset", "three", "four"]
    assert output == "A\nB\nC\n"


def test_again_answers_the_latest_question_anew_with_other_random_numbers():
    model = tiny_model(context=400)
    Script(model, b"A", b"B", b"C")
    session, output, notes = chat(model, "/again\none\ntwo\n/again\n")
    assert contents(session) == [("user", "one"), ("assistant", "A"), ("user", "two"), ("assistant", "C")]
    assert output == "A\nB\nC\n" and "nothing has been asked yet" in notes
    warm = GREEDY.model_copy(update={"temperature": 1.0, "max_tokens": 12})
    session, output, _ = chat(tiny_model(context=400), "one\n/again\n/again\n", warm)
    assert len(set(output.splitlines())) > 1 and len(contents(session)) == 2


def test_set_shows_and_changes_how_replies_are_made():
    model = tiny_model(context=400)
    Script(model, b"a long reply", b"a long reply")
    lines = "/set\n/set max-tokens 6\none\n/set top_p 0\n/set temprature 1\n/set seed\n/set temperature=0.5\n"
    session, output, notes = chat(model, lines)
    assert output == "a long\n" and "max_tokens 40 · temperature 0.0 · top_k 0 · top_p 0.95" in notes
    assert "error: top_p 0 cannot be used" in notes and "did you mean temperature?" in notes
    assert "error: /set seed needs a value" in notes
    assert session.sampling == GREEDY.model_copy(update={"max_tokens": 6, "temperature": 0.5})


def test_a_person_is_told_which_model_speaks():
    _, _, notes = chat(tiny_model(context=400), "", interactive=True, name="runs/mine")
    assert notes.splitlines()[0].startswith("runs/mine: ") and "400 tokens of context" in notes.splitlines()[0]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_ends_the_reply_keeps_what_was_said_and_leaves_the_cache_sound(moment):
    model = tiny_model(context=400)
    sampling = GREEDY.model_copy(update={"max_tokens": 12})
    passes = []

    def interrupt(*arguments):
        passes.append(1)
        if len(passes) == 6:
            raise KeyboardInterrupt

    register = model.decoder.blocks[1].register_forward_pre_hook if moment == "before" else None
    handle = (register or model.decoder.register_forward_hook)(interrupt)
    notes = io.StringIO()
    session = TerminalChat(
        model, sampling, source=io.StringIO(""), output=io.StringIO(),
        notes=Console(file=notes, width=200), interactive=True,
    )  # fmt: skip
    assert session.handle("one")
    handle.remove()
    said = contents(session)
    whole = tiny_model(context=400).chat("one", temperature=0, max_tokens=12)
    assert said[1][0] == "assistant" and 0 < len(said[1][1]) < len(whole) and whole.startswith(said[1][1])
    assert "(stopped)" in notes.getvalue()
    session.handle("two")
    messages = [{"role": role, "content": content} for role, content in contents(session)[:3]]
    fresh = tiny_model(context=400).chat(messages, temperature=0, max_tokens=12)
    assert contents(session)[3] == ("assistant", fresh)


PROGRAM = """
import time
from shoestring.generate.config import SamplingConfig
from shoestring.serve.terminal.chat import TerminalChat
from tests.generate.tiny import Script, tiny_model

model = tiny_model(context=900)
Script(model, b"endless " * 60)
model.decoder.register_forward_hook(lambda *arguments: time.sleep(0.02))
TerminalChat(model, SamplingConfig(max_tokens=400, temperature=0)).run()
print("left")
"""


def test_at_a_terminal_lines_break_between_words_typing_waits_ctrl_c_stops_the_reply_and_ctrl_d_leaves():
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, **options)
    os.close(theirs)
    try:
        wait_for(ours, b"/help lists the commands")
        wait_for(ours, b"> ")
        os.write(ours, b"hello\n")
        seen = wait_for(ours, b"endless endless")
        os.write(ours, b"meanwhile\n")
        seen += wait_for(ours, b"\r\nendless endless")
        process.send_signal(signal.SIGINT)
        seen += wait_for(ours, b"(stopped)")
        shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen.decode()).replace("(stopped)", "")
        assert set(shown.split()) == {"hello", "endless"}
        seen += wait_for(ours, b"> ")
        assert b"tokens/s" in seen and seen.count(b"endless") < 50
        wait_for(ours, b"meanwhile")  # offered to be edited, not sent
        os.write(ours, b"\x15\x04")
        wait_for(ours, b"left")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_for(terminal, text, seconds=60):
    """What the terminal shows up to and with `text`."""
    seen, end = b"", time.monotonic() + seconds
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"no {text!r} in {seconds} s, but {seen!r}"
        seen += os.read(terminal, 1)
    return seen


def test_set_takes_constraints_and_off_ends_them_and_beams_are_refused():
    lines = "/set regex [ab]{3}\none\n/set num_beams 3\n/set regex (\n/set regex off\n/set logit_bias {64: -5}\ntwo\n"
    session, output, said = chat(tiny_model(context=400), lines)
    assert re.fullmatch("[ab]{3}\n.*\n", output, re.DOTALL)
    assert "beam search cannot be combined with a conversation" in said
    assert "regular expression cannot be used" in said
    assert "regex [ab]{3}" in said and "logit_bias {64: -5.0}" in said
    assert session.sampling.regex is None and session.sampling.num_beams == 1
