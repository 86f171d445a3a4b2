"""The most that tensors take beside linears that files have in few bits, and of factors: predicted and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.kernels import allocator
from shoestring.models.builder import build
from shoestring.models.folder import load_model, save_model
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.replace import replace_linears
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.offload.packed_layers import block_linears
from shoestring.plan.shapes import EngineSpec, JobShape, Training
from shoestring.train.resident import ResidentEngine
from tests.plan import counted
from tests.plan.counted import RANK
from tests.plan.test_predicted_and_counted import check

FORMS: dict[str, dict[str, Any]] = {
    "four bits": {"bits": 4, "group": 16},
    "three bits": {"bits": 3, "group": 32, "scale": "float32"},
    "zero points": {"bits": 4, "group": 16, "symmetric": False},
    "activations": {"bits": 8, "group": None, "activations": "int8"},
}


@pytest.fixture(autouse=True)
def _counting() -> None:
    assert allocator.install(), "the allocator counts where it can be compiled"


def folder(place: Path, form: str) -> Path:
    decoder = build(counted.config(64), seed=1)
    replace_linears(decoder, PackedConfig(**FORMS[form]), lambda name, _: name.startswith("blocks."))
    save_model(decoder, place)
    return place


def training(place: Path, **settings: Any) -> Training:
    with WeightFiles(place, packed=True) as files:
        return Training(False, RANK, packed=frozenset(block_linears(files).items()), **settings)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_in_memory(tmp_path: Path, form: str, dora: bool) -> None:
    place, config = folder(tmp_path / "q", form), counted.config(64)
    how = training(place, dora=dora)

    def make():
        decoder = load_model(place)
        counted.adapt(decoder, how)
        return decoder

    parts = counted.batches(1, 2, 200, config.vocabulary)
    found = counted.counted(lambda: ResidentEngine(make), parts)
    check(counted.predicted(JobShape(config, 2, 200, how), EngineSpec("resident", 2)).tensor_bytes, found)


@pytest.mark.parametrize("form", FORMS)
def test_streamed(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    place, config = folder(tmp_path / "q", form), counted.config(64)
    how = training(place)
    open_streamed(place).close()  # which makes the store, where there is one

    def make():
        decoder = open_streamed(place)
        counted.adapt(decoder, how)
        return decoder

    parts = counted.batches(3, 2, 100, config.vocabulary)
    found = counted.counted(lambda: StreamedEngine(make), parts)
    spec = EngineSpec("streamed", 2, "full", 2, "packed")
    check(counted.predicted(JobShape(config, 6, 100, how, measured=False), spec).tensor_bytes, found)


@pytest.mark.parametrize("how", [Training(), Training(False, RANK)], ids=["whole", "adapters"])
def test_matrices_of_ranks_of_their_own_are_planned_as_their_mean(how: Training) -> None:
    """Nearly: ranks are whole numbers, and the highest block's may be the largest."""
    names = ("attention.query", "feed_forward.gate", "feed_forward.down")
    linear = {"kind": "factorized", "names": names, "ranks": ((6, 12, 9), (8, 10, 0), (7, 14, 11))}
    config = counted.config(64, linear=linear)
    parts = counted.batches(2, 2, 100, config.vocabulary)
    found = counted.counted(lambda: ResidentEngine(lambda: counted.model(config, how)), parts)
    check(counted.predicted(JobShape(config, 4, 100, how), EngineSpec("resident", 2)).tensor_bytes, found, 0.04)
