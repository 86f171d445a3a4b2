"""Fine-tuning by two gloo processes, started as torchrun starts them, is the run of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.cli.main import main
from shoestring.train.metrics import read_metrics
from tests.finetuning import tiny


def test_two_processes_learn_what_one_learns(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.chat_model(tmp_path / "model")
    tiny.sums(tmp_path / "sums.jsonl")
    words = ["finetune", "model", "--data", "sums.jsonl", *tiny.flags(tiny.SHORT), "--json"]
    assert main([*words, "--out", "one"]) == 0
    alone = json.loads(capsys.readouterr().out)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "shoestring", *words, "--out", "two"],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert said[1] == ""  # one of them answers questions and tells the result
    together = json.loads(said[0])

    assert together["steps"] == alone["steps"] and together["tokens"] == alone["tokens"]
    assert together["loss_before"] == pytest.approx(alone["loss_before"], rel=1e-5)
    assert together["loss_after"] == pytest.approx(alone["loss_after"], rel=1e-4)
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in line]
        for run in ("one", "two")
    ]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
    expected, found = (load_file(tmp_path / run / "latest" / "adapter_model.safetensors") for run in ("one", "two"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    answers = json.loads((tmp_path / "two" / "answers.json").read_text())
    assert answers == together["answers"] == alone["answers"]
