"""What ranks have to say to each other: sums, decisions, and who waits for whom.

Each function is the identity in a single process. Sums of gradients (not means) are exchanged, because the
step has already divided by the count of all ranks; while the pass backward goes on it is `train.exchange` that does so.
Started by the command (`train.launch`), by torchrun, or by any launcher that initializes torch.distributed. Where the
processes are stages of one model (`offload.pipeline`) all of them see the same data: decisions are exchanged as ever,
and there is one share of the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.core.errors import RunError
from shoestring.train import watchdog

V = TypeVar("V")
_STAGES: ContextVar[bool] = ContextVar("stages", default=False)
Helps = Mapping[str, Callable[[Any], Any]]
"""What all processes do when the first one asks for it by name, with an argument that JSON can hold."""
LAUNCHED = "SHOESTRING_LAUNCHED"  # in the environment of ranks that a command has started: how many (`train.launch`)
BUCKET_NUMBERS = 16 * 2**20  # numbers exchanged at once: large enough for the link, small beside the model


def start() -> None:
    """Join the processes that torchrun or a command started, if one did and nobody has joined them yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        watchdog.meet("nccl" if torch.cuda.is_available() else "gloo")


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
    with waiting():
        total = torch.tensor(numbers, dtype=torch.float64, device=exchange_device())
        dist.all_reduce(total)
        return total.tolist()


class _Waited:
    seconds = 0.0


@contextlib.contextmanager
def waiting(for_first: bool = False) -> Iterator[None]:
    """Inside, this rank waits for the others: the time is counted, and who keeps it waiting for too long is named
    (`train.watchdog`). On a GPU it is that in which Python waits, for what was queued before too. for_first: it waits
    for what the first one does for all, which may take any time."""
    began = time.perf_counter()
    try:
        with telling_of_losses(), watchdog.watching().exchange(for_first):
            yield
    finally:
        _Waited.seconds += time.perf_counter() - began


def waited() -> float:
    """Seconds that this rank has waited for others since the last such question."""
    seconds, _Waited.seconds = _Waited.seconds, 0.0
    return seconds


def by_rank(number: float) -> list[float]:
    """Every rank's number, in their order."""
    return sum_numbers(*(number if place == rank() else 0.0 for place in range(world_size())))


def from_first(value: V) -> V:
    """Rank 0's value, of what JSON can hold, on every rank: for names, and for decisions that depend on a clock."""
    return from_rank(0, value) if is_parallel() else value


def from_rank(source: int, value: Any, waits_for_work: bool = False) -> Any:
    """That rank's value, of what JSON can hold, on every rank of several."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(exchange_device())
    with waiting(waits_for_work):
        size = torch.tensor([len(text)], device=exchange_device())
        dist.broadcast(size, src=source)
        text = text if rank() == source else torch.empty(int(size), dtype=torch.uint8, device=exchange_device())
        dist.broadcast(text, src=source)
        return json.loads(bytes(text.tolist()))


def by_first(make: Callable[[], V], helps: Helps | None = None) -> V:
    """What rank 0 makes, of what JSON can hold, on every rank: measured, chosen or written once for all of them.

    helps: what the others do meanwhile when it asks (`ask`). When rank 0 raises, the others raise RunError: nobody
    waits for a process that has left.
    """
    if not is_parallel():
        return make()
    if rank() != 0:
        answer: Any = from_rank(0, None, waits_for_work=True)
        while "asked" in answer:
            (helps or {})[answer["asked"]](answer["argument"])
            answer = from_rank(0, None, waits_for_work=True)
        if answer["failed"] is not None:
            raise RunError(f"the first process cannot go on: {answer['failed']}")
        return answer["made"]
    try:
        value = make()
    except Exception as error:
        from_first({"failed": getattr(error, "message", type(error).__name__)})
        raise
    from_first({"made": value, "failed": None})
    return value


def ask(helps: Helps, name: str, argument: Any) -> Any:
    """By rank 0 while it makes something: all ranks do this now; -> what came of it here."""
    from_first({"asked": name, "argument": argument})
    return helps[name](argument)


def first_reason(reason: str) -> str:
    """That of the first rank which has one, on every rank; "" where none has."""
    having = by_rank(bool(reason))
    return from_rank(having.index(1.0), reason) if any(having) else ""


def in_step(items: Iterable[V]) -> Iterator[V | None]:
    """Each rank's items, as many on every rank: None from one that has no more."""
    rest = iter(items)
    while True:
        item = next(rest, None)
        if not sum_numbers(item is not None)[0]:
            return
        yield item


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
    """Inside, what torch.distributed says of a connection that has ended becomes Lost, where processes are stages; what
    `train.watchdog` finds out goes before it."""
    try:
        yield
    except RuntimeError as error:
        if not _STAGES.get():
            raise
        said = " ".join(str(error).split())
        raise Lost(f"another process has gone: {said:.160}", hint="the last checkpoint is whole") from error


def lost(error: BaseException) -> bool:
    """Whether this is how the end of another process is noticed."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


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
        with waiting(for_first=True):
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
    with waiting():
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
