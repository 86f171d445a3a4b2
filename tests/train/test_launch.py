"""One command starts several ranks, passes signals on, keeps their exit code, and starts them again when one dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.train.checkpoint import checkpoints, read_state
from shoestring.train.metrics import read_metrics
from tests.train import tiny
from tests.train.test_resume import ENVIRONMENT, assert_same_run, losses


@pytest.fixture
def recipe(tmp_path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    return file


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "shoestring", "pretrain", *map(str, words)]


def started(*words: str | Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(*words), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpus", "4"], "4 ranks take 4 GPUs, and this machine has no GPU that torch sees\n  --ranks 4 --device cpu"),
        (["--gpus", "1"], "1 ranks take 1 GPUs"),
        (["--gpus", "2", "--device", "cpu"], "--gpus takes GPUs, and device is cpu"),
        (["--ranks", "2", "--gpus", "2"], "--ranks and --gpus are one number"),
        (["--ranks", "0"], "--ranks: expected 1 or more, found 0"),
        (["--restarts", "2"], "--restarts is for several ranks"),
        (["--ranks", "2", "--restarts", "2"], "--restarts needs --out"),
    ],
)
def test_what_cannot_be_started_is_one_sentence(recipe, capsys, monkeypatch, words, sentence):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["pretrain", str(recipe), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_torchrun_and_the_command_do_not_both_start_ranks(recipe, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["pretrain", str(recipe), "--ranks", "2"]) == 2
    assert "torchrun has started this process already" in capsys.readouterr().err


def test_a_mistake_inside_the_ranks_is_one_sentence_and_its_exit_code(recipe, tmp_path):
    """Three rows are no halves. Nothing is left behind."""
    words = [recipe, "--ranks", "2", "--train.batch_tokens", "96", "--train.microbatch", "1", "--out", tmp_path / "run"]
    done = subprocess.run(command(*words), env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if "error" in line]
    assert told == ["error: the 3 rows of a batch cannot be shared by 2 processes"] and not done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_to_the_command_has_all_ranks_save(recipe, tmp_path, number):
    out = tmp_path / "run"
    long = ["--train.steps", "4000", "--train.evaluate_every", "9000", "--train.most_epochs", "100"]
    run = started(recipe, "--ranks", "2", "--out", out, *long)
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(number)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 130, told
    assert told.count(f"shoestring pretrain --resume {out}") == 1 and "Traceback" not in told
    newest = checkpoints(out)[-1]
    assert read_metrics(metrics)[-1]["step"] == read_state(newest).step


def ranks_of(launcher: int) -> list[int]:
    """Its children, as the system has them."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("seed", [0])
def test_two_ranks_killed_at_ten_instants_end_with_the_bits_of_a_run_that_was_not(tmp_path, seed):
    """Either of them, by SIGKILL; the command starts both again, and they go on from the newest checkpoint."""
    recipe, instants = tmp_path / "recipe.yaml", random.Random(seed)
    text = tiny.recipe_text(tiny.corpus(tmp_path / "text"), steps=120)
    recipe.write_text(text.replace("checkpoint_every: 3", "checkpoint_every: 2"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert subprocess.run(command(recipe, "--ranks", "2", "--out", whole), env=ENVIRONMENT).returncode == 0
    run = started(recipe, "--ranks", "2", "--restarts", "20", "--out", cut)
    metrics, kills, deadline = cut / "metrics.jsonl", 0, time.monotonic() + 400

    def lines() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    try:
        while kills < 10 and run.poll() is None:
            seen, wanted = lines(), instants.randint(1, 9)
            while lines() - seen < wanted and run.poll() is None and time.monotonic() < deadline:
                seen = min(seen, lines())  # a resume cuts lines off first
                time.sleep(0.002)
            time.sleep(instants.uniform(0, 0.1))
            pids = ranks_of(run.pid)
            if len(pids) == 2:
                os.kill(instants.choice(pids), signal.SIGKILL)
                kills += 1
                gone = time.monotonic() + 60
                while set(pids) & set(ranks_of(run.pid)) and time.monotonic() < gone:
                    time.sleep(0.02)
        told = run.communicate(timeout=400)[1]
    finally:
        run.kill()
    assert run.returncode == 0, told
    assert kills == 10
    assert_same_run(whole, cut)
    events = [line["event"] for line in read_metrics(metrics) if "event" in line]
    assert events == ["lost_rank"] * 10, "each death is told"
    steps = [line for line in losses(cut) if line[1:] != (None, None)]
    assert losses(whole) == steps, "every step stands in metrics.jsonl once"


@pytest.mark.long
def test_ranks_save_themselves_when_their_command_is_killed(recipe, tmp_path):
    out = tmp_path / "run"
    run = started(recipe, "--ranks", "2", "--out", out, "--train.steps", "4000", "--train.most_epochs", "100")
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and run.poll() is None:
        time.sleep(0.02)
    ranks = ranks_of(run.pid)
    run.kill()
    run.communicate(timeout=120)  # which ends when the first rank has let go of its output
    deadline = time.monotonic() + 60
    while any(map(runs, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ranks) == 2 and not any(map(runs, ranks))
    assert read_metrics(metrics)[-1]["step"] == read_state(checkpoints(out)[-1]).step < 4000


@pytest.mark.long
def test_without_restarts_a_killed_rank_ends_the_command_and_the_run_can_go_on(recipe, tmp_path):
    out = tmp_path / "run"
    run = started(recipe, "--ranks", "2", "--out", out, "--train.steps", "300")
    while len(checkpoints(out)) < 1 and run.poll() is None:
        time.sleep(0.02)
    os.kill(ranks_of(run.pid)[1], signal.SIGKILL)
    told = run.communicate(timeout=120)[1]
    assert run.returncode != 0 and "Traceback" not in told
    again = subprocess.run(
        command("--resume", out, "--ranks", "2", "--json"), env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["steps"] == 300
