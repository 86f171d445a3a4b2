"""Matrices with ranks of their own in the config: what is built, counted, planned and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from shoestring.core.errors import ModelFileError
from shoestring.models import count
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.nn.low_rank import LowRankLinear
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Training
from tests.finetuning.tiny import SHAPE

NAMES = ["attention.query", "feed_forward.down", "feed_forward.up"]
RANKS = [[3, 5, 0], [0, 7, 2]]


def config(**linear: Any) -> ModelConfig:
    linear = {"kind": "factorized", "names": NAMES, "ranks": RANKS, **linear}
    return ModelConfig.model_validate({**SHAPE, "vocabulary": 64, "linear": linear})


def test_each_matrix_has_its_rank_and_the_count_is_what_is_there() -> None:
    shape = config()
    decoder = build(shape, seed=0)
    found = {name: one.rank for name, one in decoder.named_modules() if isinstance(one, LowRankLinear)}
    assert found == {
        "blocks.0.attention.query": 3, "blocks.0.feed_forward.down": 5,
        "blocks.1.feed_forward.down": 7, "blocks.1.feed_forward.up": 2,
    }  # fmt: skip
    parts = shape.parameters()
    assert sum(parts.values()) == sum(parameter.numel() for parameter in decoder.parameters())
    blocks = [dict(block.named_parameters()) for block in decoder.blocks]
    for part, prefix in (("attention", "attention."), ("feed-forward", "feed_forward.")):
        there = sum(p.numel() for block in blocks for name, p in block.items() if name.startswith(prefix))
        assert parts[part] == there, part


def test_operations_are_those_of_the_factors() -> None:
    dense = ModelConfig.model_validate({**SHAPE, "vocabulary": 64})
    less = 2 * (config().parameter_count() - dense.parameter_count())
    assert count.operations(config(), 16).matrices == count.operations(dense, 16).matrices + less
    kept = count.activations(config()).layers - count.activations(dense).layers
    assert kept == sum(map(sum, RANKS))


def test_it_comes_back_from_a_folder_and_learns(tmp_path: Path) -> None:
    decoder = build(config(), seed=0)
    save_model(decoder, tmp_path / "m")
    again, tokens = load_model(tmp_path / "m"), torch.arange(20).unsqueeze(0)
    assert again.config == config() and hash(again.config) == hash(config())
    with torch.no_grad():
        assert torch.equal(again(tokens)[0], decoder(tokens)[0])
    optimizer = torch.optim.AdamW(again.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        logits = again.head(again(tokens)[0])
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_is_planned_with_about_the_weights_that_are_there() -> None:
    machine = Machine(0, 1e9)
    dense = ModelConfig.model_validate({**SHAPE, "vocabulary": 64})
    shapes = [JobShape(one, 2, 32, Training()) for one in (config(), dense)]
    thin, whole = (dict(predict(shape, EngineSpec("resident", 2), machine).tensors)["weights"] for shape in shapes)
    there = 4 * config().parameter_count()
    assert there <= thin < 1.02 * there < whole


@pytest.mark.parametrize(
    ("linear", "said"),
    [
        ({"ranks": [[3, 5, 0]]}, "linear.ranks has 1 rows for 2 blocks"),
        ({"ranks": [[3, 5], [1, 1]]}, "ranks needs 3 whole numbers for each block"),
        ({"ranks": [[3, 5, -1], [1, 1, 1]]}, "ranks needs 3 whole numbers"),
        ({"ranks": [[33, 5, 1], [1, 1, 1]]}, "above 32, the full rank of attention.query"),
        ({"names": ["attention.query", "head", "feed_forward.up"]}, "'head' cannot be factorized by name"),
        ({"names": ["attention.query", "attention.query", "feed_forward.up"]}, "names has a matrix twice"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, linear: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**linear)
    save_model(build(config(), seed=0), tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values["shoestring"]["linear"] |= linear
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=said):
        read_config(tmp_path / "m")
