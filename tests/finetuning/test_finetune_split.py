"""Two laptops that hold a part of the model each, with disks of their own, run the recipes of one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shoestring
from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.evaluate.perplexity import perplexity
from shoestring.finetuning.job import finetune
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import save_model
from shoestring.pretraining.job import pretrain
from shoestring.train.metrics import read_metrics
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny
from tests.finetuning.split_finetune_ranks import FULL, LIKELY, STOP
from tests.train import tiny as pretraining


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("laptops")
    tokenizer = chatml(templates.CHATML)
    shape = ModelConfig.model_validate({**tiny.SHAPE, "layers": 3, "vocabulary": tokenizer.vocabulary_size})
    save_model(build(shape, seed=1), folder / "model", tokenizer)
    tiny.sums(folder / "sums.jsonl")
    lines = [f"{a}+{b} is {a + b}, and not {a * b}." for a in range(9) for b in range(3)]
    (folder / "text.txt").write_text("\n".join(lines))
    text = pretraining.recipe_text(pretraining.corpus(folder / "corpus"), extra="precision: {compute: float32}")
    (folder / "pretrain.yaml").write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).parents[2]
    env = {
        **os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.finetuning.split_finetune_ranks", str(folder)],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(told)
    (folder / "told.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def facts(folder) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def alone(folder: Path, out: str, **settings: Any) -> tuple[dict[str, Any], Path]:
    result = finetune(
        str(folder / "model"), str(folder / "sums.jsonl"), overrides={**tiny.SHORT, **settings}, out=str(folder / out)
    )
    return result.to_json(), folder / out


def test_an_adapter_is_that_of_one_process(folder, facts, monkeypatch):
    expected, run = alone(folder, "lora-alone")
    there = folder / "disk0" / "lora"
    assert losses(there) == pytest.approx(losses(run), rel=1e-5) and len(losses(run)) == 6
    ours, theirs = (load_file(each / "latest" / "adapter_model.safetensors") for each in (there, run))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
    for of_rank in facts:
        assert of_rank["lora"]["loss_before"] == pytest.approx(expected["loss_before"], rel=1e-5)
        assert of_rank["lora"]["loss_after"] == pytest.approx(expected["loss_after"], rel=1e-4)
    assert facts[0]["lora"]["answers"] == expected["answers"]


def test_layers_from_each_machines_disk_in_int8_train_what_one_process_trains(folder, facts):
    _, run = alone(folder, "streamed-alone", **{"budget.engine": "streamed", "budget.weights": "int8"})
    assert losses(folder / "disk0" / "streamed") == pytest.approx(losses(run), rel=1e-5)
    assert facts[1]["streamed"]["engine"] == "streamed"


def test_a_stopped_run_goes_on_over_another_split_and_in_one_process(folder, facts):
    whole = finetune(str(folder / "model"), str(folder / "sums.jsonl"), overrides=FULL, out=str(folder / "full-alone"))
    expected = losses(folder / "full-alone")
    assert facts[0]["stopped"].startswith(f"stopped after step {STOP}") and facts[1]["stopped"].startswith("stopped")
    assert losses(folder / "disk0" / "full") == pytest.approx(expected, rel=1e-5)
    assert facts[0]["full"]["loss_after"] == pytest.approx(whole.loss_after, rel=1e-4)
    shutil.move(folder / "disk0" / "stopped", folder / "stopped")
    recipe = (folder / "stopped" / "recipe.yaml").read_text()
    (folder / "stopped" / "recipe.yaml").write_text(recipe.replace("out: full", f"out: {folder / 'stopped'}"))
    finetune(resume=folder / "stopped", overrides={"budget.split": "null"})
    assert losses(folder / "stopped") == pytest.approx(expected, rel=1e-5)
    one, other = (load_file(each / "latest" / "model.safetensors") for each in (folder / "stopped", whole.out))
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=1e-4)


def test_pretraining_begins_and_ends_as_in_one_process(folder, facts):
    pretrain(str(folder / "pretrain.yaml"), out=str(folder / "pretrained-alone"))
    expected = losses(folder / "pretrained-alone")
    assert losses(folder / "disk0" / "pretrained") == pytest.approx(expected, rel=1e-5) and len(expected) == 8
    assert facts[0]["pretrained"]["bits_per_byte"] == pytest.approx(facts[1]["pretrained"]["bits_per_byte"])


def test_texts_and_perplexity_are_those_of_one_process_on_both(folder, facts):
    for name, model in (("model", folder / "model"), ("adapter", folder / "disk0" / "lora" / "latest")):
        language = shoestring.load(model)
        texts = language.generate(["1+2?", "3"], temperature=0.0, max_tokens=8)
        drawn = language.generate("1", temperature=1.0, seed=3, max_tokens=8)
        score = perplexity(language, folder / "text.txt", context=64)
        for of_rank in facts:
            assert of_rank[name][:2] == [texts, drawn]
            assert of_rank[name][2] == pytest.approx(score.loss, rel=1e-5) and of_rank[name][3] == score.tokens
            assert of_rank[name][4] == pytest.approx([said for said, _ in log_likelihoods(language, LIKELY)], rel=1e-4)
    assert facts[0]["from disk"][:2] == facts[0]["model"][:2]


def test_the_second_machine_writes_no_run_but_has_what_it_went_on_from(folder, facts):
    names = {path.name for path in (folder / "disk1").iterdir()}
    assert names == {"full"}
    assert {path.name for path in (folder / "disk1" / "full").iterdir()} >= {"recipe.yaml", f"step-{STOP:06d}"}


def test_each_machine_tells_its_layers_and_its_time_and_metrics_have_both(folder):
    told = json.loads((folder / "told.json").read_text())
    assert "layers 2 to 2  work" in told[1] and "waiting" in told[1] and "step " in told[0]
    lines = [line for line in read_metrics(folder / "disk0" / "lora" / "metrics.jsonl") if "machine" in line]
    assert {(line["machine"], *line["layers"]) for line in lines} == {(0, 0, 2), (1, 2, 3)}
    assert all(line["work"] > 0 and line["sent"] > 0 for line in lines)


def test_what_is_not_done_over_machines_is_refused_by_name(facts):
    for of_rank in facts:
        assert "quantize is not done over several machines" in of_rank["refused"]["quantize"]
        assert "preserve is not done over several machines" in of_rank["refused"]["preserve"]
        assert "a split over 1 machines, and here are 2" in of_rank["refused"]["ranges"]
