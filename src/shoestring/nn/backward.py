"""Going backward from several tensors whose gradients are known.

torch.autograd.backward(outputs, gradients) imports symbolic algebra to compare their shapes, and so does
torch.autograd.grad: 40 MB of a process that streams, or is reversible, for lack of memory. `loss.backward()` does not.
So the gradients are given by the backward pass of one number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def backward_from(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add to `.grad` of all leaves. None: ones, of a loss. Outputs without a graph are left out."""
    known = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    if known:
        _end(known).backward()


def gradients_from(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Of `inputs`, None where they do not matter. Outputs without a graph or without a gradient are left out."""
    pairs = zip(outputs, gradients, strict=True)
    known = [(output, gradient) for output, gradient in pairs if gradient is not None and output.requires_grad]
    return list(torch.autograd.grad(_end(known), inputs, allow_unused=True)) if known else [None] * len(inputs)


def _end(known: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    with torch.enable_grad():  # this may be called by another's backward pass
        return _Given.apply([gradient for _, gradient in known], *(output for output, _ in known))


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradients: list[Tensor | None], *outputs: Tensor) -> Tensor:
        ctx.gradients = [torch.ones_like(y) if g is None else g for y, g in zip(outputs, gradients, strict=True)]
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx, *ones: Tensor):
        gradients, ctx.gradients = ctx.gradients, None
        return None, *gradients
