"""A model in parts (FSDP2) is the model that each process has whole: losses, norms, weights, runs, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.plan import receipt
from shoestring.plan.divided import MOMENTS, WEIGHTS
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train.checkpoint import checkpoints
from shoestring.train.metrics import read_metrics
from shoestring.train.sharded_files import ShardedFiles, write_shard
from tests.train import tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes leave: facts, and a run of each kind. A batch has six rows, for one, two or three of them."""
    folder = tmp_path_factory.mktemp("divided")
    text = tiny.recipe_text(tiny.corpus(folder / "text")).replace("batch_tokens: 128", "batch_tokens: 192")
    (folder / "recipe.yaml").write_text(text.replace("evaluate_every", "keep: 9\n  evaluate_every"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.train.divided_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", port, str(folder)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    told = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)
    return folder


@pytest.fixture(scope="module")
def facts(folder) -> list[dict]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["tied", "untied", "checkpointed", "values"])
def test_steps_of_a_model_in_parts_are_those_of_a_whole_one(facts, name):
    """With clipping, two microbatches, and one of them without labels on one rank."""
    for of_rank in facts:
        whole, parts = of_rank[name]["ddp"], of_rank[name]["fsdp"]
        assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert parts["norms"] == pytest.approx(whole["norms"], rel=1e-4) and max(whole["norms"]) > 0.5
        assert of_rank[name]["far"] < 2e-4
    assert facts[0][name] == facts[1][name], "all ranks know the same"


def test_float16_scales_losses_alike(facts):
    for of_rank in facts:
        whole, parts = of_rank["float16"]["ddp"], of_rank["float16"]["fsdp"]
        assert parts["losses"] == pytest.approx(whole["losses"], rel=5e-3) and not any(parts["skipped"])
        whole, parts = of_rank["overflow"]["ddp"], of_rank["overflow"]["fsdp"]
        assert whole["skipped"][0] and parts["skipped"][0], "too large a scale skips the step, on all ranks"
        assert whole["scale"] < 2**24 and parts["scale"] < 2**24
    assert facts[0]["overflow"] == facts[1]["overflow"]


def test_each_process_keeps_its_part_of_weights_and_moments(facts):
    whole = facts[0]["kept"][1]
    kept = [of_rank["kept"][0] for of_rank in facts]
    assert sum(kept) == whole and all(abs(part - whole / 2) < 100 for part in kept)
    assert [of_rank["moments"] for of_rank in facts] == [2 * part for part in kept]


def test_the_memory_of_one_process_is_predicted(facts):
    for of_rank in facts:
        counted, predicted = of_rank["tensors"]
        assert counted == pytest.approx(predicted, rel=0.05)


def test_the_receipt_counts_the_parts_of_the_first_process(folder):
    kept, damaged = receipt.read(folder / "large" / receipt.NAME)
    items = {item.what: item for item in kept[-1].items}
    for name in (WEIGHTS, MOMENTS):
        assert items[name].measured == pytest.approx(items[name].predicted, rel=0.01)
    assert not damaged and items[MOMENTS].measured > 1e6


def test_sums_begin_in_the_last_pass_backward_and_not_before(facts):
    for of_rank in facts:
        assert set(of_rank["begun"]) == {3} and len(of_rank["begun"]) >= 5
        assert of_rank["begun in all"] >= len(of_rank["begun"])


def test_samples_are_written_by_a_model_in_parts(folder):
    lines = [read_metrics(folder / kind / "metrics.jsonl") for kind in ("ddp", "fsdp", "half")]
    whole, parts, half = ([line["sample"] for line in some if "sample" in line] for some in lines)
    assert len(whole) == len(parts) > 0 and all(isinstance(text, str) for text in parts + half)
    assert half, "blocks that are gathered in bfloat16 write too"


def test_passes_are_made_in_step(facts):
    assert [of_rank["in step"] for of_rank in facts] == [[0, None], [0, 1]]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def test_a_run_in_parts_is_the_run_of_whole_models(folder, facts):
    whole, parts = (losses(folder / kind) for kind in ("ddp", "fsdp"))
    assert parts == pytest.approx(whole, rel=1e-5) and len(whole) == 8
    assert losses(folder / "half")[0] == pytest.approx(whole[0], rel=1e-3)
    assert facts[0]["fsdp"] == facts[1]["fsdp"] and facts[0]["fsdp"] == pytest.approx(facts[0]["ddp"], rel=1e-5)
    whole, parts = (load_file(folder / kind / "latest" / "model.safetensors") for kind in ("ddp", "fsdp"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-4)


def test_waiting_is_told_for_each_rank(folder):
    for kind in ("ddp", "fsdp"):
        lines = [line for line in read_metrics(folder / kind / "metrics.jsonl") if "loss" in line]
        assert all(len(line["waiting_seconds"]) == 2 for line in lines)
        assert all(0 < each < line["seconds"] for line in lines for each in line["waiting_seconds"])


def test_moments_lie_in_a_file_for_each_rank_and_torch_reads_them(folder):
    """The judge is torch's own reader of its safetensors form."""
    moments = folder / "fsdp" / "latest" / "trainer" / "optimizer"
    assert len(list(moments.iterdir())) == 2 and not list(folder.glob("fsdp/*/trainer/optimizer.safetensors"))
    whole = load_file(folder / "ddp" / "latest" / "trainer" / "optimizer.safetensors")
    found = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(moments)), no_dist=True)
    with ShardedFiles(moments) as files:
        assert files.infos.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-4)
            mine = torch.zeros_like(tensor)
            files.read_into(name, mine)
            assert mine.equal(found[name])


def cut(folder: Path, kind: str, out: Path) -> Path:
    """A run that was killed after its first checkpoint."""
    shutil.copytree(folder / kind, out, symlinks=True)
    first, *others = checkpoints(out)
    for path in others:
        shutil.rmtree(path)
    assert first.name == "step-000003"
    return out


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_continues_on_one(folder, tmp_path, kind):
    out = cut(folder, kind, tmp_path / "run")
    pretrain(resume=out)
    assert losses(out) == pytest.approx(losses(folder / kind), rel=1e-4) and len(losses(out)) == 8


def test_a_checkpoint_of_two_continues_on_three_that_one_command_starts(folder, tmp_path):
    """In parts; and the whole command: one voice, one result."""
    out = cut(folder, "fsdp", tmp_path / "run")
    command = [sys.executable, "-m", "shoestring", "pretrain", "--resume", str(out), "--ranks", "3", "--json"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 8
    assert done.stderr.count("parallel  3 processes, each with its part of the model (fsdp)") == 1
    assert losses(out) == pytest.approx(losses(folder / "fsdp"), rel=1e-4) and len(losses(out)) == 8
    assert len(list((out / "latest" / "trainer" / "optimizer").iterdir())) == 3


def test_a_run_of_whole_models_goes_on_in_parts(folder):
    assert losses(folder / "changed") == pytest.approx(losses(folder / "ddp"), rel=1e-5)
    assert (folder / "changed" / "latest" / "trainer" / "optimizer").is_dir()


def test_weights_of_a_checkpoint_come_back_into_a_model_in_parts(facts):
    assert facts[0]["read back"] and facts[1]["read back"]


def test_a_missing_or_foreign_part_is_a_sentence(tmp_path):
    tensor = torch.arange(10.0).reshape(5, 2)
    write_shard(tmp_path, 0, 2, {"a/m": (tensor[:3], 0)})
    with pytest.raises(ModelFileError, match="expected 2 files"):
        ShardedFiles(tmp_path)
    write_shard(tmp_path, 1, 2, {"a/m": (tensor[3:], 4)})
    with pytest.raises(ModelFileError, match="the parts of a/m do not make one tensor"):
        ShardedFiles(tmp_path)
    write_shard(tmp_path, 1, 2, {"a/m": (tensor[3:], 3)})
    with ShardedFiles(tmp_path) as files:
        part = torch.zeros(3, 2)
        files.read_part("a/m", 1, part)
    assert part.equal(tensor[1:4])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer.kind": "muon"}, "optimizer.kind muon needs whole matrices"),
        ({"optimizer.state": "8bit"}, "optimizer.state 8bit"),
        ({"quantize": "true"}, "quantize rounds whole weights"),
        ({"model.block": "reversible"}, "blocks of kind reversible"),
    ],
)
def test_what_needs_whole_weights_is_refused_by_name(folder, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_pretrain_recipe(folder / "recipe.yaml", {"parallel.kind": "fsdp", **settings})
