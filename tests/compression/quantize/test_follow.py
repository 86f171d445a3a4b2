"""Weights that follow the dense model are those of least squares, whichever sums are kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from shoestring.compression.passage import inputs_of
from shoestring.compression.quantize import follow as module
from shoestring.compression.quantize.blocks import quantize_block
from shoestring.compression.quantize.config import STAGES, quantize_config
from shoestring.compression.quantize.follow import DAMPING, follow, keeps_inputs
from shoestring.compression.quantize.gptq import damped_factor
from shoestring.nn.quantized.config import PackedConfig
from tests.compression.quantize.test_methods import block_and_text

PACKED = PackedConfig(bits=4, group=16)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_weights_are_those_of_least_squares_near_their_own(stage: tuple[str, ...], apart: bool, monkeypatch) -> None:
    monkeypatch.setattr(module, "keeps_inputs", lambda inputs, outputs: apart)
    block, passages = block_and_text()
    dense, own = block_and_text()
    random = torch.Generator().manual_seed(1)
    for passage in passages:
        passage.hidden_BTD = passage.hidden_BTD + 0.2 * torch.randn(passage.hidden_BTD.shape, generator=random)
    x_NI = torch.cat(list(inputs_of(block, stage[0], passages))).double()
    y_NI = torch.cat(list(inputs_of(dense, stage[0], own))).double()
    hessian = follow(block, dense, stage, passages, own, PACKED)
    H = x_NI.t() @ x_NI
    assert_close(hessian.sum_II, H, rtol=1e-5, atol=1e-2)
    kept_near = (DAMPING * H.diagonal().mean()).sqrt() * torch.eye(len(H), dtype=torch.float64)
    for name in stage:
        weight_OI = dense.get_submodule(name).weight.double()
        wanted = torch.cat([y_NI @ weight_OI.t(), kept_near @ weight_OI.t()])
        least = torch.linalg.lstsq(torch.cat([x_NI, kept_near]), wanted).solution.t()
        found = block.get_submodule(name).weight.double()
        assert_close(found, least, rtol=1e-3, atol=1e-5)
        off, was = ((x_NI @ each.t() - y_NI @ weight_OI.t()).square().sum() for each in (found, weight_OI))
        assert off < was


@torch.no_grad()
def test_weights_stay_where_nothing_has_changed() -> None:
    block, passages = block_and_text()
    dense, own = block_and_text()
    for stage in STAGES:
        follow(block, dense, stage, passages, own, PACKED)
        for name in stage:
            assert torch.equal(block.get_submodule(name).weight, dense.get_submodule(name).weight)


def test_the_smaller_sums_are_kept() -> None:
    assert keeps_inputs(576, [1536, 1536]) and not keeps_inputs(11_008, [2048])


def test_nothing_of_what_is_done_is_there_while_a_matrix_is_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a 3B model the inputs of a passage, and each linear that was rounded, take 90 MB."""
    (block, passages), (_, own) = block_and_text(), block_and_text()
    inputs: list[weakref.ref[torch.Tensor]] = []
    stages = [[weakref.ref(block.get_submodule(name)) for name in stage] for stage in STAGES]
    left: list[int] = []

    def watched(*given: Any) -> Iterator[torch.Tensor]:
        for x_NI in inputs_of(*given):
            inputs.append(weakref.ref(x_NI))
            yield x_NI
            del x_NI

    def factored(*given: Any) -> torch.Tensor:
        rounded = [linear for stage in stages[: len(left)] for linear in stage]
        left.append(sum(each() is not None for each in (*inputs, *rounded)))
        return damped_factor(*given)

    monkeypatch.setattr(module, "inputs_of", watched)
    monkeypatch.setattr(module, "damped_factor", factored)
    settings = quantize_config({"method": "gptq", "calibrate": "text", "group": 16})
    quantize_block(block, passages, PACKED, settings, lambda name, tensor: tensor, lambda: None, own)
    assert left == [0, 0, 0, 0] and len(inputs) == 8 * len(passages)
