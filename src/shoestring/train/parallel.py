"""Data parallelism by hand: every rank has the whole model; gradients, sums and decisions are exchanged
here.

Each function is the identity in a single process. Sums of gradients (not means) are exchanged, because the
step has already divided by the count of all ranks. Started by torchrun, or by any launcher that initializes
torch.distributed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

V = TypeVar("V")
BUCKET_NUMBERS = 16 * 2**20  # numbers exchanged at once: large enough for the link, small beside the model


def start() -> None:
    """Join the processes that torchrun started, if it did and nobody has joined them yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_parallel() else 0


def world_size() -> int:
    return dist.get_world_size() if is_parallel() else 1


def sum_numbers(*numbers: float) -> list[float]:
    """Each number summed over all ranks, in float64."""
    if not is_parallel():
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(total)
    return total.tolist()


def from_first(value: V) -> V:
    """Rank 0's value, of what JSON can hold, on every rank: for names, and for decisions that depend on a clock."""
    if not is_parallel():
        return value
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())
    size = torch.tensor([len(text)], device=_device())
    dist.broadcast(size, src=0)
    text = text if rank() == 0 else torch.empty(int(size), dtype=torch.uint8, device=_device())
    dist.broadcast(text, src=0)
    return json.loads(bytes(text.tolist()))


def wait() -> None:
    """Until all ranks are here."""
    if is_parallel():
        dist.barrier()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every `.grad` by its sum over all ranks, in buckets.

    A parameter without one on this rank counts as zero.
    """
    if not is_parallel():
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.numel()
        if size >= BUCKET_NUMBERS:
            _exchange(bucket)
            bucket, size = [], 0
    _exchange(bucket)


def _exchange(bucket: list[Tensor]) -> None:
    if not bucket:
        return
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _device() -> torch.device:
    """Where the backend exchanges small tensors: gloo on the CPU, NCCL on the current GPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )
