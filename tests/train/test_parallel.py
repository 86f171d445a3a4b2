"""Two gloo processes are one run: one gradient, one decision for each question, one pair of hands for each file."""

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

from shoestring.train import parallel
from shoestring.train.metrics import read_metrics, share_of_peak
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.train import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What both processes leave."""
    folder = tmp_path_factory.mktemp("two")
    text = tiny.recipe_text(tiny.corpus(folder / "text"))
    # A warmup that is a share of the run needs to know how long that is before its steps are planned.
    text = text.replace("steps: 8", "time: 1s").replace("warmup: 2", "warmup: 0.5")
    (folder / "recipe.yaml").write_text(text)
    (folder / "faults.yaml").write_text(tiny.recipe_text(folder / "text", 20))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.two_ranks"]
    workers = [
        subprocess.Popen([*command, str(rank), str(port), str(folder)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    told = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(told)
    (folder / "told.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def facts(folder) -> list[dict]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_gradient_of_one(folder):
    model = tiny.model()
    expected = ResidentEngine.around(model, next_token).forward_backward([tiny.batch(4, ignored=0.5)])
    for rank in (0, 1):
        found = load_file(folder / f"{rank}.safetensors")
        mean, count = found.pop("loss").tolist()
        assert count == expected.count and abs(mean - expected.mean) < 1e-6
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad)


def test_a_process_without_labels_waits_for_nobody_and_has_the_extra_losses_of_the_others(facts):
    model, batch = tiny.model(**tiny.EXPERTS), tiny.batch(2, seed=3)
    alone = ResidentEngine.around(model, next_token).forward_backward([batch])
    logits_BTV = model.head(model(batch.tokens_BT)[0])
    nats = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch.labels_BT.flatten())
    assert alone.mean == pytest.approx(float(nats.detach())), "nats per label, the extra loss apart"
    expected = {"loss": alone.mean, "count": alone.count, **alone.metrics}
    for of_rank in facts:
        assert of_rank["experts"] == pytest.approx(expected) and "expert_balance" in expected


def test_what_the_first_decides_holds_for_both_and_its_refusal_ends_both(facts):
    assert [of_rank["decided"] for of_rank in facts] == [[0, "first"]] * 2
    assert facts[0]["refused"] == ["ConfigError", "nothing fits"]
    assert facts[1]["refused"] == ["RunError", "the first process cannot go on: nothing fits"]


def test_a_step_that_one_process_cannot_do_is_left_by_both(facts):
    """In its passes, and in the optimizer's part."""
    assert [of_rank["stopped"] for of_rank in facts] == [["Elsewhere"] * 2, ["RuntimeError"] * 2]


def test_a_timed_run_is_one_run_though_the_clocks_differ(facts):
    """Learning rates before the steps are planned, and the plan itself, go by the first one's clock."""
    assert facts[0]["rates"] == facts[1]["rates"] and len(set(facts[0]["rates"])) > 1
    assert facts[0]["steps"] == facts[1]["steps"] == len(facts[0]["rates"])


def test_the_text_is_hashed_once_and_speeds_are_measured_by_the_first_alone(facts):
    assert [of_rank["_hash_everything"] for of_rank in facts] == [1, 0]
    assert facts[0]["matrix_peak"] > 0 and facts[1]["matrix_peak"] == 0


def test_only_the_first_tells_and_its_figures_are_of_both(folder, facts):
    told = json.loads((folder / "told.json").read_text())
    assert "step " in told[0] and "recipe " in told[0]
    assert not [line for line in told[1].splitlines() if line.startswith(("recipe", "memory", "step", "preparing"))]
    lines = [line for line in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, facts[0]["steps"] + 1))
    assert lines[-1]["tokens"] == facts[0]["tokens"] == 128 * facts[0]["steps"]


def test_a_run_is_owned_for_all_its_processes_and_free_at_its_end(facts):
    assert facts[0]["free"] and facts[1]["free"]
    assert facts[0]["locked"] == "another process is training this run"
    assert facts[1]["locked"].endswith(facts[0]["locked"])


def test_the_share_of_the_peak_is_of_the_peaks_of_all(monkeypatch):
    alone = share_of_peak(1000.0, 2e6, 1e10)
    monkeypatch.setattr(parallel, "world_size", lambda: 4)
    assert alone == 0.2 and share_of_peak(1000.0, 2e6, 1e10) == 0.05


def test_a_process_is_measured_with_the_libraries_that_its_steps_need(facts):
    """torch's optimizers alone import a compiler of 100 MB, when the first one is made."""
    for of_rank in facts:
        assert not [name for name in of_rank["loaded later"] if name.startswith(("torch._dynamo", "torch.optim"))]


def test_what_goes_wrong_is_answered_by_all_alike(facts):
    """Who cannot write goes on with the others, and all go back to one checkpoint."""
    assert facts[0]["faults"] == facts[1]["faults"] == [["rolled_back", 14], ["not_written", 18]]
    assert facts[0]["after faults"] == facts[1]["after faults"] and facts[0]["after faults"][0] == 20
    assert facts[0]["after faults"][1] < 12
