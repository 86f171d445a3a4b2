"""prune and factorize inside a budget: predicted from above, text on disk with the same bytes, or refused with what
would do."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cgroup import memory_group, why_not
from shoestring.cli.main import main
from shoestring.compression import room as rooms
from shoestring.compression.factorize import job as factorize_job
from shoestring.compression.factorize.job import factorize
from shoestring.compression.prune import job as prune_job
from shoestring.compression.prune.job import prune
from shoestring.compression.room import Room
from shoestring.core.errors import BudgetError
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from tests.compression.prune.prunable import FEW, prunable
from tests.finetuning import tiny

PARTS = {"layers": 2, "feed_forward": 32, "heads": 4, "width": 24}
WORKS: dict[str, tuple[Callable[..., Any], Any, dict[str, Any]]] = {
    "masks": (prune, prune_job, {"pattern": "2:4"}),
    "parts": (prune, prune_job, PARTS),
    "trained": (prune, prune_job, {"feed_forward": 32, "recover": 2}),
    "factorize": (factorize, factorize_job, {"parameters": "0.75x"}),
}
QWEN_3B = {
    "vocabulary": 151_936, "width": 2048, "layers": 2, "context": 32_768, "tied_head": True,
    "attention": {"heads": 16, "kv_heads": 2, "head_width": 128, "qkv_bias": True}, "feed_forward": {"width": 11_008},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunable(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def wide(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose blocks take more than all else."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    wider = {"width": 256, "layers": 2, "feed_forward": {"width": 1024}}
    config = ModelConfig.model_validate({**load_model(model).config.model_dump(), **wider})
    save_model(build(config, seed=0), folder, Tokenizer.load(model))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "compression.json"}


def losses(folder: Path) -> list[float]:
    report = json.loads((folder / "compression.json").read_text())
    return [report["before"]["loss"], report["after"]["loss"]]


@pytest.mark.parametrize("name", WORKS)
def test_hidden_states_on_disk_give_the_same_bytes(
    name: str, model: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, job, settings = WORKS[name]
    verb(model, tmp_path / "memory", calibrate=sums, **settings, **FEW)
    plain, made = job.make_room, []

    def on_disk(*given: Any) -> Room:
        made.append(dataclasses.replace(plain(*given), on_disk=True))
        return made[-1]

    monkeypatch.setattr(job, "make_room", on_disk)
    verb(model, tmp_path / "disk", calibrate=sums, **settings, **FEW)
    assert made and content(tmp_path / "memory") == content(tmp_path / "disk")
    assert losses(tmp_path / "memory") == losses(tmp_path / "disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("masks", {"pattern": "2:4"}), ("masks", {"sparsity": 0.5, "method": "magnitude"}),
     ("parts", {"width": 192, "feed_forward": 512, "heads": 4}), ("parts", {"feed_forward": 512}),
     ("factorize", {"parameters": "0.7x"})],
)  # fmt: skip
def test_tensors_take_no_more_than_is_predicted(
    name: str, settings: dict[str, Any], wide: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not allocator.install():
        pytest.fail("this machine has no compiler, and nothing counts memory")
    monkeypatch.setattr(rooms, "_HEAD_ROWS", 1 << 17)  # this head is small, and the blocks decide
    verb, job, _ = WORKS[name]
    plain, made = job.make_room, []
    monkeypatch.setattr(job, "make_room", lambda *given: made.append(plain(*given)) or made[-1])
    monkeypatch.setattr(job, "decode_both", lambda *given: (None, None))
    allocator.reset_peaks()
    before = allocator.live()
    verb(wide, tmp_path / "made", calibrate=sums, rows=8, context=128, **settings)
    counts = allocator.counts()
    assert counts is not None
    took, predicted = counts.live_peak - before, made[0].tensors
    assert 0.2 * predicted < took <= predicted, (took, predicted, made[0].lines)


@pytest.mark.parametrize("name", WORKS)
def test_what_cannot_fit_is_refused_with_what_would_do(
    name: str, model: Path, sums: Path, tmp_path: Path
) -> None:
    verb, _, settings = WORKS[name]
    with pytest.raises(BudgetError) as caught:
        verb(model, tmp_path / "a", calibrate=sums, memory="10MB", **settings, **FEW)
    assert not list(tmp_path.iterdir())
    least = re.search(r"(\d+)MB would do", str(caught.value))
    assert least is not None, caught.value
    said: list[str] = []
    if name != "trained":  # what training needs is added up once the text is read
        made = verb(model, tmp_path / "b", calibrate=sums, memory=f"{least[1]}MB", say=said.append, **settings, **FEW)
        assert any("predicted at most, the text's hidden states" in line for line in said)
        assert made.peak_memory > 0 and (tmp_path / "b" / "model.safetensors").is_file()
    ample = verb(model, tmp_path / "c", calibrate=sums, memory="8GB", **settings, **FEW)
    assert ample.folder.is_dir()


def test_the_commands_take_the_flag(
    model: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--calibrate", str(sums), "--rows", "4", "--context", "64"]
    for verb, how in (("prune", ["--pattern", "2:4"]), ("factorize", ["--parameters", "0.75x"])):
        line = [verb, str(model), *how, *text, "--out", str(tmp_path / verb)]
        assert main([*line, "--memory", "10MB"]) == 2
        assert f"too little to {verb} this model" in capsys.readouterr().err and not (tmp_path / verb).exists()
        assert main([*line, "--memory", "much"]) == 2
        assert "much" in capsys.readouterr().err
        assert main([*line, "--memory", "8GB"]) == 0
        assert "predicted at most" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [["prune", "--pattern", "2:4"], ["prune", "--feed-forward", "8192", "--width", "1792"],
     ["factorize", "--parameters", "0.8x"]],
)  # fmt: skip
def test_a_3b_shape_keeps_to_the_least_that_is_said_to_do(words: list[str], model: Path, tmp_path: Path) -> None:
    """Its widths and vocabulary in two of its layers, which is all that is in memory at a time."""
    assert why_not() is None, why_not()
    decoder = build(ModelConfig.model_validate(QWEN_3B), seed=0, dtype=torch.bfloat16)
    save_model(decoder, tmp_path / "3b", Tokenizer.load(model))
    del decoder
    verb, *how = words
    command = [
        sys.executable, "-m", "shoestring", verb, str(tmp_path / "3b"), *how, "--calibrate", "stdlib", "--rows", "16",
        "--out", str(tmp_path / "made"), "--memory",
    ]  # fmt: skip
    refused = subprocess.run([*command, "100MB"], capture_output=True, text=True)
    least = re.search(r"(\d+)MB would do", refused.stderr)
    assert refused.returncode == 2 and least is not None, refused.stderr
    memory = int(least[1]) * 1_000_000
    with memory_group(memory) as group:
        done = subprocess.run(group.command([*command, f"{least[1]}MB"]), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert group.kills == 0
    assert json.loads((tmp_path / "made" / "compression.json").read_text())["peak_memory"] < memory
