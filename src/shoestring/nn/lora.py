"""Adapters: y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ + b with W frozen, A [r, in] and B [out, r] trained (LoRA, arXiv 2106.09685).

DoRA (arXiv 2402.09353) multiplies each output, before the bias, by c = m/‖W + s·B·A‖: norms of rows, m learned. The
norm counts as a constant going backward (its section 4.3), and is had without forming B·A:
‖W + s·B·A‖² = ‖W‖² + 2s·B∘(W·Aᵀ) + s²·(B·A·Aᵀ)∘B, summed over each row.
Nothing but x and x·Aᵀ is kept for the backward pass, W gets no gradient. `adapted_plain` is the twin.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels.int8 import Thin
from shoestring.nn.frozen import FrozenProducts, frozen_bias, frozen_products
from shoestring.nn.linear import Linear
from shoestring.nn.lora_config import LoRAConfig


def adapted_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scale: float,
    magnitude: Tensor | None,
) -> Tensor:  # fmt: skip
    """The definition, in ordinary autograd operations."""
    y = F.linear(x, weight) + scale * F.linear(F.linear(x, lora_A), lora_B)
    if magnitude is not None:
        y = y * (magnitude / torch.linalg.norm(weight + scale * lora_B @ lora_A, dim=1).detach())
    return y if bias is None else y + bias


def across(thin: Tensor, wide: Tensor) -> Tensor:
    """thinᵀ · wide over all rows: [..., r], [..., n] -> [r, n]. The other way round it is several times slower."""
    return matmul(thin.flatten(end_dim=-2).t(), wide.flatten(end_dim=-2).t())


class _Adapted(torch.autograd.Function):
    """dropped: x after dropout, for the update alone; None where there is none. ratio: DoRA's c [out]."""

    @staticmethod
    def forward(
        ctx, x: Tensor, dropped: Tensor | None, lora_A: Tensor, lora_B: Tensor, ratio: Tensor | None,
        bias: Tensor | None, base: FrozenProducts, scale: float,
    ) -> Tensor:  # fmt: skip
        entering = x if dropped is None else dropped
        inner = matmul(entering, lora_A)
        y = base.forward(x, Thin(inner.flatten(end_dim=-2), lora_B.t(), scale))
        unscaled = None
        if ratio is not None:
            # A row of length zero has c = 0, and its product cannot be had back from y; asking a GPU would wait for it.
            if bias is None and ratio.is_cpu and bool((ratio != 0).all()):
                y.mul_(ratio)
                unscaled = y  # whatever comes next keeps y anyway; divided by c when it is needed
            else:
                unscaled, y = y, y * ratio
        ctx.divides = unscaled is y
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(entering, lora_A, lora_B, inner, ratio, unscaled)
        ctx.base, ctx.scale, ctx.drops = base, scale, dropped is not None
        return y

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        entering, lora_A, lora_B, inner, ratio, unscaled = ctx.saved_tensors
        gradient, ratio_gradient = gradients[0], None
        if ratio is not None:
            if ctx.needs_input_grad[4]:
                ratio_gradient = (gradient * unscaled).flatten(end_dim=-2).sum(0)
                if ctx.divides:
                    ratio_gradient /= ratio
            gradient = gradient * ratio
        rows = gradient.flatten(end_dim=-2)
        inner_gradient = matmul(rows, lora_B.t()).mul_(ctx.scale)
        first_gradient = second_gradient = None
        if ctx.needs_input_grad[3]:
            second_gradient = across(inner, rows).mul_(ctx.scale).t()
        if ctx.needs_input_grad[2]:
            first_gradient = across(inner_gradient, entering)
        x_gradient = dropped_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = ctx.base.backward(gradient, None if ctx.drops else Thin(inner_gradient, lora_A))
        if ctx.drops and ctx.needs_input_grad[1]:
            dropped_gradient = (inner_gradient @ lora_A).view(entering.shape)
        return x_gradient, dropped_gradient, first_gradient, second_gradient, ratio_gradient, None, None, None


class LoRA(nn.Module):
    """One adapter of one linear: `lora_A` [r, in], `lora_B` [out, r], and for DoRA `magnitude` m [out]."""

    def __init__(self, config: LoRAConfig, in_features: int, out_features: int):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.lora_A = nn.Parameter(torch.empty(config.rank, in_features))
        self.lora_B = nn.Parameter(torch.empty(out_features, config.rank))
        self.magnitude = nn.Parameter(torch.empty(out_features)) if config.dora else None

    @torch.no_grad()
    def initialize(self, random: torch.Generator | None = None) -> None:
        """A uniform within ±1/√in, as peft does, and B zero: the model starts as it was."""
        limit = 1 / math.sqrt(self.lora_A.shape[1])
        self.lora_A.copy_(torch.empty(self.lora_A.shape).uniform_(-limit, limit, generator=random))
        self.lora_B.zero_()


class LoRALinear(nn.Module):
    """x: [..., in] -> [..., out]. A frozen `base` and adapters by name, of which `active`, or none, is at work."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.frozen = frozen_products(base)
        self._squares: Tensor | None = None

    def add(self, name: str, config: LoRAConfig, random: torch.Generator | None = None) -> LoRA:
        """A fresh adapter, made active. It lives on the base's device, in float32 unless the base is in float64."""
        held = [*self.base.parameters(), *self.base.buffers()]
        reference = held[0]
        exact = {tensor.dtype for tensor in held} | {getattr(self.base, "dense_dtype", None)}
        dtype = torch.float64 if torch.float64 in exact else torch.float32
        with torch.device(reference.device):
            adapter = LoRA(config, self.in_features, self.out_features).to(dtype)
        if reference.device.type != "meta":
            adapter.initialize(random)
            if adapter.magnitude is not None:
                adapter.magnitude.data.copy_(self.row_norms(adapter))
        self.adapters[name] = adapter.train(self.training)
        self.active = name
        return adapter

    def forward(self, x: Tensor) -> Tensor:
        if self.active is None:
            return self.base(x)
        adapter = self.adapters[self.active]
        assert isinstance(adapter, LoRA)
        if torch.compiler.is_compiling() and isinstance(self.base, nn.Linear) and adapter.magnitude is None:
            inner = F.linear(F.dropout(x, adapter.config.dropout, self.training), adapter.lora_A)
            return self.base(x) + F.linear(inner, adapter.lora_B) * adapter.scale
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            # The low-precision products happen in the function, which autocast does not reach into.
            x = x.to(torch.get_autocast_dtype(kind))
        dropped = F.dropout(x, adapter.config.dropout) if self.training and adapter.config.dropout else None
        ratio = None
        if adapter.magnitude is not None:
            ratio = (adapter.magnitude / self.row_norms(adapter).clamp_min(1e-30)).to(x.dtype)
        bias = frozen_bias(self.base)
        with torch.autocast(kind, enabled=False):
            return _Adapted.apply(
                x, dropped, adapter.lora_A.to(x.dtype), adapter.lora_B.to(x.dtype), ratio,
                None if bias is None else bias.to(x.dtype), self.frozen, adapter.scale,
            )  # fmt: skip

    @torch.no_grad()
    def row_norms(self, adapter: LoRA) -> Tensor:
        """[out], the lengths of the rows of W + s·B·A."""
        lora_A, lora_B, scale = adapter.lora_A, adapter.lora_B, adapter.scale
        if self._squares is None:
            self._squares = dense(self.base).weight.to(lora_A.dtype).square().sum(1)
        # [r, out]; as the weights are, also where the base rounds what it takes
        crossed = getattr(self.base, "exact_product", self.frozen.forward)(lora_A)
        squares = self._squares + 2 * scale * (lora_B * crossed.t()).sum(1)
        squares += scale**2 * ((lora_B @ (lora_A @ lora_A.t())) * lora_B).sum(1)
        return squares.clamp_min_(0).sqrt_()

    @classmethod
    def from_linear(
        cls, linear: Any, config: LoRAConfig, name: str = "default", random: torch.Generator | None = None
    ) -> LoRALinear:
        """The linear, frozen from now on, with one fresh adapter."""
        made = cls(linear).train(linear.training)
        made.add(name, config, random)
        return made

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """One dense linear that computes what the base and the active adapter do."""
        merged = dense(self.base)
        if self.active is None:
            return merged
        adapter = self.adapters[self.active]
        assert isinstance(adapter, LoRA)
        update = matmul(adapter.lora_B, adapter.lora_A.t()).mul_(adapter.scale)
        weight = merged.weight.to(update.dtype).add(update)
        if adapter.magnitude is not None:
            weight.mul_((adapter.magnitude / self.row_norms(adapter).clamp_min(1e-30)).unsqueeze(1))
        merged.weight.copy_(weight)
        return merged

    def _apply(self, fn, recurse=True):  # a move or another dtype makes the kept norms stale
        self._squares = None
        return super()._apply(fn, recurse)


@torch.no_grad()
def dense(linear: Any) -> nn.Linear:
    """A dense copy of a linear of any kind, frozen or not; its own memory."""
    if not isinstance(linear, nn.Linear):
        return linear.to_linear()
    device = linear.weight.device  # made there: a copy would wait for a GPU
    copy = Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device=device)
    copy.to(device=linear.weight.device, dtype=linear.weight.dtype)
    copy.weight.copy_(linear.weight)
    if linear.bias is not None:
        copy.bias.copy_(linear.bias)
    return copy
