"""What the loss feels of each matrix: by the whole model's gradients, and by what errors in outputs do to the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.compression.calibration import Calibration
from shoestring.compression.factorize import sensitivity
from shoestring.compression.factorize.sensitivity import loss_weights
from shoestring.compression.passage import InMemory
from shoestring.compression.quantize.config import LINEARS
from shoestring.data.batch import Batch
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model
from shoestring.models.weight_files import WeightFiles
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from tests.compression.prune.prunable import prunable, text_of
from tests.finetuning import tiny

NAMES = [f"{index}.{name}" for index in range(3) for name in LINEARS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases on query, key and value."""
    return prunable(tmp_path_factory.mktemp("model") / "model", "qwen2")


@pytest.fixture(scope="module")
def text(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return text_of(model, tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl"))


def weights(model: Path, batches: list[Batch]) -> dict[str, float]:
    done: list[int] = []
    with WeightFiles(model) as files, torch.no_grad():
        found = loss_weights(files, batches, InMemory, lambda: done.append(1))
    assert len(done) == 6
    return found


def caught_as(name: str, caught: dict[str, torch.Tensor]) -> Any:
    def see(module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.retain_grad()
        caught[name] = output

    return see


def outputs_and_gradients(decoder: Decoder, batches: list[Batch]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """[N, O] of each linear, without its bias, and of the loss with respect to it, padding left out."""
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in NAMES}
    for batch in batches:
        caught: dict[str, torch.Tensor] = {}

        handles = [
            decoder.get_submodule(f"blocks.{name}").register_forward_hook(caught_as(name, caught)) for name in NAMES
        ]
        forward_loss(decoder, next_token, batch)[0].sum.backward()
        for handle in handles:
            handle.remove()
        there = batch.segments_BT >= 0
        for name, output in caught.items():
            bias = decoder.get_submodule(f"blocks.{name}").bias
            assert output.grad is not None
            y = output.detach() if bias is None else output.detach() - bias.detach()
            found[name].append((y[there].double(), output.grad[there].double()))
    return {name: (torch.cat([y for y, _ in some]), torch.cat([g for _, g in some])) for name, some in found.items()}


def test_they_are_those_of_the_whole_models_gradients(model: Path, text: Calibration) -> None:
    found = weights(model, text.calibrating)
    assert set(found) == set(NAMES)
    decoder = load_model(model).requires_grad_(True)
    for name, (y_NO, g_NO) in outputs_and_gradients(decoder, text.calibrating).items():
        pairs_NN = g_NO @ y_NO.t()  # of every gradient with every output, as if they had nothing to do with each other
        expected = 0.5 * float(pairs_NN.square().sum()) / (len(y_NO) * float(y_NO.square().sum()))
        assert found[name] == pytest.approx(expected, rel=1e-3), name


def test_what_the_loss_is_said_to_feel_most_it_feels_most(model: Path, text: Calibration) -> None:
    """Random errors of one size in the outputs of one linear at a time: their order by what they do to the loss."""
    found, decoder = weights(model, text.calibrating), load_model(model)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(forward_loss(decoder, next_token, batch)[0].sum) for batch in text.calibrating)

    whole, done = loss(), {}
    for name in NAMES:
        random, changes = torch.Generator().manual_seed(0), []
        for _ in range(4):
            error: list[torch.Tensor] = []

            def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
                error.append(torch.randn(y.shape, generator=random) * 0.1)  # noqa: B023
                return y + error[-1]  # noqa: B023

            handle = decoder.get_submodule(f"blocks.{name}").register_forward_hook(add)
            changes.append(abs(loss() - whole) / sum(float(part.square().sum()) for part in error))
            handle.remove()
        done[name] = sum(changes) / len(changes)
    ours, theirs = (torch.tensor([each[name] for name in NAMES]).argsort().argsort().double() for each in (found, done))
    assert float(torch.corrcoef(torch.stack((ours, theirs)))[0, 1]) > 0.5


def test_no_more_text_is_read_than_is_needed(model: Path, text: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "TOKENS", 1)
    assert weights(model, text.calibrating * 2) == weights(model, text.calibrating[:1])
