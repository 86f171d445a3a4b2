"""What goes wrong on one of two ranks is answered by both alike, and what a run has done is not lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoestring.train.metrics import read_metrics
from tests.train import tiny
from tests.train.ranks import ended, start
from tests.train.test_faults import small_disk
from tests.train.test_logger_services import needs, wandb_history

assert small_disk  # a fixture, shared with the tests of one process


def both(folder: Path, disk: object, *faults: str, **more: str) -> list[dict]:
    """What each rank has seen of these faults."""
    (folder / "recipe.yaml").write_text(tiny.recipe_text(tiny.corpus(folder / "text")))
    results = ended(start("tests.train.faulty_ranks", [folder, disk, *faults], **more))
    assert [code for code, _, _ in results] == [0, 0], "\n".join(err for _, _, err in results)
    (folder / "told.json").write_text(json.dumps([err for _, _, err in results]))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return folder, both(folder, "-", "nan", "slow")


def test_batches_without_a_number_on_one_rank_are_left_out_and_rolled_back_by_both(faults):
    first, second = (of_rank["nan"] for of_rank in faults[1])
    assert first == {**second, "seconds": first["seconds"]} and first["steps"] == 20 and first["bits"] < 12
    skipped = [step for event, step in first["events"] if event == "skipped"]
    assert skipped == [2, *range(6, 16)] and ["rolled_back", 15] in first["events"]


def test_a_timed_run_with_one_slow_rank_ends_together_and_in_time(faults):
    first, second = (of_rank["slow"] for of_rank in faults[1])
    assert first["steps"] == second["steps"] and first["weights"] == second["weights"]
    assert 2 < first["steps"] < 3 / 0.05 and first["seconds"] < 4
    assert first["tokens"] == second["tokens"] == 128 * first["steps"]


@pytest.mark.long
def test_a_disk_that_is_full_for_a_while_costs_two_ranks_nothing(small_disk, tmp_path):
    first, second = (of_rank["full"] for of_rank in both(tmp_path, small_disk, "full"))
    assert first["events"] == second["events"] == [["not_written", 6]]
    assert first["weights"] == second["weights"] and first["steps"] == 8
    lines = read_metrics(small_disk / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told[0].count("cannot be written") == 1 and told[0].count("is written again") == 1
    assert "cannot be written" not in told[1]


@needs("wandb")
@needs("tensorboard")
@pytest.mark.long
def test_a_logging_server_that_is_not_there_is_told_by_the_first_alone_and_loses_nothing(tmp_path):
    dead = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
    first, second = (of_rank["dead_logger"] for of_rank in both(tmp_path, "-", "dead_logger", **dead))
    assert first["steps"] == second["steps"] == 8 and first["weights"] == second["weights"]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told[0].count("cannot be reached") == 1 and "wandb" not in told[1]
    (file,) = (tmp_path / "dead_logger").glob("wandb/offline-run-*/*.wandb")
    assert sorted(point["step"] for point in wandb_history(file)) == list(range(1, 9))
    assert list((tmp_path / "dead_logger" / "tensorboard").iterdir())
