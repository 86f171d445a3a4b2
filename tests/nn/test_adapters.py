"""The bottlenecks: nothing changes at the beginning, the formula afterwards, and no vector adds nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from shoestring.nn.adapter_config import BottleneckConfig, InputAdapterConfig
from shoestring.nn.bottleneck import Bottleneck
from shoestring.nn.context import Context, make_context
from shoestring.nn.input_adapter import InputAdapter


def context(external: torch.Tensor | None) -> Context:
    return make_context(torch.zeros(2, 5, dtype=torch.int64), None, external_BTE=external)


def trained(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def test_fresh_adapters_change_nothing():
    torch.manual_seed(0)
    x, external = torch.randn(2, 5, 16), torch.randn(2, 5, 12)
    assert torch.equal(InputAdapter(InputAdapterConfig(external_width=12, width=4), 16)(x, context(external)), x)
    assert torch.equal(Bottleneck(BottleneckConfig(width=4), 16)(x), x)


def test_fresh_adapters_still_learn():
    torch.manual_seed(0)
    x, external = torch.randn(2, 5, 16), torch.randn(2, 5, 12)
    adapter = InputAdapter(InputAdapterConfig(external_width=12, width=4), 16)
    adapter(x, context(external)).pow(2).sum().backward()
    assert adapter.up.weight.grad.any()


def test_a_trained_adapter_is_up_of_silu_of_down():
    x, external = torch.randn(2, 5, 16), torch.randn(2, 5, 12)
    adapter = trained(InputAdapter(InputAdapterConfig(external_width=12, width=4), 16))
    expected = x + F.silu(external @ adapter.down.weight.T) @ adapter.up.weight.T
    assert_close(adapter(x, context(external)), expected)
    bottleneck = trained(Bottleneck(BottleneckConfig(width=4), 16))
    inner = F.silu(x @ bottleneck.down.weight.T + bottleneck.down.bias)
    assert_close(bottleneck(x), x + inner @ bottleneck.up.weight.T + bottleneck.up.bias)


def test_tokens_without_a_vector_are_left_alone_even_by_a_trained_adapter():
    x, external = torch.randn(2, 5, 16), torch.randn(2, 5, 12)
    external[:, :2] = 0
    adapter = trained(InputAdapter(InputAdapterConfig(external_width=12, width=4), 16))
    y = adapter(x, context(external))
    assert torch.equal(y[:, :2], x[:, :2]) and not torch.equal(y[:, 2:], x[:, 2:])
    assert torch.equal(adapter(x, context(None)), x)


def test_vectors_of_another_width_are_refused():
    adapter = InputAdapter(InputAdapterConfig(external_width=12, width=4), 16)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 11\), expected \(2, 5, 12\)"):
        adapter(torch.randn(2, 5, 16), context(torch.randn(2, 5, 11)))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (InputAdapter, InputAdapterConfig(external_width=12, width=4)),
        (Bottleneck, BottleneckConfig(width=4)),
    ],
)
def test_the_parameter_count_is_what_is_allocated(kind, config):
    assert config.parameters(16) == sum(p.numel() for p in kind(config, 16).parameters())
