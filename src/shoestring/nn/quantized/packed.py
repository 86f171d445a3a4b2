"""Linear over packed codes, W ≈ (codes − zero) ⊙ scale by groups of inputs, as compressed-tensors stores it.

packed int32 [out, words] (`packing`), scale [out, groups], zero int8 [out, groups] or None. The weights are made dense
for one product; what decodes faster can be made of `codes` and `grid`. With activations="int8" each row of the inputs
is rounded to 8 bits before the product, of which going backward knows nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError
from shoestring.core.matmul import matmul
from shoestring.nn.frozen import FrozenProducts, added, frozen_linear
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import Grid, fit
from shoestring.nn.quantized.int8 import as_dense, dense_linear
from shoestring.nn.quantized.packing import pack, unpack, words


def round_rows(x: Tensor) -> Tensor:
    """x: [..., in] rounded to multiples of its row's max|x| / 127.5, −128 to 127 of them: 8 bits for each token."""
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    scale = torch.where(scale > 0, scale, torch.full_like(scale, torch.finfo(x.dtype).eps))
    return (x / scale).clamp_(-128, 127).round_().mul_(scale)


def _unchanged(x: Tensor) -> Tensor:
    return x


class PackedLinear(nn.Module):
    """x: [..., in] -> [..., out]; frozen, differentiable in x."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, config: PackedConfig, bias: bool = False):
        super().__init__()
        check_groups(in_features, config)
        self.in_features, self.out_features, self.config = in_features, out_features, config
        groups = config.groups(in_features)
        self.register_buffer("packed", torch.empty(out_features, words(in_features, config.bits), dtype=torch.int32))
        self.register_buffer("scale", torch.empty(out_features, groups, dtype=getattr(torch, config.scale)))
        zero = None if config.symmetric else torch.empty(out_features, groups, dtype=torch.int8)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", torch.empty(out_features) if bias else None)
        self._inputs = _unchanged if config.activations is None else round_rows
        self.dense_dtype = torch.float32  # of what `to_linear` makes

    @classmethod
    def of(cls, codes_OI: Tensor, grid: Grid, config: PackedConfig, bias: Tensor | None) -> PackedLinear:
        """Of codes that are chosen. config: what the grid was fitted by."""
        with torch.device("meta"):
            made = cls(codes_OI.shape[1], codes_OI.shape[0], config, bias is not None)
        made.packed, made.scale, made.zero = pack(codes_OI, config.bits), grid.scale_OG, grid.zero_OG
        made.bias = None if bias is None else bias.detach().clone()
        return made

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: Any, config: PackedConfig) -> PackedLinear:
        """Rounded to nearest. The dense weight is not kept. Raises ConfigError for groups that do not divide it."""
        dense = as_dense(linear)
        check_groups(dense.in_features, config)
        if dense.weight.is_meta:
            with torch.device("meta"):
                return cls(dense.in_features, dense.out_features, config, dense.bias is not None)
        grid = fit(dense.weight, config)
        made = cls.of(grid.codes(dense.weight), grid, config, dense.bias)
        made.dense_dtype = dense.weight.dtype
        return made.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.frozen_products(), self.bias)

    def frozen_products(self) -> FrozenProducts:
        return FrozenProducts(
            lambda x, thin=None, rows=None: added(matmul(self._inputs(x), self.weights(x.dtype)), thin),
            lambda g, thin=None, onto=None: added(matmul(g, self.weights(g.dtype).t()), thin, onto),
        )

    def exact_product(self, x: Tensor) -> Tensor:
        """x·Wᵀ, x as it is."""
        return matmul(x, self.weights(x.dtype))

    @property
    def grid(self) -> Grid:
        return Grid(self.config.bits, self.scale, self.zero)

    def codes(self) -> Tensor:
        """int8 [out, in]"""
        return unpack(self.packed, self.config.bits, self.in_features)

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in], made from the codes; a new tensor. Half-precision is rounded at the end."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        return self.grid.values(self.codes(), exact).to(dtype)

    def to_linear(self) -> nn.Linear:
        """A dense linear of the rounded weights, in the dtype of what was rounded, or that the model was read in."""
        return dense_linear(self.weights(self.dense_dtype), self.bias)


def check_groups(inputs: int, config: PackedConfig) -> None:
    """Raises ConfigError where groups do not divide a row of so many inputs."""
    if config.group is not None and inputs % config.group:
        fitting = [size for size in (128, 64, 32, 16, 8) if inputs % size == 0]
        hint = f"{', '.join(map(str, fitting))} would do" if fitting else "one scale for a whole row would do (group 0)"
        raise ConfigError(f"groups of {config.group} do not divide the {inputs:,} inputs of a matrix", hint=hint)
