"""Selective recomputation: drop a tensor that autograd wants to keep, and make it again in the backward pass.

Normed inputs and gated products are cheap to recompute and large to keep: a SwiGLU layer's product is as large
as its gate. Whatever consumes the value (a dense, low-rank, LoRA or quantized linear) saves it through
autograd's saved-tensor hooks; here that save is replaced by the recipe for making it, so no linear has to know.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_thread = threading.local()


@contextlib.contextmanager
def recomputing_nothing() -> Iterator[None]:
    """Inside, `recomputing` does nothing on this thread.

    For a part that is checkpointed as a whole: only the innermost hooks see a saved tensor, so the ones of
    `recomputing` would hide what the checkpoint is to drop, and it would keep everything.
    """
    before = getattr(_thread, "off", False)
    _thread.off = True
    try:
        yield
    finally:
        _thread.off = before


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
    if torch.compiler.is_compiling():  # what is kept is the compiler's to choose
        yield
        return
    if not (torch.is_grad_enabled() and value.requires_grad) or getattr(_thread, "off", False):
        yield
        return
    recipe = _Recipe(function, tuple(x.detach() for x in inputs))
    # The hooks outlive this block, so they must not hold `value` itself: only what tells it apart while it lives.
    storage, dtype, numbers = value.untyped_storage().data_ptr(), value.dtype, value.numel()

    def pack(tensor: Tensor):
        same = tensor.dtype == dtype and tensor.numel() == numbers
        if same and tensor.untyped_storage().data_ptr() == storage and tensor.is_contiguous():
            recipe.consumers += 1
            return recipe, tensor.shape
        return tensor.detach()  # a node that saved its own output would own itself, and never be freed

    def unpack(packed):
        if isinstance(packed, Tensor):
            return packed
        made, shape = packed
        return made.take().view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
