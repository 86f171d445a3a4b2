"""Selective recomputation: drop a tensor that autograd wants to keep, and make it again in the backward pass.

Normed inputs and gated products are cheap to recompute and large to keep: a SwiGLU layer's product is as large as
its gate. Whatever consumes the value (a dense, low-rank, LoRA or quantized linear) saves it through autograd's
saved-tensor hooks; here that save is replaced by the recipe for making it, so no linear has to know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class _Recipe:
    """Makes a tensor again from its inputs; consumers that ask several times share one copy."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], consumers: int = 0):
        self.function = function
        self.inputs = inputs
        self.consumers = consumers
        self.value: Tensor | None = None

    def take(self) -> Tensor:
        if self.value is None:
            with torch.no_grad():
                self.value = self.function(*self.inputs)
        value = self.value
        self.consumers -= 1
        if self.consumers <= 0:
            self.value = None
        return value


@contextlib.contextmanager
def recomputing(value: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> Iterator[None]:
    """Inside, whatever saves `value` for backward keeps only `inputs`, with `function(*inputs) == value`.

    `function` must be deterministic, and `inputs` must not be changed in place before the backward pass.
    Without gradients this does nothing.
    """
    if not (torch.is_grad_enabled() and value.requires_grad):
        yield
        return
    recipe = _Recipe(function, tuple(x.detach() for x in inputs))
    storage = value.untyped_storage().data_ptr()

    def pack(tensor: Tensor):
        same = tensor.dtype == value.dtype and tensor.numel() == value.numel()
        if same and tensor.untyped_storage().data_ptr() == storage and tensor.is_contiguous():
            recipe.consumers += 1
            return recipe, tensor.shape
        return tensor

    def unpack(packed):
        if isinstance(packed, Tensor):
            return packed
        made, shape = packed
        return made.take().view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
