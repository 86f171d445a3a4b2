"""The mixture of experts against its dense twin, its balance rules, and its replay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from shoestring.core.filled import filled, filled_down, filled_sizes
from shoestring.nn import moe
from shoestring.nn.feed_forward_config import MoEConfig
from shoestring.nn.moe import MixtureOfExperts, mixture_plain, update_expert_biases
from shoestring.nn.replay import Replay


def mixture(seed: int = 0, width: int = 16, **settings) -> MixtureOfExperts:
    torch.manual_seed(seed)
    config = MoEConfig(**{"width": 12, "experts": 6, "active": 2, **settings})
    return MixtureOfExperts(config, width).double()


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "settings",
    [{}, {"active": 1}, {"active": 6}, {"shared_width": 8}, {"normalize": False}, {"balance": "bias"}],
    ids=str,
)
def test_sorted_experts_agree_with_every_expert_on_every_token(settings):
    layer = mixture(**settings)
    x = random(2, 9, 16).requires_grad_()
    weighting = random(2, 9, 16, seed=2)
    inputs = [x, *(p for name, p in layer.named_parameters() if name != "choice_bias")]
    ours = torch.autograd.grad((layer(x)[0] * weighting).sum(), inputs)
    plain = torch.autograd.grad((mixture_plain(layer, x) * weighting).sum(), inputs, materialize_grads=True)
    assert_close(layer(x)[0], mixture_plain(layer, x))
    for one, other in zip(ours, plain, strict=True):
        assert_close(one, other)


def test_experts_that_are_filled_up_give_the_same(monkeypatch):
    layer = mixture()
    x, weighting = random(2, 9, 16).requires_grad_(), random(2, 9, 16, seed=2)
    inputs = [x, *layer.parameters()]
    plain = layer(x)[0]
    expected = torch.autograd.grad((plain * weighting).sum(), inputs)
    monkeypatch.setattr(moe, "filled", lambda rows: -(-rows // 4) * 4)
    monkeypatch.setattr(moe, "filled_up", lambda x, rows: True)
    seen: list[int] = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    filled = layer(x)[0]
    assert seen and all(rows % 4 == 0 for rows in seen)
    assert_close(filled, plain)
    for one, other in zip(torch.autograd.grad((filled * weighting).sum(), inputs), expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("compute", "rows"), [(torch.bfloat16, 120), (torch.float32, 120), (torch.bfloat16, 8)])
def test_experts_are_filled_up_where_products_are_compiled_for_every_number_of_rows(compute, rows):
    layer = mixture().float()
    seen: list[int] = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == torch.bfloat16):
        layer(random(2, rows, 16).float())
    filled = compute == torch.bfloat16 and rows > 100
    assert all(count % moe.FILLED == 0 for count in seen) == filled


def test_few_numbers_of_rows_are_filled_up_to():
    seen = {filled(rows) for rows in range(1, 2049)}
    assert all(rows <= filled(rows) < max(rows + moe.FILLED, 1.125 * rows) for rows in range(2049))
    assert sorted(seen)[:3] == [32, 64, 96]
    assert len(seen) == filled_sizes(2048) == 32
    assert filled_sizes(512) == 16
    assert [filled_down(rows) for rows in (20, 63, 381, 1023, 1024)] == [20, 32, 352, 960, 1024]


def test_each_expert_sees_only_the_tokens_that_chose_it():
    layer = mixture()
    seen: list[int] = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    layer(random(2, 9, 16))
    assert sum(seen) == 2 * 9 * 2
    assert max(seen) < 18


def test_an_expert_without_tokens_gets_a_gradient_of_zeros():
    layer = mixture()
    x = random(1, 1, 16)
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.experts.parameters())
    assert sum(bool(expert.up.weight.grad.any()) for expert in layer.experts) == 2


def test_no_tokens_give_no_rows():
    y, aux = mixture()(random(2, 0, 16))
    assert y.shape == (2, 0, 16) and aux == {}


@pytest.mark.parametrize("settings", [{}, {"shared_width": 8}, {"balance": "bias"}], ids=str)
def test_the_parameter_counts_are_what_is_allocated_and_used(settings):
    layer = mixture(**settings)
    assert layer.config.parameters(16) == sum(p.numel() for p in layer.parameters())
    layer(random(1, 1, 16))[0].sum().backward()
    used = sum(p.numel() for p in layer.parameters() if p.grad is not None and p.grad.any())
    assert used == layer.config.active_parameters(16)


def test_more_active_experts_than_there_are_is_refused():
    with pytest.raises(ValidationError, match=r"active \(3\) must be at most experts \(2\)"):
        MoEConfig(width=4, experts=2, active=3)


# Balance


def test_the_balance_loss_is_switchs():
    layer = mixture(balance_weight=0.5)
    x = random(2, 50, 16)
    probabilities = F.softmax(x.flatten(0, 1) @ layer.router.weight.T, -1)
    chosen = probabilities.topk(2).indices
    shares = torch.stack([(chosen == e).any(1).double().mean() for e in range(6)])
    expected = 0.5 * 6 * (shares * probabilities.mean(0)).sum()
    assert_close(layer(x)[1]["expert_balance"], expected)


def test_the_balance_loss_evens_out_the_experts():
    layer = mixture(balance_weight=1.0)
    with torch.no_grad():
        layer.router.weight[0] += 0.5 * torch.ones(16)
    x = random(4, 64, 16) + 1.0
    optimizer = torch.optim.SGD(layer.router.parameters(), lr=0.3)

    def busiest() -> float:
        return torch.bincount(layer.route(x.flatten(0, 1))[1].flatten(), minlength=6).max().item() / 256

    before = busiest()
    for _ in range(60):
        optimizer.zero_grad()
        layer(x)[1]["expert_balance"].backward()
        optimizer.step()
    assert before > 0.9 and busiest() < 0.6


def test_the_bias_moves_against_the_load_by_its_rate():
    layer = mixture(balance="bias", bias_rate=0.25)
    x = random(2, 50, 16)
    load = torch.bincount(layer.route(x.flatten(0, 1))[1].flatten(), minlength=6).double()
    _, aux = layer(x)
    assert aux["expert_bias"].item() == 0.0
    aux["expert_bias"].backward()
    update_expert_biases(layer)
    assert_close(layer.choice_bias.detach(), -0.25 * (load - load.mean()).sign())
    assert layer.choice_bias.grad is None


def test_bias_balancing_evens_out_the_experts_and_leaves_the_weights_alone():
    layer = mixture(balance="bias", bias_rate=0.01)
    with torch.no_grad():
        layer.router.weight[0] += 0.1 * torch.ones(16)
    x = random(4, 64, 16) + 1.0
    probabilities = layer.route(x.flatten(0, 1))[0]

    def busiest() -> float:
        return torch.bincount(layer.route(x.flatten(0, 1))[1].flatten(), minlength=6).max().item() / 256

    before = busiest()
    for _ in range(100):
        layer(x)[1]["expert_bias"].backward()
        update_expert_biases(layer)
    assert before > 0.7 and busiest() < 0.5
    _, chosen, weights = layer.route(x.flatten(0, 1))
    own = probabilities.gather(1, chosen)
    assert_close(weights, own / own.sum(-1, keepdim=True))


# Replay


def test_a_recomputed_layer_sends_its_tokens_the_same_way_on_changed_inputs():
    layer = mixture()
    x, other = random(18, 16), random(18, 16) + 0.7 * random(18, 16, seed=3)
    assert not torch.equal(layer.route(x)[1], layer.route(other)[1])  # or the test would show nothing
    choices = Replay()
    with choices.run():
        first = layer.route(x)[1]
    for _ in range(2):
        with choices.run():
            assert torch.equal(layer.route(other)[1], first)


def test_a_checkpointed_layer_has_the_gradients_of_a_plain_one():
    layer = mixture()
    x = random(2, 9, 16).requires_grad_()
    choices = Replay()

    def run(x: torch.Tensor) -> torch.Tensor:
        with choices.run():
            y, aux = layer(x)
            return y.pow(2).sum() + aux["expert_balance"]

    inputs = [x, *layer.parameters()]
    plain = torch.autograd.grad(run(x), inputs)
    choices = Replay()
    again = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), inputs)
    for one, other in zip(again, plain, strict=True):
        assert torch.equal(one, other)
