"""Rounding that is learned, as AutoRound does (arXiv 2309.05516): up or down, and each group's range, for a block.

w ≈ (round(t / s + v + z) − z)·s: t what GPTQ would round (or the weight), v between −1/2 and 1/2 and s are learned so
that the block gives what it gave with its own weights, by squared error; each step moves them by the sign of their
gradient, less and less. Rounding counts as the identity on the way back. What is found is taken where it errs less over
all of the text than where it began, so that it is never worse there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.passage import Passage
from shoestring.compression.quantize.gptq import Rounded
from shoestring.core.matmul import matmul
from shoestring.data.order import permutation
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import Grid
from shoestring.nn.quantized.packed import PackedLinear, round_rows

_FARTHEST = 0.05  # of a code that all steps together move by: GPTQ's codes make up for each other, and are near already
_NARROWEST, _WIDEST = 0.75, 1.25  # of the range that a group begins with


class _Product(torch.autograd.Function):
    """x·Wᵀ with both gradients, by the products that serve these sizes best."""

    @staticmethod
    def forward(ctx, x: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return matmul(x, weight_OI)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight_OI = ctx.saved_tensors
        g = gradients[0]
        rows, back = x.flatten(end_dim=-2), g.flatten(end_dim=-2)
        onto_x = matmul(g, weight_OI.t()) if ctx.needs_input_grad[0] else None
        return onto_x, matmul(back.t(), rows.t())


class Learning(nn.Module):
    """A linear whose rounding is learned. x: [..., in] -> [..., out]."""

    def __init__(self, rounded: Rounded, config: PackedConfig, bias: Tensor | None):
        super().__init__()
        grid, target = rounded.grid, rounded.target_OI
        assert target is not None
        self._config, self._stored = config, grid.scale_OG.dtype
        self._target = target.unflatten(1, (grid.scale_OG.shape[1], -1))
        self._scale = grid.scale_OG.float().unsqueeze(-1)
        self._zero_OG = grid.zero_OG
        self._zero = 0.0 if grid.zero_OG is None else grid.zero_OG.float().unsqueeze(-1)
        self._bias = bias
        self.shift = nn.Parameter(torch.zeros_like(self._target))
        self.stretch = nn.Parameter(torch.ones_like(self._scale))

    def forward(self, x: Tensor) -> Tensor:
        if self._config.activations is not None:
            x = x + (round_rows(x.detach()) - x.detach())
        scale = self._scales()
        codes = self._codes(scale)
        y = _Product.apply(x, ((codes - self._zero) * scale).flatten(1))
        return y if self._bias is None else y + self._bias

    def _scales(self) -> Tensor:
        scale = self._scale * self.stretch
        return scale + (scale.detach().to(self._stored).float() - scale.detach())

    def _codes(self, scale: Tensor) -> Tensor:
        half = 1 << self._config.bits - 1
        exact = self._target / scale + self.shift + self._zero
        return (exact + (exact.detach().round() - exact.detach())).clamp(-half, half - 1)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move by the sign of the gradient."""
        for parameter, low, high in ((self.shift, -0.5, 0.5), (self.stretch, _NARROWEST, _WIDEST)):
            assert parameter.grad is not None
            parameter.sub_(parameter.grad.sign_(), alpha=rate).clamp_(low, high)
            parameter.grad = None

    @torch.no_grad()
    def learned(self) -> tuple[Tensor, Grid]:
        """codes int8 [O, I], and the grid that they are on."""
        scale = self._scales()
        grid = Grid(self._config.bits, scale.squeeze(-1).to(self._stored), self._zero_OG)
        return self._codes(scale).flatten(1).to(torch.int8), grid


@torch.no_grad()
def learn(
    block: nn.Module,
    found: dict[str, Rounded],
    passages: Sequence[Passage],
    config: PackedConfig,
    steps: int,
    seed: int,
) -> dict[str, Rounded]:
    """Learn the rounding of the block's packed linears, in place; -> what each is now, its errors those of before.

    found: what each linear was rounded to, with targets. passages: with the block's own outputs as `target`.
    """
    before = block_error(block, passages)
    packed: dict[str, Any] = {name: block.get_submodule(name) for name in found}
    learners = {name: Learning(rounded, config, packed[name].bias) for name, rounded in found.items()}
    for name, learner in learners.items():
        put(block, name, learner)
    for step in range(steps):
        epoch, place = divmod(step, len(passages))
        passage = passages[int(permutation(seed, epoch, len(passages))[place])]
        with torch.enable_grad():
            off = _off(block, passage)
            (off.square().sum() / off.numel()).backward()
        del off
        for learner in learners.values():
            learner.step(_FARTHEST * 2 * (1 - step / steps) / steps)
    after = {}
    for name, learner in learners.items():
        codes, grid = learner.learned()
        after[name] = replace(found[name], codes_OI=codes, grid=grid, target_OI=None)
        put(block, name, PackedLinear.of(codes, grid, config, packed[name].bias).eval())
    if block_error(block, passages) < before:
        return after
    for name, linear in packed.items():
        put(block, name, linear)
    return {name: replace(rounded, target_OI=None) for name, rounded in found.items()}


@torch.no_grad()
def block_error(block: nn.Module, passages: Sequence[Passage]) -> float:
    """Squared errors of what the block gives, summed."""
    return sum(float(_off(block, passage).double().square().sum()) for passage in passages)


def put(block: nn.Module, name: str, linear: nn.Module) -> None:
    """Put a linear in the place of this name."""
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, linear)


def _off(block: nn.Module, passage: Passage) -> Tensor:
    """[N, D] of the tokens that are there."""
    there = passage.there_BT
    return block(passage.hidden_BTD, passage.context)[0][there] - passage.target.get()[there]
