"""The recipe velocity-2b is what its authors describe, and its smoke twin trains so on two ranks."""

from __future__ import annotations

import json
import math

import pytest

from shoestring.models.builder import build
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.train.loss_scale import LossScale
from shoestring.train.optimizer import build_optimizer
from shoestring.train.precision import loss_scale
from shoestring.train.schedule import build_schedule
from tests.train import tiny
from tests.train.ranks import ended, start

SCALE = 2**24


@pytest.fixture(scope="module")
def velocity():
    return load_pretrain_recipe("velocity-2b")


def test_it_has_its_parameters_on_the_meta_device_and_its_groups_part_them(velocity):
    decoder = build(velocity.model, device="meta")
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 1_713_639_424
    groups = build_optimizer(velocity.optimizer, build(load_pretrain_recipe("velocity-2b-smoke").model, seed=0))
    decayed, undecayed = groups.param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in undecayed["params"])
    assert {type(part) for part in groups.parts} and velocity.optimizer.kind == "adamw"


def test_the_rate_rises_for_2000_steps_and_restarts_where_cycles_end(velocity):
    steps = velocity.train.planned_steps
    assert steps == math.ceil(34_000_000_000 / 65_536)
    share = build_schedule(velocity.schedule)
    rises = [share(step, steps) for step in range(2001)]
    assert rises == sorted(rises) and rises[0] == pytest.approx(1 / 2001) and rises[2000] == 1
    assert [b - a for a, b in zip(rises, rises[1:], strict=False)] == pytest.approx([1 / 2001] * 2000)
    unit = (steps - 2000) / 15  # cycles of 1, 2, 4 and 8
    restarts = [2000 + unit * done for done in (1, 3, 7)]
    for place in restarts:
        before, after = math.ceil(place) - 1, math.ceil(place)
        around = share(before, steps), share(after, steps)
        assert around == (pytest.approx(0.1, abs=1e-3), pytest.approx(1, abs=1e-3))
    falling = [step for step in range(2001, steps, 500) if share(step, steps) > share(step - 1, steps)]
    assert not falling, "between restarts it falls"
    assert share(steps - 1, steps) == pytest.approx(0.1, abs=1e-6)
    assert velocity.optimizer.learning_rate * share(steps - 1, steps) == pytest.approx(6e-5, rel=1e-4)


def test_it_computes_in_scaled_float16_with_blocks_checkpointed_for_1_2_or_4_gpus(velocity):
    scale = loss_scale(velocity.precision)
    assert isinstance(scale, LossScale) and scale.scale == 65_536
    assert velocity.train.activation_checkpointing == "full"
    for gpus in (1, 2, 4, 8):
        assert velocity.train.rows % (gpus * velocity.train.microbatch) == 0
    smoke = load_pretrain_recipe("velocity-2b-smoke")
    assert smoke.precision == velocity.precision and smoke.train.activation_checkpointing == "full"


def test_samples_and_services_are_one_setting_each():
    changed = load_pretrain_recipe("velocity-2b", {"data.max_documents": "10000", "log.everywhere": "velocity"})
    assert changed.data.max_documents == 10_000
    assert (changed.log.tensorboard, changed.log.wandb) == (True, "velocity")
    apart = load_pretrain_recipe("velocity-2b", {"log.everywhere": "velocity", "log.tensorboard": "false"})
    assert (apart.log.tensorboard, apart.log.wandb) == (False, "velocity")


def check_two_ranks(tmp_path, *flags):
    """The smoke twin on a few documents, with a scale that is too high at first; -> its losses."""
    out, text = tmp_path / "run", tiny.corpus(tmp_path / "text", 200)
    flags = ("--data.source", text, "--data.max_documents", "150", "--out", out, *flags)
    flags = (*flags, "--precision.loss_scale.initial", str(SCALE), "--train.evaluate_every", "100")
    results = ended(start("shoestring", ["pretrain", "velocity-2b-smoke", *flags]))
    assert [code for code, _, _ in results] == [0, 0], "\n".join(err for _, _, err in results)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line.get("event") == "skipped"]
    assert skipped and all("overflowed float16 at a loss scale of" in line["reason"] for line in skipped)
    numbers = json.loads((out / "latest" / "trainer" / "state.json").read_text())["optimizer"]["loss_scale"]
    assert numbers["scale"] == SCALE / 2 ** len(skipped)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8 and losses[-1] < losses[0]
    return losses


def test_its_smoke_twin_trains_under_two_ranks_with_the_loss_scaled(tmp_path):
    """The scale begins too high: gradients overflow, steps are skipped by both, and it comes down."""
    check_two_ranks(tmp_path)


@pytest.mark.long
def test_it_trains_so_in_parts_too(tmp_path):
    """FSDP2 gathers blocks in float16, and sums gradients in float32: the same up to that."""
    for kind in ("ddp", "fsdp"):
        (tmp_path / kind).mkdir()
    whole = check_two_ranks(tmp_path / "ddp")
    parts = check_two_ranks(tmp_path / "fsdp", "--parallel.kind", "fsdp")
    assert parts == pytest.approx(whole, rel=2e-3)
