"""Bytes of tensors on the meta device, which stands for a GPU: counted when they come and when they go."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shoestring.core import torch_features
from shoestring.nn.attention import core, packed

GPU = torch.device("meta")


class Held(TorchDispatchMode):
    """live: bytes of the storages that operations made inside and that are still there; peak: the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.device == GPU:
                self._note(x.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return

        def gone(_: weakref.ref) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def before(self, tensors: Iterable[Tensor]) -> None:
        """Not counted: what was there."""
        self._before = [x.untyped_storage() for x in tensors]
        self._known |= {storage._cdata: weakref.ref(storage) for storage in self._before}


class _Flash(torch.autograd.Function):
    """What a GPU's kernel for attention makes and keeps, without numbers."""

    @staticmethod
    def forward(ctx, q, k, v):
        rows, heads, tokens, _ = q.shape
        y = q.new_empty(rows, tokens, heads, v.shape[-1]).transpose(1, 2)  # as its kernels lay it out
        sums = q.new_empty(rows, heads, tokens)
        ctx.save_for_backward(q, k, v, y, sums)
        return y

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, _, sums = ctx.saved_tensors
        delta = torch.empty_like(sums)  # noqa: F841
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextlib.contextmanager
def as_gpu(monkeypatch) -> Iterator[None]:
    """The meta device takes autocast (off) and a GPU's attention, as CUDA does."""
    enabled, dtype, autocast = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32 if kind == "meta" else dtype(kind))
    monkeypatch.setattr(
        torch, "autocast",
        lambda kind, **given: contextlib.nullcontext() if kind == "meta" else autocast(kind, **given),
    )  # fmt: skip
    monkeypatch.setattr(torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata)  # else 0, of all alike
    monkeypatch.setattr(torch_features, "flex_attention", lambda device: device == GPU)
    monkeypatch.setattr(
        packed, "kernel", lambda: lambda q, k, v, block_mask, scale, enable_gqa: _Flash.apply(q, k, v)
    )
    monkeypatch.setattr(core, "_sdpa", lambda q, k, v, mask, causal, scale: _Flash.apply(q, k, v))
    yield
