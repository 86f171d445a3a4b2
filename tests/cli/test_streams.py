"""Standard streams that are closed, full or broken: results are told as lost, and a run outlives its terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.cli import main as cli
from shoestring.cli.main import main
from tests.train import tiny


def in_shell(command):
    command = f'"{sys.executable}" -m shoestring {command}'
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)


def closed_pipe():
    """A stream whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_the_null_device(streams):
    run = in_shell(f"recipe list {streams}")
    assert (run.returncode, run.stderr) == (0, "")
    assert ("quickstart" in run.stdout) == (">&-" not in streams.replace("2>&-", ""))


def test_a_full_output_is_one_sentence(capsys):
    if not Path("/dev/full").exists():
        return  # Linux only
    run = in_shell("recipe show quickstart > /dev/full")
    assert run.returncode == 2
    assert run.stderr == "error: (standard output): the output cannot be written: No space left on device\n"


def test_an_error_is_told_although_nobody_reads_the_output():
    run = in_shell("recipe show no-such 2>&1 >&- | cat")
    assert "there is no recipe" in run.stdout


def test_chat_without_an_input_ends_at_once(base, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(base)]) == 0
    assert capsys.readouterr().out == ""


def test_a_run_ends_whole_although_nobody_reads_its_progress(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text"), steps=3))
    monkeypatch.setattr(sys, "stderr", closed_pipe())
    assert main(["pretrain", str(recipe), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert (tmp_path / "run" / "step-000003" / "trainer" / "state.json").is_file()
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert main(["pretrain", str(recipe), "--out", str(tmp_path / "other")]) == cli.BROKEN_PIPE
    assert (tmp_path / "other" / "step-000003" / "trainer" / "state.json").is_file()


@pytest.mark.parametrize(("verb", "outlives"), [("pretrain", True), ("finetune", True), ("chat", False)])
def test_what_takes_long_goes_on_when_the_terminal_hangs_up(monkeypatch, verb, outlives):
    seen = []
    monkeypatch.setattr(cli, "_answer", lambda tokens: seen.append(signal.getsignal(signal.SIGHUP)) or 0)
    before = signal.getsignal(signal.SIGHUP)
    assert main([verb]) == 0
    assert seen == [signal.SIG_IGN if outlives else before] and signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(36, "File name too long", "n"), "error: n: File name too long"),
        (MemoryError(), "error: there is not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."),
            "error: there is not enough memory for 4.0 TB more",
        ),
        (RecursionError("maximum recursion depth exceeded"), "error: an input is nested too deeply"),
        (type("PanicException", (BaseException,), {})("index out of bounds"), "cannot be used: index out of bounds"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_machine_refuses_anywhere_is_a_sentence(monkeypatch, capsys, error, sentence):
    def fail(tokens):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["x"]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_a_bug_of_ours_is_still_a_traceback(monkeypatch):
    def fail(tokens):
        raise KeyError("x")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(KeyError):
        main(["x"])
