"""Adapted linears that share their input, run as one: query, key and value; gate and up.

x: [..., in] -> one [..., out] each. All A's make one thin product, x is kept once and rounded once where the bases
compute in int8, and the gradients of x are added up in place by the products that make them. The bases' own products
stay apart: joined in one they gained nothing (docs/experiments.md), and would want their weights side by side.
The twin is one call of each linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels.int8 import Thin
from shoestring.nn.frozen import FrozenProducts, frozen_bias
from shoestring.nn.lora import LoRA, LoRALinear, across


def bundled(linears: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """What each of the linears makes of x."""
    if torch.compiler.is_compiling():
        return tuple(linear(x) for linear in linears)
    adapters = [_plain_adapter(linear) for linear in linears]
    if any(adapter is None for adapter in adapters):
        return tuple(linear(x) for linear in linears)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        # The low-precision products happen in the function, which autocast does not reach into.
        x = x.to(torch.get_autocast_dtype(kind))
    biases = [frozen_bias(linear.base) for linear in linears]  # type: ignore[arg-type]
    members = [
        (linear.frozen, None if bias is None else bias.to(x.dtype), adapter.scale)  # type: ignore[union-attr]
        for linear, bias, adapter in zip(linears, biases, adapters, strict=True)
    ]
    factors = [getattr(adapter, part).to(x.dtype) for part in ("lora_A", "lora_B") for adapter in adapters]
    with torch.autocast(kind, enabled=False):
        return _Bundle.apply(x, members, *factors)


def _plain_adapter(linear: nn.Module) -> LoRA | None:
    """The adapter at work, None where it is more than an update of low rank, or none."""
    if type(linear) is not LoRALinear or linear.active is None:  # one that is rounded with its base has other products
        return None
    adapter = linear.adapters[linear.active]
    assert isinstance(adapter, LoRA)
    drops = linear.training and adapter.config.dropout > 0
    return None if drops or adapter.magnitude is not None else adapter


class _Bundle(torch.autograd.Function):
    """members: (products of the base, bias, the update's scale); factors: every A [r, in], then every B [out, r]."""

    @staticmethod
    def forward(ctx, x: Tensor, members: list[tuple[FrozenProducts, Tensor | None, float]], *factors: Tensor):
        down, up = factors[: len(members)], factors[len(members) :]
        inner = matmul(x.flatten(end_dim=-2), torch.cat(down))
        inners = inner.split([len(lora_A) for lora_A in down], dim=1)
        outputs, rows = [], None
        for (base, bias, scale), thin, lora_B in zip(members, inners, up, strict=True):
            rows = base.rounded(x) if rows is None else rows
            y = base.forward(x, Thin(thin, lora_B.t(), scale), rows)
            outputs.append(y if bias is None else y.add_(bias))
        ctx.save_for_backward(x, inner, *factors)
        ctx.members = members
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Any:
        x, inner, *factors = ctx.saved_tensors
        members, count = ctx.members, len(ctx.members)
        down, up = factors[:count], factors[count:]
        ranks = [len(lora_A) for lora_A in down]
        inner_gradient = torch.empty_like(inner)
        second_gradients: list[Tensor | None] = [None] * count
        of_each = zip(members, gradients, up, inner.split(ranks, 1), inner_gradient.split(ranks, 1), strict=True)
        for i, ((_, _, scale), gradient, lora_B, thin, thin_gradient) in enumerate(of_each):
            torch.mul(matmul(gradient.flatten(end_dim=-2), lora_B.t()), scale, out=thin_gradient)
            if ctx.needs_input_grad[2 + count + i]:
                second_gradients[i] = across(thin, gradient).mul_(scale).t()
        first_gradients: Sequence[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[2 : 2 + count]):
            first_gradients = across(inner_gradient, x).split(ranks)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            thin = Thin(inner_gradient, torch.cat(down))
            for (base, _, _), gradient in zip(members, gradients, strict=True):
                x_gradient = base.backward(gradient, thin, x_gradient)
                thin = None
        return x_gradient, None, *first_gradients, *second_gradients
