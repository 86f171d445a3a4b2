"""Dense feed-forward layers, x_BTD -> (y_BTD, aux): SwiGLU, GELU, squared ReLU, each with inner width F.

`aux` holds extra losses, and is empty here. What stands before the last product is recomputed in the backward
pass instead of kept, so SwiGLU keeps 2F numbers per token instead of 4F, the others F instead of 2F.
SwiGLU's gradient is written by one fused function; `silu_product_plain` is the twin.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.kernels import swiglu
from shoestring.nn.bundle import bundled
from shoestring.nn.feed_forward_config import GELUConfig, SquaredReLUConfig, SwiGLUConfig
from shoestring.nn.linear import Linear
from shoestring.nn.recompute import recomputing

MakeLinear = Callable[..., nn.Module]
Aux = dict[str, Tensor]


def silu_product_plain(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    """The definition, in ordinary autograd operations."""
    return F.silu(gate_BTF) * up_BTF


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu.silu_product(gate, up)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return swiglu.silu_product_backward(gradients[0], *ctx.saved_tensors)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, keeping nothing but its inputs."""
    if torch.compiler.is_compiling():
        return silu_product_plain(gate, up)
    return _SiluProduct.apply(gate, up)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: SwiGLUConfig, width: int, make_linear: MakeLinear = Linear):
        super().__init__()
        self.gate = make_linear(width, config.width, bias=config.bias)
        self.up = make_linear(width, config.width, bias=config.bias)
        self.down = make_linear(config.width, width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Aux]:
        gate_BTF, up_BTF = bundled((self.gate, self.up), x_BTD)
        product_BTF = silu_product(gate_BTF, up_BTF)
        with recomputing(product_BTF, swiglu.silu_product, gate_BTF, up_BTF):
            return self.down(product_BTF), {}


class GELU(nn.Module):
    """down(gelu(up(x))) (arXiv 1606.08415)."""

    def __init__(self, config: GELUConfig, width: int, make_linear: MakeLinear = Linear):
        super().__init__()
        self.approximate = "tanh" if config.tanh else "none"
        self.up = make_linear(width, config.width, bias=config.bias)
        self.down = make_linear(config.width, width, bias=config.bias)

    def _activate(self, inner: Tensor) -> Tensor:
        return F.gelu(inner, approximate=self.approximate)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Aux]:
        inner_BTF = self.up(x_BTD)
        active_BTF = self._activate(inner_BTF)
        with recomputing(active_BTF, self._activate, inner_BTF):
            return self.down(active_BTF), {}


def _squared_relu(inner: Tensor) -> Tensor:
    return F.relu(inner).square_()


class _SquaredReLU(torch.autograd.Function):
    """Keeps its input alone: autograd would also keep the ReLU."""

    @staticmethod
    def forward(ctx, inner: Tensor) -> Tensor:
        ctx.save_for_backward(inner)
        return _squared_relu(inner)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (inner,) = ctx.saved_tensors
        return F.relu(inner).mul_(2).mul_(gradients[0])


def squared_relu(inner: Tensor) -> Tensor:
    """max(inner, 0)², keeping nothing but its input."""
    if torch.compiler.is_compiling():
        return F.relu(inner).square()
    return _SquaredReLU.apply(inner)


class SquaredReLU(nn.Module):
    """down(max(up(x), 0)²) (Primer, arXiv 2109.08668)."""

    def __init__(self, config: SquaredReLUConfig, width: int, make_linear: MakeLinear = Linear):
        super().__init__()
        self.up = make_linear(width, config.width, bias=config.bias)
        self.down = make_linear(config.width, width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Aux]:
        inner_BTF = self.up(x_BTD)
        active_BTF = squared_relu(inner_BTF)
        with recomputing(active_BTF, _squared_relu, inner_BTF):
            return self.down(active_BTF), {}
