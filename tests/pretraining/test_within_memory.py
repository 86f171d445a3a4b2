"""Pretraining within a stated memory: planned, shown, kept; and what happens when a cap cannot be kept."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.cgroup import memory_group, why_not
from shoestring.core.errors import BudgetError
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train import planning
from shoestring.train.checkpoint import checkpoints
from shoestring.train.metrics import read_metrics
from tests.train import tiny
from tests.train.test_resume import assert_same_run


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture
def recipe(tmp_path, source) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(source))
    return file


def test_the_sum_is_shown_line_by_line_and_the_choice_is_in_the_runs_recipe(recipe, tmp_path, capsys):
    result = pretrain(recipe, out=str(tmp_path / "run"), budget__memory="8GB")
    said = capsys.readouterr().err
    for line in ("process, before the model", "weights", "moments", "predicted peak", "budget", "chosen"):
        assert line in said
    settled = load_pretrain_recipe(tmp_path / "run" / "recipe.yaml")
    assert settled.budget.engine == result.engine == "resident" and settled.train.microbatch == 2


def test_too_little_is_refused_with_the_least_that_would_do(recipe, tmp_path):
    with pytest.raises(BudgetError, match=r"(?s)too little for this run.*--memory \d+MB would do \(checkpointed"):
        pretrain(recipe, out=str(tmp_path / "run"), budget__memory="50MB")
    assert not (tmp_path / "run").exists()


def test_blocks_are_computed_again_and_microbatches_get_smaller_where_that_fits(recipe, tmp_path, monkeypatch):
    """The same run, up to the order of sums, with the least memory that the plan knows."""
    settings = {
        "train.microbatch": None, "train.batch_tokens": 4096, "train.sequence_length": 512, "train.steps": 1,
        "model.context": 512, "model.layers": 32, "model.width": 128,
    }  # fmt: skip
    whole = pretrain(recipe, out=str(tmp_path / "whole"), overrides=settings)
    with pytest.raises(BudgetError) as refused:
        pretrain(recipe, out=str(tmp_path / "least"), overrides={**settings, "budget.memory": "50MB"})
    least = next(word for word in str(refused.value).split() if word.endswith("MB") and word[:-2].isdigit())
    monkeypatch.setattr("shoestring.train.memory_guard.peak_rss_bytes", lambda: 0)  # pytest's own peak is no matter
    result = pretrain(recipe, out=str(tmp_path / "least"), overrides={**settings, "budget.memory": least})
    settled = load_pretrain_recipe(tmp_path / "least" / "recipe.yaml")
    assert result.engine == "checkpointed" and settled.train.microbatch == 1
    assert result.held_out_loss == pytest.approx(whole.held_out_loss, rel=1e-3)


ROOM = 700_000  # for a model and its moments, not for a step


def test_what_does_not_even_fit_before_the_first_step_is_a_sentence(recipe, tmp_path, monkeypatch):
    promised = planning.allocator.limit
    monkeypatch.setattr(planning.allocator, "limit", lambda cap=None, target=None: promised(_cap(cap), None))
    monkeypatch.setitem(globals(), "ROOM", 10_000)
    with pytest.raises(BudgetError, match="(?s)the run asked for .* more than its budget allows .* --memory"):
        pretrain(recipe, out=str(tmp_path / "run"), train__microbatch=None, budget__memory="8GB")
    assert torch.ones(1 << 20).sum() == 1 << 20  # the cap went with the run


def test_a_cap_that_cannot_be_kept_ends_with_a_sentence_and_a_checkpoint_to_go_on_from(recipe, tmp_path, monkeypatch):
    """The prediction is made to say too little, so the allocator refuses in the middle of a step."""
    whole = pretrain(recipe, out=str(tmp_path / "whole"), train__microbatch=None)
    promised = planning.allocator.limit
    monkeypatch.setattr(planning.allocator, "limit", lambda cap=None, target=None: promised(_cap(cap), None))
    with pytest.raises(BudgetError, match="(?s)asked for .* saved in .* after step 0.*--resume"):
        pretrain(recipe, out=str(tmp_path / "cut"), train__microbatch=None, budget__memory="8GB")
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-000000"]
    resumed = pretrain(resume=tmp_path / "cut", budget__memory="9GB")
    assert resumed.steps == whole.steps
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def _cap(cap: int | None) -> int | None:
    """Just above what is there, so that the first step cannot be made; None stays."""
    gc.collect()  # what other tests left
    planning.allocator.give_back()
    counted = planning.allocator.counts()
    return None if cap is None or counted is None else counted.held + ROOM


# --- promises, in cgroups ---------------------------------------------------------------------------------------------


def random_recipe(draw: random.Random, source: Path) -> dict[str, Any]:
    """Kinds, lengths and microbatches of all sorts, of a size at which activations weigh as much as weights."""
    heads = draw.choice([2, 4])
    attention = draw.choice([
        {"kind": "gqa", "heads": heads, "kv_heads": draw.choice([1, heads]), "head_width": 32},
        {"kind": "gqa", "heads": heads, "kv_heads": 1, "head_width": 32, "qk_norm": True},
        {"kind": "mla", "heads": heads, "latent_rank": 48, "content_width": 32, "rotary_width": 16, "value_width": 32},
        {"kind": "mtla", "heads": heads, "latent_rank": 48, "content_width": 32, "rotary_width": 16, "value_width": 32,
         "stride": 2},
    ])  # fmt: skip
    feed_forward = draw.choice([
        {"kind": "swiglu", "width": 512}, {"kind": "gelu", "width": 512}, {"kind": "relu2", "width": 512},
        {"kind": "moe", "width": 192, "experts": 4, "active": 2},
    ])  # fmt: skip
    length = draw.choice([64, 128, 256])
    rows = draw.choice([4, 8, 16])
    return {
        "model": {
            "vocabulary": draw.choice([320, 4096]), "width": draw.choice([128, 192]), "layers": draw.choice([3, 6]),
            "context": 256, "attention": attention, "feed_forward": feed_forward,
            "block": draw.choice(["sequential", "sequential", "reversible"]), "tied_head": draw.choice([True, False]),
        },
        "data": {"source": str(source), "tokenizer": {"vocabulary": 320}, "validation": 0.2},
        "train": {
            "steps": 3, "batch_tokens": rows * length, "sequence_length": length,
            "microbatch": draw.choice([None, rows, rows // 2]),
            "activation_checkpointing": draw.choice(["none", "selective", "selective", "full"]),
        },
    }  # fmt: skip


def command(file: Path, out: Path, memory: str) -> list[str]:
    return [sys.executable, "-m", "shoestring", "pretrain", str(file), "--out", str(out), "--memory", memory, "--json"]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_a_promise_is_kept_inside_a_cgroup_of_its_size(seed, source, tmp_path):
    """As much as the plan of one of its engines asks for, at most; and no more than that is ever taken."""
    assert why_not() is None, why_not()
    draw = random.Random(seed)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(random_recipe(draw, source)))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    asked = subprocess.run(command(file, tmp_path / "no", "20MB"), capture_output=True, text=True, env=environment)
    assert asked.returncode == 2 and "would do" in asked.stderr, asked.stderr
    least = int(next(w for w in asked.stderr.split() if w.endswith("MB") and w[:-2].isdigit() and w != "20MB")[:-2])
    memory = least + draw.choice([0, 0, 10, 60])  # a little more may fit another engine
    with memory_group(memory * 1_000_000) as group:
        words = group.command(command(file, tmp_path / "run", f"{memory}MB"))
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert group.kills == 0
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["peak_memory"] <= memory * 1_000_000
    assert len([line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]) == 3
