"""Data parallelism by hand: every rank has the whole model; gradients, sums and decisions are exchanged
here.

Each function is the identity in a single process. Sums of gradients (not means) are exchanged, because the
step has already divided by the count of all ranks. Started by torchrun, or by any launcher that initializes
torch.distributed. Where the processes are stages of one model (`offload.pipeline`) all of them see the same data:
decisions are exchanged as ever, and there is one share of the data.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.core.errors import RunError

V = TypeVar("V")
_STAGES: ContextVar[bool] = ContextVar("stages", default=False)
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


@contextlib.contextmanager
def stages(there: bool = True) -> Iterator[None]:
    """Inside, the processes are stages of one model and not copies of it, if `there`."""
    before = _STAGES.set(there)
    try:
        yield
    finally:
        _STAGES.reset(before)


def are_stages() -> bool:
    return is_parallel() and _STAGES.get()


def share() -> int:
    """Which share of the data this process reads."""
    return 0 if _STAGES.get() else rank()


def shares() -> int:
    """Into how many parts the data are cut."""
    return 1 if _STAGES.get() else world_size()


def sum_shares(*numbers: float) -> list[float]:
    """Each number summed over the shares of the data: stages of one model all have the whole already."""
    return list(numbers) if _STAGES.get() else sum_numbers(*numbers)


def sum_numbers(*numbers: float) -> list[float]:
    """Each number summed over all ranks, in float64."""
    if not is_parallel():
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64, device=exchange_device())
    with telling_of_losses():
        dist.all_reduce(total)
    return total.tolist()


def from_first(value: V) -> V:
    """Rank 0's value, of what JSON can hold, on every rank: for names, and for decisions that depend on a clock."""
    return from_rank(0, value) if is_parallel() else value


def from_rank(source: int, value: V) -> V:
    """That rank's value, of what JSON can hold, on every rank of several."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(exchange_device())
    size = torch.tensor([len(text)], device=exchange_device())
    with telling_of_losses():
        dist.broadcast(size, src=source)
        text = text if rank() == source else torch.empty(int(size), dtype=torch.uint8, device=exchange_device())
        dist.broadcast(text, src=source)
    return json.loads(bytes(text.tolist()))


def by_first(make: Callable[[], V]) -> V:
    """What rank 0 makes, of what JSON can hold, on every rank: measured, chosen or written once for all of them.

    When rank 0 raises, the others raise RunError: nobody waits for a process that has left.
    """
    if not is_parallel():
        return make()
    if rank() != 0:
        answer: Any = from_first(None)
        if answer[1] is not None:
            raise RunError(f"the first process cannot go on: {answer[1]}")
        return answer[0]
    try:
        value = make()
    except Exception as error:
        from_first([None, getattr(error, "message", type(error).__name__)])
        raise
    from_first([value, None])
    return value


def sum_named(numbers: dict[str, float]) -> dict[str, float]:
    """Each number summed over the ranks that have one of its name: one without labels has run nothing, and has none."""
    if not is_parallel():
        return numbers
    have, squared = sum_numbers(len(numbers), len(numbers) ** 2)
    if not have:
        return numbers
    names = list(numbers)
    if squared * world_size() != have**2:  # not all have as many
        names = sorted({name for source in range(world_size()) for name in from_rank(source, list(numbers))})
    return dict(zip(names, sum_numbers(*(numbers.get(name, 0.0) for name in names)), strict=True))


class Elsewhere(RuntimeError):
    """Another process could not do its part of a step."""


class Lost(RunError):
    """Another process has gone, or the way to it."""


@contextlib.contextmanager
def telling_of_losses() -> Iterator[None]:
    """Inside, what torch.distributed says of a connection that has ended becomes Lost."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise Lost(f"another process has gone: {said:.160}", hint="the last checkpoint is whole") from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What each rank does by itself before an exchange: where one cannot (memory is refused), the others get Elsewhere
    instead of waiting for it."""
    try:
        yield
    except RuntimeError:
        sum_numbers(1)
        raise
    if sum_numbers(0)[0]:
        raise Elsewhere("another process could not do its part of the step")


def wait() -> None:
    """Until all ranks are here."""
    if is_parallel():
        with telling_of_losses():
            dist.barrier()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every `.grad` by its sum over all ranks, in buckets.

    A parameter without one on this rank counts as zero. Stages have parameters of their own, and nothing is summed.
    """
    if not is_parallel() or _STAGES.get():
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
    with telling_of_losses():
        dist.all_reduce(flat)
    for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))


def exchange_device() -> torch.device:
    """Where the backend exchanges small tensors: gloo on the CPU, NCCL on the current GPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )
