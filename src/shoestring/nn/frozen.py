"""A frozen linear as two products without a graph: x·Wᵀ going forward, g·W going backward.

x: [..., in], g: [..., out]. Adapters train beside any base that has both: dense, low-rank, int8 or 4-bit.
Each kind says how in its method `frozen_products`; a quantized base makes its weights dense for one product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels.int8 import Thin


def _as_it_is(x: Tensor) -> None:
    return None


class FrozenProducts(NamedTuple):
    """forward: [..., in] -> [..., out], backward: [..., out] -> [..., in], without bias; the result is the caller's.

    forward(x, thin, rows): with the `Thin` product `thin` added. rows: `rounded(x)`, where several linears that share
    x have it made once. backward(gradient, thin, onto): added to `onto`, in place. All but the first may be left out.
    Weights are looked up when a product is made, never before: whoever streams them puts others in their place.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., Tensor]
    rounded: Callable[[Tensor], Any] = _as_it_is


def added(y: Tensor, thin: Thin | None, onto: Tensor | None = None) -> Tensor:
    """y + thin, in y, or added to `onto`."""
    y = y if onto is None else onto.add_(y)
    if thin is not None:
        y.flatten(end_dim=-2).addmm_(thin.left, thin.right, alpha=thin.scale)
    return y


class Freezable(Protocol):
    """A kind of linear that is not dense; its bias, if any, stands apart."""

    @property
    def bias(self) -> Tensor | None: ...

    def frozen_products(self) -> FrozenProducts: ...


def frozen_products(linear: nn.Module) -> FrozenProducts:
    """The products of a dense linear, or of a kind that says how."""
    if not isinstance(linear, nn.Linear):
        return cast(Freezable, linear).frozen_products()
    return FrozenProducts(
        lambda x, thin=None, rows=None: added(matmul(x, linear.weight.detach().to(x.dtype)), thin),
        lambda g, thin=None, onto=None: added(matmul(g, linear.weight.detach().to(g.dtype).t()), thin, onto),
    )


def frozen_bias(linear: nn.Module) -> Tensor | None:
    """The bias that the products leave out."""
    bias = cast(Freezable, linear).bias
    return None if bias is None else bias.detach()


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, products: FrozenProducts, bias: Tensor | None) -> Tensor:
        ctx.products = products
        y = products.forward(x)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return ctx.products.backward(gradients[0]), None, None


def frozen_linear(x: Tensor, products: FrozenProducts, bias: Tensor | None) -> Tensor:
    """A linear that keeps nothing for the backward pass, differentiable in x alone; in autocast's dtype under it."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        return _Frozen.apply(x, products, None if bias is None else bias.to(x.dtype))
