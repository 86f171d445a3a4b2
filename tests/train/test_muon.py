"""Muon's step is the formula's; matrices go to it and everything else to AdamW; together is one by one."""

import math

import pytest
import torch
from torch import nn

from shoestring.core.errors import ConfigError
from shoestring.plan import moments
from shoestring.train import muon
from shoestring.train.muon import COEFFICIENTS, Muon, newton_schulz
from shoestring.train.optimizer import block_matrices, build_optimizer
from shoestring.train.optimizer_config import BesideMuonConfig, MuonConfig
from tests.train import tiny

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 10), (3, 16, 6), (3, 6, 16)]


def parameters(shapes, seed=0):
    random = torch.Generator().manual_seed(seed)
    found = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    return found, random


def quintic(matrix, iterations):
    """U·p(S)·Vᵀ in float64 by a singular value decomposition: what Newton-Schulz makes by products alone."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        s = a * s + b * s**3 + c * s**5
    return (u * s.unsqueeze(-2)) @ vh


@pytest.mark.parametrize("scaling", ["spectral", "rms"])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_equal_the_formula_in_float64(scaling, cautious, nesterov):
    moved, random = parameters(SHAPES)
    optimizer = Muon(moved, 0.05, 0.9, nesterov, 0.3, cautious, scaling)
    expected = [p.detach().double() for p in moved]
    momenta = [torch.zeros_like(p) for p in expected]
    for _ in range(3):
        for number, parameter in enumerate(moved):
            parameter.grad = torch.randn(parameter.shape, generator=random)
            gradient = parameter.grad.double()
            momenta[number] = 0.9 * momenta[number] + 0.1 * gradient
            towards = 0.9 * momenta[number] + 0.1 * gradient if nesterov else momenta[number]
            step = quintic(towards, 5)
            sides = parameter.shape[-2:]
            outputs, inputs = sides if parameter.ndim == 2 else reversed(sides)
            length = math.sqrt(max(1, outputs / inputs)) if scaling == "spectral" else 0.2 * math.sqrt(max(sides))
            old = expected[number]
            decayed = torch.where(step * old > 0, old, 0) if cautious else old
            expected[number] = old - 0.05 * 0.3 * decayed - 0.05 * length * step
        optimizer.step()
    for parameter, wanted in zip(moved, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(16, 16), (16, 40)])
@pytest.mark.parametrize("gram", [False, True])
def test_singular_values_lie_where_the_paper_puts_them(shape, gram):
    """[0.68, 1.13] after five iterations, from any in [0.01, 1]; the singular vectors stay."""
    random = torch.Generator().manual_seed(1)
    values = torch.logspace(-2, 0, 16, dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(side, 16, generator=random, dtype=torch.float64))[0] for side in shape)
    result = newton_schulz(((u * values) @ v.T).float().unsqueeze(0), gram=gram)[0].double()
    found = torch.diagonal(u.T @ result @ v)
    assert 0.68 <= found.min() and found.max() <= 1.13
    torch.testing.assert_close((u * found) @ v.T, result, rtol=0, atol=1e-4)
    one = newton_schulz(((u * values) @ v.T).float().unsqueeze(0), 1, gram=gram)[0].double()
    assert torch.diagonal(u.T @ one @ v).min() < 0.1, "one iteration is far from there"


def test_iterations_on_the_gram_matrix_are_those_on_the_matrix():
    random = torch.Generator().manual_seed(2)
    x = torch.randn(3, 12, 50, generator=random, dtype=torch.float64)
    x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    torch.testing.assert_close(newton_schulz(x, gram=True), newton_schulz(x, gram=False), rtol=1e-9, atol=1e-9)
    y = newton_schulz(x.float(), gram=True)
    torch.testing.assert_close(y, newton_schulz(x.float(), gram=False), rtol=1e-4, atol=1e-5)
    assert newton_schulz(x.float()).equal(y), "which a wide matrix takes"


def test_matrices_that_go_together_move_as_one_by_one(monkeypatch):
    together, _ = parameters([(8, 12)] * 5 + [(3, 8, 12)] + [(12, 8)] * 2)
    alone, random = parameters([(8, 12)] * 5 + [(3, 8, 12)] + [(12, 8)] * 2)
    gradients = [torch.randn(p.shape, generator=random) for p in together]
    calls = []
    monkeypatch.setattr(muon, "newton_schulz", lambda x, *rest: calls.append(len(x)) or newton_schulz(x, *rest))
    for some in (together, alone):
        for parameter, gradient in zip(some, gradients, strict=True):
            parameter.grad = gradient
        optimizer = Muon(some, weight_decay=0.1, cautious=True)
        optimizer.step()
        if some is together:
            assert sorted(calls) == [2, 3, 5]
            calls.clear()
            monkeypatch.setattr(moments, "PORTION", 1)
    assert calls == [1] * 10
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "changes", [{}, {"tied_head": False}, {"position": {"kind": "learned"}}, tiny.EXPERTS], ids=str
)
def test_matrices_in_blocks_go_to_muon_and_everything_else_to_adamw(changes):
    model = tiny.model(**changes)
    optimizer = build_optimizer(MuonConfig(), model)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in owned}) == len(owned) and {id(p) for p in owned} == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        expected = name.startswith("blocks.") and parameter.ndim == 2
        assert (set(optimizer.state[parameter]) == {"momentum_buffer"}) == expected, name


def test_tables_and_vectors_in_blocks_are_not_matrices_of_linear_maps():
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Embedding(5, 4)])
    model.blocks[0].experts = nn.Parameter(torch.zeros(2, 4, 6))
    assert block_matrices(model) == {id(model.blocks[0].weight), id(model.blocks[0].experts)}


def test_embedding_and_head_have_rates_of_their_own():
    model = tiny.model(tied_head=False)
    beside = BesideMuonConfig(learning_rate=1e-3, embedding_learning_rate=0.3, head_learning_rate=0.008)
    optimizer = build_optimizer(MuonConfig(adamw=beside), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert (rates[id(model.embedding.weight)], rates[id(model.head.weight)]) == (0.3, 0.008)
    assert (rates[id(model.norm.weight)], rates[id(model.blocks[0].attention.query.weight)]) == (1e-3, 0.02)
    with pytest.raises(ConfigError, match="head is its embedding"):
        build_optimizer(MuonConfig(adamw=beside), tiny.model())


def test_with_scaling_rms_one_rate_serves_both():
    one = MuonConfig.model_validate({"scaling": "rms", "learning_rate": 1e-3})
    assert one.adamw.learning_rate == 1e-3
    assert MuonConfig.model_validate({"scaling": "rms"}).learning_rate == 3e-4
    own = MuonConfig.model_validate({"scaling": "rms", "learning_rate": 1e-3, "adamw": {"learning_rate": 2e-3}})
    assert own.adamw.learning_rate == 2e-3 and MuonConfig.model_validate(own.model_dump()) == own


def test_a_step_with_scaling_rms_is_as_long_as_adamws():
    moved, random = parameters([(32, 32), (96, 32)])
    before = [p.detach().clone() for p in moved]
    for parameter in moved:
        parameter.grad = torch.randn(parameter.shape, generator=random)
    Muon(moved, 1.0, scaling="rms").step()
    for parameter, old in zip(moved, before, strict=True):
        assert 0.15 < (parameter.detach() - old).square().mean().sqrt() < 0.25
