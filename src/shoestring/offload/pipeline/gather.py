"""What all machines hold, brought to the first one: so that a checkpoint of a split model is one ordinary folder.

Each tells what it has as JSON, then sends the raw numbers, one tensor after another. What is large is received into a
file that is mapped into memory, from which the checkpoint is written: the first machine need not hold the whole model.
A tensor that several hold is taken from the first of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.core.files import cache_dir
from shoestring.models.adapters import active_adapter, adapted_linears, attach_to, switch
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.folder import Dtypes
from shoestring.nn.lora import LoRA
from shoestring.nn.lora_config import LoRAConfig
from shoestring.offload.pipeline.model import SplitDecoder
from shoestring.train import parallel

_IN_MEMORY = 64 * 2**20  # bytes; more go through a file
_ALIGNMENT = 64
_PIECE = 4 * 2**20  # bytes sent at once
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Gathered:
    """Of the first process: trained tensors by the decoder's names, and the settings of adapters by linear and name."""

    tensors: dict[str, Tensor]
    adapters: dict[str, dict[str, dict[str, Any]]]
    active: str | None

    def whole(self, decoder: Decoder) -> Decoder:
        """A decoder of the whole model with these weights, and none where they are frozen."""
        whole = build(decoder.config, device="meta")
        whole.requires_grad_(not self.adapters)
        for linear, named in self.adapters.items():
            for name, settings in named.items():
                attach_to(whole, linear, LoRAConfig(**settings), name)
        if self.active is not None:
            switch(whole, self.active)
        for name, tensor in self.tensors.items():
            owner, _, last = name.rpartition(".")
            old = whole.get_parameter(name)
            new = nn.Parameter(tensor, requires_grad=old.requires_grad)
            setattr(whole.get_submodule(owner), last, new)
            if old is whole.head.weight:  # a tied head is the same parameter
                whole.head.weight = new
        return whole


def gathered(decoder: SplitDecoder) -> Gathered:
    """All take part; only the first gets tensors."""
    named = {
        linear: {name: a.config.model_dump() for name, a in module.adapters.items() if isinstance(a, LoRA)}
        for linear, module in adapted_linears(decoder).items()
    }
    adapters: dict[str, dict[str, dict[str, Any]]] = {}
    for rank in range(parallel.world_size()):
        adapters |= {name: one for name, one in parallel.from_rank(rank, named).items() if name not in adapters}
    active = parallel.from_rank(0, active_adapter(decoder))
    trained = {name: p.detach() for name, p in decoder.named_parameters() if p.requires_grad}
    return Gathered(gathered_tensors(trained), adapters, active)


def gathered_tensors(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of all processes by name, on the first; on others their own."""
    found = dict(own)
    mine = [(name, _name(tensor.dtype), list(tensor.shape)) for name, tensor in own.items()]
    taken = {name for name, *_ in parallel.from_rank(0, mine)}
    for source in range(1, parallel.world_size()):
        listed = parallel.from_rank(source, mine)
        wanted = [(name, _DTYPES[kind], shape) for name, kind, shape in listed if name not in taken]
        taken |= {name for name, *_ in wanted}
        if parallel.rank() == 0:
            sizes = [torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in wanted]
            for (name, dtype, shape), room in zip(wanted, _rooms(sizes), strict=True):
                for piece in room.split(_PIECE):
                    arrived = piece.to(parallel.exchange_device())
                    with parallel.telling_of_losses():
                        dist.recv(arrived, source)
                    piece.copy_(arrived)
                found[name] = room.view(dtype).view(shape)
        elif parallel.rank() == source:
            for name, *_ in wanted:
                for piece in _bytes(own[name]).split(_PIECE):
                    with parallel.telling_of_losses():
                        dist.send(piece.to(parallel.exchange_device()), 0)
    return found


def _rooms(sizes: list[int]) -> list[Tensor]:
    """Bytes of these numbers, each in memory of its own, or in one file where they are many. A file goes with the last
    tensor in it, where the system allows that it has no name meanwhile."""
    if sum(sizes) <= _IN_MEMORY:
        return [torch.empty(size, dtype=torch.uint8) for size in sizes]
    starts = [sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes[:i]) for i in range(len(sizes) + 1)]
    cache_dir().mkdir(parents=True, exist_ok=True)  # where temporary files lie may be memory
    with tempfile.TemporaryDirectory(prefix=".gathered-", dir=cache_dir(), ignore_cleanup_errors=True) as folder:
        mapped = torch.from_file(str(Path(folder) / "gathered"), shared=True, size=starts[-1], dtype=torch.uint8)
    return [mapped[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)


def together(dtypes: Dtypes) -> Dtypes:
    """What weights are saved in, where each process knows that of its own: on all, of all."""
    if not parallel.are_stages() or not isinstance(dtypes, Mapping):
        return dtypes
    named = {name: _name(dtype) for name, dtype in dtypes.items()}
    every: dict[str, torch.dtype] = {}
    for rank in range(parallel.world_size()):
        every |= {name: _DTYPES[kind] for name, kind in parallel.from_rank(rank, named).items() if name not in every}
    return every


def gathered_numbers(own: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Those of all processes by name, everywhere."""
    found: dict[str, dict[str, float]] = {}
    for rank in range(parallel.world_size()):
        found |= {name: numbers for name, numbers in parallel.from_rank(rank, own).items() if name not in found}
    return found
