"""The distance of predictions from the base's, and its gradient, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from shoestring.nn import base_distance as module
from shoestring.nn.base_distance import base_distance, base_distance_plain
from shoestring.nn.head import Head


def make_head(softcap: float | None) -> Head:
    weight = nn.Parameter(torch.randn(50, 12, dtype=torch.float64), requires_grad=False)
    return Head(weight, softcap)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows_of_a_chunk", [4, 100])
def test_value_and_gradient_are_those_of_the_definition(
    softcap: float | None, rows_of_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compared_rows", lambda vocabulary: rows_of_a_chunk)
    monkeypatch.setattr(module, "block_rows", lambda width: 20)
    torch.manual_seed(0)
    head, base = make_head(softcap), torch.randn(11, 12, dtype=torch.float64)
    hidden = torch.randn(11, 12, dtype=torch.float64, requires_grad=True)
    (0.5 * base_distance(hidden, base, head)).backward()
    twin = hidden.detach().clone().requires_grad_()
    expected = base_distance_plain(twin, base, head)
    (0.5 * expected).backward()
    # The plain twin takes log-probabilities in float32.
    assert_close(base_distance(hidden, base, head).double(), expected.double(), rtol=1e-5, atol=1e-5)
    assert_close(hidden.grad, twin.grad, rtol=1e-4, atol=1e-6)
    assert float(expected.detach()) > 1


def test_it_is_zero_and_flat_where_nothing_moved() -> None:
    head, base = make_head(None), torch.randn(5, 12, dtype=torch.float64)
    hidden = base.clone().requires_grad_()
    distance = base_distance(hidden, base, head)
    distance.backward()
    assert float(distance.detach()) == pytest.approx(0, abs=1e-9) and float(hidden.grad.abs().max()) < 1e-9
