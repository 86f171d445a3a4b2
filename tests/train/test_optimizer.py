"""The groups partition the parameters; the update is AdamW's."""

import pytest
import torch

from shoestring.train.objective import next_token
from shoestring.train.optimizer import build_optimizer, parameter_groups
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.resident import ResidentEngine
from tests.train import tiny

BIASES = {"attention": {**tiny.SHAPE["attention"], "qkv_bias": True, "qk_norm": True}}


@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, BIASES])
def test_each_parameter_is_in_one_group_and_only_matrices_decay(changes):
    model = tiny.model(**changes)
    decayed, undecayed = parameter_groups(model)
    grouped = [id(p) for p in decayed + undecayed]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters()})
    assert sum(p.numel() for p in decayed + undecayed) == model.config.parameter_count()
    assert all(p.ndim == 2 for p in decayed) and all(p.ndim == 1 for p in undecayed)


def test_a_tied_head_is_updated_once():
    model = tiny.model()
    assert model.head.weight is model.embedding.weight
    assert (
        sum(
            p is model.embedding.weight
            for g in build_optimizer(CONFIG, model).param_groups
            for p in g["params"]
        )
        == 1
    )


def test_frozen_parameters_are_left_out():
    model = tiny.model()
    model.embedding.weight.requires_grad_(False)
    assert all(p is not model.embedding.weight for group in parameter_groups(model) for p in group)


CONFIG = AdamWConfig(learning_rate=0.01, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.3)


def test_three_updates_equal_the_formula_in_float64():
    model = tiny.model()
    optimizer = build_optimizer(CONFIG, model)
    watched = {"matrix": model.blocks[0].attention.query.weight, "norm": model.norm.weight}
    expected = {name: p.detach().double() for name, p in watched.items()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    random = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        for name, parameter in watched.items():
            gradient = parameter.grad.double()
            decay = 0.3 if name == "matrix" else 0.0
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            mean, square = first[name] / (1 - 0.8**step), second[name] / (1 - 0.9**step)
            expected[name] = expected[name] * (1 - 0.01 * decay) - 0.01 * mean / (square.sqrt() + 1e-6)
        optimizer.step()
    for name, parameter in watched.items():
        torch.testing.assert_close(parameter.detach(), expected[name].float())


def test_choice_biases_of_experts_move_by_their_own_rule_after_a_step():
    experts = {"kind": "moe", "width": 16, "experts": 4, "balance": "bias", "bias_rate": 0.125}
    model = tiny.model(feed_forward=experts)
    optimizer = build_optimizer(AdamWConfig(), model)
    biases = [block.feed_forward.choice_bias for block in model.blocks]
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not owned & {id(bias) for bias in biases}
    ResidentEngine.around(model, next_token).forward_backward([tiny.batch(2), tiny.batch(2, seed=1)])
    signs = [bias.grad.sign() for bias in biases]
    optimizer.step()
    for bias, sign in zip(biases, signs, strict=True):
        assert torch.equal(bias.detach(), -0.125 * sign) and sign.any()
