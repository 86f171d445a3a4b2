"""GELU and squared ReLU against torch's own, and what every dense kind keeps for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from shoestring.nn.feed_forward import GELU, SquaredReLU, SwiGLU, _SquaredReLU
from shoestring.nn.feed_forward_config import GELUConfig, SquaredReLUConfig, SwiGLUConfig

KINDS = {
    "swiglu": (SwiGLU, SwiGLUConfig(width=24)),
    "swiglu with biases": (SwiGLU, SwiGLUConfig(width=24, bias=True)),
    "gelu": (GELU, GELUConfig(width=24, bias=True)),
    "gelu tanh": (GELU, GELUConfig(width=24, tanh=True)),
    "relu2": (SquaredReLU, SquaredReLUConfig(width=24, bias=True)),
    "relu2 without biases": (SquaredReLU, SquaredReLUConfig(width=24)),
}


def definition(name: str, p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    def dense(part: str, value: torch.Tensor) -> torch.Tensor:
        return F.linear(value, p[f"{part}.weight"], p.get(f"{part}.bias"))

    if name.startswith("swiglu"):
        return dense("down", F.silu(dense("gate", x)) * dense("up", x))
    if name.startswith("gelu"):
        return dense("down", F.gelu(dense("up", x), approximate="tanh" if "tanh" in name else "none"))
    return dense("down", dense("up", x).clamp(min=0) ** 2)


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_and_its_gradients_agree_with_the_definition_in_float64(name):
    torch.manual_seed(0)
    kind, config = KINDS[name]
    layer = kind(config, 16).double()
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    weighting = torch.randn(2, 3, 16, dtype=torch.float64)
    y, aux = layer(x)
    expected = definition(name, dict(layer.named_parameters()), x)
    assert aux == {}
    assert_close(y, expected)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((y * weighting).sum(), inputs)
    plain = torch.autograd.grad((expected * weighting).sum(), inputs)
    for one, other in zip(ours, plain, strict=True):
        assert_close(one, other)


def test_squared_relu_passes_a_numerical_gradient_check():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_SquaredReLU.apply, (x,))


@pytest.mark.parametrize("name", KINDS)
def test_the_parameter_count_is_what_is_allocated(name):
    kind, config = KINDS[name]
    assert config.parameters(16) == sum(p.numel() for p in kind(config, 16).parameters())
    assert config.active_parameters(16) == config.parameters(16)


def kept_numbers(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """Numbers that stay alive for the backward pass, besides the parameters and the input."""
    known = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), x]}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = layer(x)
    y.sum().backward()
    return sum(found.values())


@pytest.mark.parametrize(("name", "widths"), [("swiglu", 2), ("gelu", 1), ("relu2", 1)])
def test_only_what_enters_the_activation_is_kept(name, widths):
    kind, config = KINDS[name]
    x = torch.randn(2, 3, 16, requires_grad=True)
    assert kept_numbers(kind(config, 16), x) == widths * 6 * 24


def test_the_configs_are_told_apart_by_kind_without_torch():
    import subprocess
    import sys

    code = (
        "import sys\nfrom pydantic import TypeAdapter\n"
        "from shoestring.nn.feed_forward_config import FeedForwardConfig\n"
        "made = TypeAdapter(FeedForwardConfig).validate_python({'kind': 'relu2', 'width': 8})\n"
        "print(type(made).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SquaredReLUConfig", "False"]
