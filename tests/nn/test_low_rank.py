"""Low-rank linears: the best factorization of a weight, of a layer's outputs, and the order of replacements."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from shoestring.core.errors import ConfigError
from shoestring.nn.config import LowRankConfig
from shoestring.nn.linear import Linear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.quantized.config import Int8Config
from shoestring.nn.replace import ADAPTED, FACTORIZED, QUANTIZED, from_linear, replace_linears, stage_of


def dense(inputs: int = 12, outputs: int = 10, bias: bool = True) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias).double()


def inputs(rows: int = 200, width: int = 12) -> torch.Tensor:
    """Of very unequal spread, in directions that are no axes."""
    random = torch.Generator().manual_seed(1)
    mixing = torch.randn(width, width, generator=random, dtype=torch.float64)
    return torch.randn(rows, width, generator=random, dtype=torch.float64) * torch.logspace(1, -2, width) @ mixing


def test_the_truncated_svd_errs_by_the_singular_values_that_it_drops():
    linear = dense()
    made = from_linear(linear, LowRankConfig(rank=3))
    error = made.to_linear().weight - linear.weight
    assert_close(error.norm() ** 2, torch.linalg.svdvals(linear.weight)[3:].square().sum())
    assert torch.equal(made.second.bias, linear.bias)


def test_a_weight_of_low_rank_is_kept_exactly_there_and_back():
    linear = dense()
    with torch.no_grad():
        linear.weight.copy_(torch.randn(10, 3, dtype=torch.float64) @ torch.randn(3, 12, dtype=torch.float64))
    made, x = from_linear(linear, LowRankConfig(rank=3)), inputs(7)
    assert_close(made(x), linear(x))
    assert_close(made.to_linear()(x), linear(x))


def test_the_inputs_second_moment_gives_the_smallest_error_of_the_outputs():
    """By a theorem the least error is the tail of the singular values of the outputs themselves."""
    linear, x = dense(bias=False), inputs()
    moment = x.t() @ x / len(x)

    def error(**data) -> torch.Tensor:
        return (from_linear(linear, LowRankConfig(rank=3), **data)(x) - linear(x)).norm() ** 2

    assert_close(error(second_moment=moment), torch.linalg.svdvals(linear(x))[3:].square().sum())
    assert error(second_moment=moment) < 0.7 * error()


def test_inputs_that_never_leave_a_subspace_do_no_harm():
    linear, x = dense(bias=False), inputs()
    x[:, :5] = 0
    made = from_linear(linear, LowRankConfig(rank=4), second_moment=x.t() @ x)
    assert torch.isfinite(made.first.weight).all()
    best = torch.linalg.svdvals(linear(x))[4:].square().sum()
    assert_close((made(x) - linear(x)).norm() ** 2, best, rtol=1e-4, atol=1e-8)


def test_factors_that_would_not_be_smaller_leave_the_matrix_dense():
    assert LowRankConfig(rank=5).rank_of(12, 10) == 5  # 5·22 < 120
    assert LowRankConfig(rank=6).rank_of(12, 10) is None
    linear = dense()
    assert from_linear(linear, LowRankConfig(rank=6)) is linear


def test_fresh_factors_make_entries_of_the_spread_asked_for():
    made = LowRankLinear(300, 200, 20)
    made.initialize(torch.Generator().manual_seed(0), 0.02)
    assert made.to_linear().weight.std().item() == pytest.approx(0.02, rel=0.1)


# The order of replacements


def test_quantizing_comes_before_adapting_and_never_after():
    quantized = from_linear(dense(), Int8Config())
    adapted = from_linear(quantized, LoRAConfig(rank=2))
    assert (stage_of(quantized), stage_of(adapted)) == (QUANTIZED, ADAPTED)
    with pytest.raises(ConfigError, match="adapted cannot become quantized"):
        from_linear(adapted, Int8Config())
    with pytest.raises(ConfigError, match="quantized cannot become factorized"):
        from_linear(quantized, LowRankConfig(rank=2))
    assert stage_of(from_linear(dense(), LowRankConfig(rank=2))) == FACTORIZED
    assert stage_of(adapted.to_linear()) == 0


def test_linears_are_replaced_in_place_where_chosen():
    root = nn.ModuleDict({"a": dense(), "b": nn.ModuleDict({"c": dense()})})
    assert replace_linears(root, LoRAConfig(rank=2), lambda name, linear: name == "b.c") == ["b.c"]
    assert stage_of(root["b"]["c"]) == ADAPTED and stage_of(root["a"]) == 0
