"""Fine-tuning within a stated memory: which engine is chosen, what is said, and that the result is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

import shoestring
from shoestring.cli.main import main
from shoestring.core.errors import BudgetError, ModelFileError
from shoestring.train.memory_guard import MemoryGuard
from tests.finetuning import tiny
from tests.finetuning.tiny import SHORT


def run(base: Path, examples: Path, out: Path, **changes):
    return shoestring.finetune(base, examples, overrides={**SHORT, "out": str(out), **changes})


def test_every_engine_learns_the_same(base, examples, tmp_path):
    adapters = {}
    for engine in ("resident", "checkpointed", "streamed"):
        result = run(base, examples, tmp_path / engine, **{"budget.engine": engine})
        assert result.engine == engine and result.predicted_memory > 0
        assert "predicted" in str(result)
        adapters[engine] = load_file(result.checkpoint / "adapter_model.safetensors")
    for engine in ("checkpointed", "streamed"):
        assert_close(adapters[engine], adapters["resident"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_layers_can_be_kept_in_fewer_bits_on_disk(base, examples, tmp_path, weights, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    result = run(base, examples, tmp_path / "run", **{"budget.weights": weights})
    assert result.engine == "streamed" and result.loss_after < result.loss_before
    assert list((tmp_path / "cache" / "stores").glob(f"*-{weights}/manifest.json"))


@pytest.mark.parametrize("engine", ["resident", "streamed"])
def test_int8_compute_learns_nearly_the_same(base, examples, tmp_path, engine, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    plain = run(base, examples, tmp_path / "plain")
    integers = run(
        base, examples, tmp_path / "int8", **{"precision.compute": "int8", "budget.engine": engine}
    )
    assert integers.engine == engine
    assert integers.loss_after == pytest.approx(plain.loss_after, rel=0.02)


def test_enough_memory_leaves_the_model_in_memory_and_the_sum_is_shown(base, examples, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["finetune", str(base), "--data", str(examples), *tiny.flags(SHORT), "--out", "run"]
    assert main([*words, "--memory", "8GB", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["engine"] == "resident" and found["predicted_memory"] < 8e9
    for line in ("process, before the model", "weights", "kept activations", "predicted peak", "budget", "chosen"):
        assert line in captured.err
    assert "engine: resident" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_too_little_memory_is_refused_with_the_least_that_would_do(base, examples, tmp_path, capsys, monkeypatch):
    import torch._dynamo  # noqa: F401  what the first run of a process loads, so that both runs find the same process

    monkeypatch.chdir(tmp_path)
    words = ["finetune", str(base), "--data", str(examples), *tiny.flags(SHORT), "--out", "run"]
    assert main([*words, "--memory", "50MB"]) == 2
    said = capsys.readouterr().err
    assert "50 MB of memory are too little" in said and not (tmp_path / "run").exists()
    least = next(word for word in said.split() if word.endswith("MB") and word[:-2].isdigit() and int(word[:-2]) > 50)
    assert main([*words, "--memory", least]) == 0


def test_a_run_above_its_budget_stops_at_a_checkpoint(base, examples, tmp_path, monkeypatch):
    outgrow(monkeypatch)
    said = "took 9.00 GB, more than its budget of 8.00 GB, and was stopped after step 1; saved in"
    with pytest.raises(BudgetError, match=said):
        run(base, examples, tmp_path / "run", **{"budget.memory": "8GB"})
    assert (tmp_path / "run" / "latest" / "trainer" / "state.json").is_file()


def outgrow(monkeypatch) -> None:
    """The process takes 1 GB at first and 9 GB after a step."""
    peaks = iter([1_000_000_000])
    monkeypatch.setattr("shoestring.train.memory_guard.peak_rss_bytes", lambda: next(peaks, 9_000_000_000))


def test_without_a_budget_nothing_is_watched():
    guard = MemoryGuard(None)
    guard.after_step(None)
    assert guard.exceeded is None


def test_a_run_is_not_resumed_on_other_weights(examples, tmp_path, monkeypatch):
    base = tiny.chat_model(tmp_path / "model")
    stop = {**SHORT, "train.steps": 4}
    outgrow(monkeypatch)
    with pytest.raises(BudgetError):
        run(base, examples, tmp_path / "run", **{**stop, "budget.memory": "8GB"})
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelFileError, match="not those that this run began with"):
        shoestring.finetune(resume=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapter.method": "full", "budget.engine": "streamed"}, "only adapters train while layers are streamed"),
        ({"budget.engine": "resident", "budget.weights": "int8"}, "budget.weights is for streamed layers"),
        ({"precision.compute": "int8", "adapter.method": "full"}, "precision.compute int8 needs frozen weights"),
        ({"precision.compute": "int8", "adapter.method": "qlora"}, "precision.compute int8 needs frozen weights"),
    ],
)
def test_impossible_combinations_are_refused_before_work(base, examples, tmp_path, changes, sentence):
    with pytest.raises(shoestring.core.errors.ConfigError, match=sentence):
        run(base, examples, tmp_path / "run", **changes)
