"""AdamW moves weights as torch's does, bit for bit, and no optimizer of ours imports torch's compiler."""

import sys

import pytest
import torch

from shoestring.train.adamw import AdamW
from shoestring.train.optimizer import build_optimizer
from shoestring.train.optimizer_config import AdafactorConfig, AdamWConfig, LionConfig, MuonConfig
from tests.train import tiny

SETTINGS = {"lr": 3e-2, "betas": (0.8, 0.9), "eps": 1e-6}


def _train(make, dtypes):
    random = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5, 3, generator=random).to(dtype)) for dtype in dtypes]
    optimizer = make([{"params": parameters[:2], "weight_decay": 0.3}, {"params": parameters[2:], "weight_decay": 0.0}])
    for _ in range(3):
        for parameter in parameters[:-1]:  # the last has no gradient
            parameter.grad = torch.randn(5, 3, generator=random).to(parameter.dtype)
        optimizer.step()
    return parameters, [optimizer.state[parameter] for parameter in parameters]


@pytest.mark.parametrize("dtypes", [[torch.float32] * 4, [torch.float32, torch.bfloat16, torch.float64, torch.float32]])
def test_weights_and_moments_are_those_of_torchs_fused_adamw(dtypes):
    ours, states = _train(lambda groups: AdamW(groups, **SETTINGS), dtypes)
    theirs, expected = _train(lambda groups: torch.optim.AdamW(groups, **SETTINGS, fused=True), dtypes)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(states[:-1], expected[:-1], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not states[-1]["exp_avg"].any() and states[-1]["step"] == 0


@pytest.mark.parametrize(
    "config", [AdamWConfig(), AdamWConfig(state="8bit"), MuonConfig(), AdafactorConfig(), LionConfig()]
)
def test_optimizers_do_without_torchs_compiler(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    # It remembers that the compiler was imported before.
    monkeypatch.delattr(torch.optim.Optimizer.add_param_group.__wrapped__, "__dynamo_disable", raising=False)
    model = tiny.model()
    before = model.norm.weight.detach().clone()
    optimizer = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(model.norm.weight, before)
    with pytest.raises(ImportError):
        torch.optim.AdamW(model.parameters())
