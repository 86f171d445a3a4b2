"""A head in int8: loss and gradient beside float64 ones of the same rounded weights, and of the exact ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from shoestring.kernels import int8 as kernels
from shoestring.nn import frozen_head_loss
from shoestring.nn.base_distance import base_distance, base_distance_plain
from shoestring.nn.head import Head, OutputHead
from shoestring.nn.head_loss import head_loss
from shoestring.nn.quantized.config import Int4Config, Int8Config
from shoestring.nn.quantized.int8_head import Int8Head, head_for

WIDTH, VOCABULARY, STATES = 96, 3000, 60


def dense(softcap: float | None = None) -> Head:
    random = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=random), requires_grad=False)
    return Head(weight, softcap)


def problem() -> tuple[Tensor, Tensor]:
    """Hidden states with a few large columns, and labels of which every other is the likeliest token."""
    random = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(STATES, WIDTH, generator=random) * 0.3
    hidden_ND[:, [3, 40]] *= 6
    labels_N = torch.randint(0, VOCABULARY, (STATES,), generator=random)
    labels_N[::2] = dense()(hidden_ND[::2]).argmax(-1)
    return hidden_ND, labels_N


def loss_and_gradient(head: OutputHead, hidden_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    hidden_ND = hidden_ND.clone().requires_grad_()
    total, count = head_loss(hidden_ND, head, labels_N)
    return total.detach() / count, torch.autograd.grad(total, hidden_ND)[0]


def in_float64(head: OutputHead) -> OutputHead:
    return copy.deepcopy(head).double()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.fixture(params=["kernel", "twin"])
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "twin":
        monkeypatch.setattr(kernels, "_typed_kernel", lambda: None)


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1100, 8192])
def test_loss_and_gradient_are_near_those_in_float64(monkeypatch, softcap, rows):
    monkeypatch.setattr(frozen_head_loss, "block_rows", lambda width: rows)
    head, (hidden_ND, labels_N) = dense(softcap), problem()
    rounded = Int8Head.from_head(head)
    loss, gradient = loss_and_gradient(rounded, hidden_ND, labels_N)
    for judge, loss_tolerance, tolerance in ((in_float64(rounded), 2e-3, 0.015), (in_float64(head), 4e-3, 0.02)):
        exact_loss, exact = loss_and_gradient(judge, hidden_ND.double(), labels_N)
        assert exact.dtype == torch.float64
        assert_close(loss.double(), exact_loss, rtol=loss_tolerance, atol=0)
        assert error(gradient, exact) < tolerance
        # Errors of single states must not add up: what adapters learn from is the sum.
        assert error(gradient.sum(0), exact.sum(0)) < tolerance


@pytest.mark.parametrize("dithered", [True, False])
def test_the_tail_of_a_softmax_is_lost_only_without_dithering(monkeypatch, dithered):
    if not dithered:
        monkeypatch.setattr(kernels, "dither_rows", kernels.quantize_rows)
    # Three tokens, one for each scale, have three quarters; each of the others less than a 254th of such a one.
    head = dense()
    head.weight.data += 1.0  # rows have something in common, as tokens do
    head.weight.data[:, 0] = 0.0
    head.weight.data[1::1024, 0] = 8.0
    hidden_ND, labels_N = torch.zeros(STATES, WIDTH), torch.zeros(STATES, dtype=torch.int64)
    hidden_ND[:, 0] = 1.0
    rounded = Int8Head.from_head(head)
    _, gradient = loss_and_gradient(rounded, hidden_ND, labels_N)
    _, exact = loss_and_gradient(in_float64(rounded), hidden_ND.double(), labels_N)
    found = error(gradient.sum(0), exact.sum(0))
    assert found < 0.005 if dithered else found > 0.05


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("states", [1, 3])
def test_a_few_states_are_as_near(states):
    hidden_ND, labels_N = problem()
    head = Int8Head.from_head(dense())
    found, exact = (
        loss_and_gradient(judge, hidden_ND[:states].to(dtype), labels_N[:states])[1]
        for judge, dtype in ((head, torch.float32), (in_float64(head), torch.float64))
    )
    assert error(found, exact) < 0.05


def test_the_kernel_and_the_twin_agree(monkeypatch):
    head, (hidden_ND, labels_N) = Int8Head.from_head(dense()), problem()
    loss, gradient = loss_and_gradient(head, hidden_ND, labels_N)
    monkeypatch.setattr(kernels, "_typed_kernel", lambda: None)
    their_loss, theirs = loss_and_gradient(head, hidden_ND, labels_N)
    assert_close(loss, their_loss, rtol=1e-5, atol=0)
    assert error(gradient, theirs.double()) < 1e-3  # a number near a threshold may be rounded otherwise


def test_without_a_gradient_the_loss_is_the_same():
    head, (hidden_ND, labels_N) = Int8Head.from_head(dense()), problem()
    loss, _ = loss_and_gradient(head, hidden_ND, labels_N)
    with torch.no_grad():
        total, count = head_loss(hidden_ND, head, labels_N)
    assert torch.equal(total / count, loss)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logits_are_near_the_dense_ones(softcap):
    head, (hidden_ND, _) = dense(softcap), problem()
    for rows in (hidden_ND, hidden_ND[:1]):
        found, exact = Int8Head.from_head(head)(rows.unsqueeze(0)), head(rows.unsqueeze(0))
        assert found.shape == exact.shape and error(found, exact.double()) < 0.015


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_distance_from_the_base_goes_through_it_too(softcap):
    head, (hidden_ND, _) = Int8Head.from_head(dense(softcap)), problem()
    base_ND = hidden_ND + 0.1 * torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(2))
    hidden_ND.requires_grad_()
    found = base_distance(hidden_ND, base_ND, head)
    (gradient,) = torch.autograd.grad(found, hidden_ND)
    twin = hidden_ND.detach().double().requires_grad_()
    exact = base_distance_plain(twin, base_ND.double(), in_float64(dense(softcap)))
    assert_close(found.double(), exact.double(), rtol=0.05, atol=0)
    assert error(gradient, torch.autograd.grad(exact, twin)[0]) < 0.1


def test_a_head_is_in_int8_where_the_linears_compute_in_it():
    head = dense()
    assert isinstance(head_for(head, Int8Config(compute="int8")), Int8Head)
    for config in (None, Int8Config(), Int4Config()):
        assert head_for(head, config) is head
