"""Fake quantization: a linear that is trained computes with its weight as it will be kept in few bits.

    y = x·fake(W)ᵀ + b        fake(W) = the values of W's nearest codes on the grid of `grid.fit`

x: [..., in], W: [out, in]. It is the grid of `quantize --method rtn`, so the codes that are written later are those
that were trained with. Going backward rounding counts as the identity (straight through, arXiv 1308.3432): W and x get
the gradients of fake(W) and of their rounded selves, whether they were clipped or not. W stays a float, and so does
what is saved. Under an adapter the sum of both is rounded, W + s·B·A: merged and quantized it is what was trained with.
Codes, a byte a weight, are made once for each state of the weights, and made dense for one product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError
from shoestring.core.matmul import matmul
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRA, LoRALinear, across
from shoestring.nn.quantized.config import FakeQuantizedConfig, PackedConfig
from shoestring.nn.quantized.grid import Grid, fit
from shoestring.nn.quantized.packed import check_groups, round_rows


class Codes:
    """codes_OI: int8 [out, in] on `grid`."""

    def __init__(self, weight_OI: Tensor, config: PackedConfig):
        self.grid: Grid = fit(weight_OI, config)
        self.codes_OI = self.grid.codes(weight_OI)
        self.inputs = round_rows if config.activations == "int8" else _unchanged

    def values(self, dtype: torch.dtype) -> Tensor:
        """[out, in]; half-precision is rounded at the end, as `PackedLinear` does."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        return self.grid.values(self.codes_OI, exact).to(dtype)


class _Kept:
    """Codes, the tensors they were made of as they were then, and while nothing is trained their values."""

    def __init__(self) -> None:
        self.sources: tuple[Tensor, ...] = ()
        self.versions: tuple[int, ...] = ()
        self.codes: Codes | None = None
        self.dense: Tensor | None = None

    def __deepcopy__(self, memo: object) -> _Kept:
        return _Kept()  # a copied tensor counts its versions anew


def _unchanged(x: Tensor) -> Tensor:
    return x


class FakeQuantized(nn.Module):
    """The kind, of a dense linear or of an adapted one; `config` says which grid."""

    config: PackedConfig
    training: bool

    @staticmethod
    def from_linear(linear: Any, config: FakeQuantizedConfig) -> FakeQuantized:
        """The same parameters. Raises ConfigError for what is neither dense nor an adapter on a dense base, for DoRA
        and dropout, and for groups that do not divide the inputs."""
        check_groups(linear.in_features, config.grid)
        if type(linear) is LoRALinear and isinstance(linear.base, nn.Linear):
            return FakeQuantizedLoRA.around(linear, config.grid)
        if isinstance(linear, nn.Linear):
            return FakeQuantizedLinear.around(linear, config.grid)
        raise ConfigError(
            "fake quantization is for weights in floats, and these are not",
            hint="begin from a model that is not quantized or factorized, with dense weights under its adapter",
        )

    def _begin(self, config: PackedConfig) -> None:
        self.config = config
        self.kept = _Kept()

    def rounded(self, *sources: Tensor) -> Codes:
        """The codes of the weight as it is now. sources: the tensors that it is made of."""
        kept, versions = self.kept, tuple(tensor._version for tensor in sources)
        same = [id(tensor) for tensor in kept.sources] == [id(tensor) for tensor in sources]
        if kept.codes is None or not same or kept.versions != versions:
            with torch.no_grad():
                kept.codes, kept.dense = Codes(self.weight_now(), self.config), None
            kept.sources, kept.versions = sources, versions
        return kept.codes

    def weight_now(self) -> Tensor:
        """[out, in], not rounded."""
        raise NotImplementedError

    def values(self, codes: Codes, dtype: torch.dtype) -> Tensor:
        """Kept while the model is evaluated: a token's product is less work than making them."""
        if self.training:
            return codes.values(dtype)
        kept = self.kept
        if kept.dense is None or kept.dense.dtype != dtype:
            kept.dense = codes.values(dtype)
        return kept.dense

    def train(self, mode: bool = True) -> Any:
        self.kept.dense = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # a move leaves ids and versions as they are
        self.kept = _Kept()
        return super()._apply(fn, recurse)


class _Product(torch.autograd.Function):
    """codes: of `weight`, made dense by `values`."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, codes: Codes, values: Callable[[Codes, torch.dtype], Tensor]
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        ctx.codes, ctx.dtype = codes, weight.dtype
        return matmul(codes.inputs(x), values(codes, x.dtype))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (x,) = ctx.saved_tensors
        gradient = gradients[0]
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        weight_gradient = None
        if wants_weight:
            rows = ctx.codes.inputs(x).flatten(0, -2)
            weight_gradient = matmul(gradient.flatten(0, -2).t(), rows.t()).to(ctx.dtype)
            del rows
        del x  # made again for this product alone (`nn.recompute`)
        x_gradient = matmul(gradient, ctx.codes.values(gradient.dtype).t()) if wants_x else None
        return x_gradient, weight_gradient, None, None


class FakeQuantizedLinear(FakeQuantized, Linear):
    """x: [..., in] -> [..., out]."""

    @classmethod
    def around(cls, linear: nn.Linear, config: PackedConfig) -> FakeQuantizedLinear:
        """The same parameters, trained or frozen."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        made._begin(config)
        return made.train(linear.training)

    def weight_now(self) -> Tensor:
        return self.weight.detach()

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            y = _Product.apply(input, self.weight, self.rounded(self.weight), self.values)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    def to_linear(self) -> nn.Linear:
        """A dense linear around the weight as it is, not rounded."""
        with torch.device("meta"):
            made = Linear(self.in_features, self.out_features, self.bias is not None)
        made.weight, made.bias = self.weight, self.bias
        return made.train(self.training)


class _AdaptedProduct(torch.autograd.Function):
    """codes: of W + s·B·A. W is frozen."""

    @staticmethod
    def forward(
        ctx, x: Tensor, lora_A: Tensor, lora_B: Tensor, codes: Codes,
        values: Callable[[Codes, torch.dtype], Tensor], scale: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, lora_A, lora_B)
        ctx.codes, ctx.scale = codes, scale
        return matmul(codes.inputs(x), values(codes, x.dtype))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, lora_A, lora_B = ctx.saved_tensors
        gradient, wants_x = gradients[0], ctx.needs_input_grad[0]
        rows, entering = gradient.flatten(0, -2), ctx.codes.inputs(x).flatten(0, -2)
        del x
        lora_B_gradient = across(matmul(entering, lora_A), rows).mul_(ctx.scale).t()
        lora_A_gradient = across(matmul(rows, lora_B.t()).mul_(ctx.scale), entering)
        x_gradient = matmul(gradient, ctx.codes.values(gradient.dtype).t()) if wants_x else None
        return x_gradient, lora_A_gradient, lora_B_gradient, None, None, None


class FakeQuantizedLoRA(FakeQuantized, LoRALinear):  # type: ignore[misc]  # `from_linear` is the first one's
    """x: [..., in] -> [..., out]. The base and its active adapter are rounded together; without one at work the base is
    as it was."""

    @classmethod
    def around(cls, linear: LoRALinear, config: PackedConfig) -> FakeQuantizedLoRA:
        """The same base and adapters. Raises ConfigError for DoRA and dropout."""
        made = cls(linear.base)
        made._begin(config)
        for name, adapter in linear.adapters.items():
            assert isinstance(adapter, LoRA)
            if adapter.magnitude is not None or adapter.config.dropout:
                what = "dropout of an adapter" if adapter.config.dropout else "DoRA"
                raise ConfigError(f"fake quantization rounds base and adapter as one matrix, which {what} is not")
            made.adapters[name] = adapter
        made.active = linear.active
        return made.train(linear.training)

    def weight_now(self) -> Tensor:
        return self.to_linear().weight.detach()  # what merging gives

    def forward(self, x: Tensor) -> Tensor:
        if self.active is None:
            return self.base(x)
        adapter = self.adapters[self.active]
        assert isinstance(adapter, LoRA) and isinstance(self.base, nn.Linear)
        bias, kind = self.base.bias, x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            codes = self.rounded(self.base.weight, adapter.lora_A, adapter.lora_B)
            y = _AdaptedProduct.apply(
                x, adapter.lora_A.to(x.dtype), adapter.lora_B.to(x.dtype), codes, self.values, adapter.scale
            )
            return y if bias is None else y + bias.detach().to(y.dtype)
