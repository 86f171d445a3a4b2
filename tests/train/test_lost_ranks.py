"""A rank hangs or dies: the others name it and end, the checkpoint stays, and the run goes on from there."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from shoestring.train.checkpoint import checkpoints
from shoestring.train.report.events import described, session_rows
from shoestring.train.report.read import read_run
from tests.train import tiny
from tests.train.ranks import ended, start, torchrun

SCRIPT = "tests.train.lost_rank"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    text = tiny.recipe_text(tiny.corpus(folder / "text"), steps=9)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def command(how: str, recipe: Path, out: Path, timeout: str = "4s") -> list[object]:
    more = ["--resume", "auto", "--parallel.exchange_timeout", timeout]
    return [how, "pretrain", recipe, "--out", out, *more]


def weights(out: Path) -> bytes:
    return (out / "latest" / "model.safetensors").read_bytes()


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def told(out: Path) -> list[tuple[str, str]]:
    """What the report says of ranks."""
    return [(step, words) for step, words in described(read_run(out).events) if "rank" in words]


@pytest.mark.long
def test_ranks_that_hang_and_die_under_torchrun_cost_nothing_behind_the_last_checkpoint(recipe, tmp_path):
    """Rank 1 hangs in step 5; started again, it is killed in step 8; started again, the run ends."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how = f"hang@5,kill@8,none+{whole}"
    done = torchrun(SCRIPT, command(how, recipe, cut), "--max-restarts=2")
    assert done.returncode == 0, done.stderr
    assert weights(cut) == weights(whole) and losses(cut) == losses(whole), "every step once, and the same"
    assert [step for step, _ in losses(cut)] == list(range(1, 10))
    hung, died = told(cut)
    assert hung[0] == "4" and "rank 1 hangs: it has been silent for 0:0" in hung[1]
    assert "in step 5 (passes forward and backward)" in hung[1]
    assert died[0] == "7" and "rank 1 has died in step 8" in died[1]
    sentence = f"error: {cut}: rank 1 hangs"
    assert done.stderr.count(sentence) == 1 and f"the last checkpoint is {cut}/step-000003" in done.stderr
    rows = session_rows(read_run(cut).sessions)
    assert [row[3].split(" in ")[0].split(":")[0] for row in rows] == ["rank 1 hangs", "rank 1 has died", "finished"]
    assert [("restart" in row[0], row[1]) for row in rows] == [(False, "0"), (True, "3"), (True, "6")]
    assert not told(whole)


FAILED = "rank 1 cannot go on in step 5 (reading its batch): text.jsonl:418: not a JSON object"


@pytest.mark.parametrize(
    ("how", "said", "event"),
    [
        ("hang@5", "rank 1 hangs: it has been silent for 0:0", "hung_rank"),
        pytest.param("hang0@5", "rank 0 hangs: it has been silent for 0:0", "hung_rank", marks=pytest.mark.long),
        pytest.param("kill@5", "rank 1 has died in step 5", "lost_rank", marks=pytest.mark.long),
        pytest.param("kill0@5", "rank 0 ", "lost_rank", marks=pytest.mark.long),
        pytest.param("fail@5", FAILED, "lost_rank", marks=pytest.mark.long),
    ],
)
def test_whoever_is_lost_the_others_end_with_one_sentence(recipe, tmp_path, how, said, event):
    """Started by hand: nobody else ends them."""
    out = tmp_path / "run"
    started = time.monotonic()
    results = ended(start(SCRIPT, command(how, recipe, out)))
    assert time.monotonic() - started < 60
    assert all(code for code, _, _ in results)
    others = [err for rank, (_, _, err) in enumerate(results) if f"rank {rank}" not in said]
    assert len(others) == 1 and said in others[0] and others[0].count("error: ") == 1, others
    assert "Traceback" not in others[0]
    assert f"continue with: shoestring pretrain --resume {out}" in others[0]
    assert [folder.name for folder in checkpoints(out)] == ["step-000003"]
    (line,) = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines() if "event" in text]
    assert line["event"] == event and said in line["reason"] and line["rank"] in (0, 1)
    assert said in session_rows(read_run(out).sessions)[-1][3]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped by a signal, and known by /proc")
def test_a_frozen_rank_is_named_and_the_run_goes_on_elsewhere(recipe, tmp_path):
    out = tmp_path / "run"
    processes = start(SCRIPT, command("freeze@5", recipe, out, "15s"))
    out_0 = processes[0].communicate(timeout=120)
    assert processes[0].returncode == 2 and "rank 1 gives no sign of life: it has been silent for 0:1" in out_0[1]
    processes[1].kill()
    processes[1].communicate()
    again = ended(start(SCRIPT, command("none", recipe, out)))
    assert [code for code, _, _ in again] == [0, 0], again
    assert [step for step, _ in losses(out)] == list(range(1, 10)) and len(told(out)) == 1


@pytest.mark.long
def test_who_does_not_come_is_named(recipe, tmp_path, monkeypatch):
    """Two of three are started."""
    code = "import datetime, sys, runpy\nfrom shoestring.train import watchdog\n"
    code += "watchdog._ARRIVAL = datetime.timedelta(seconds=5)\nfrom shoestring.cli.main import main\n"
    code += "sys.exit(main(sys.argv[1:]))\n"
    (tmp_path / "impatient.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = os.environ.get("PYTHONPATH", "")
    arguments = ["pretrain", recipe, "--out", tmp_path / "run"]
    processes = start("impatient", arguments, world=2, WORLD_SIZE="3", PYTHONPATH=f"{tmp_path}{os.pathsep}{before}")
    results = ended(processes)
    assert [code for code, _, _ in results] == [2, 2]
    assert all("error: " in err and "rank 2 of 3 has not come within 0:05" in err for _, _, err in results), results


@pytest.mark.long
def test_sigterm_to_one_rank_saves_all(recipe, tmp_path):
    """As a cluster does before it takes a node away."""
    out = tmp_path / "run"
    longer = ["--train.steps", "1200", "--train.checkpoint_every", "1000"]
    processes = start(SCRIPT, [*command("none", recipe, out), *longer])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    time.sleep(1)
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [code for code, _, _ in results] == [130, 130]
    (folder,) = checkpoints(out)
    assert folder.name == f"step-{losses(out)[-1][0]:06d}"
