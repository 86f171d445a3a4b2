"""Tensors to and from other stages over torch.distributed: raw numbers whose shapes both sides know, nothing else.

No object collectives, so nothing received is unpickled. PyTorch's own pipeline stages (torch.distributed.pipelining)
learn shapes by pickled objects unless all microbatches of all steps have one shape; ours have lengths of their own.
Sends go on while the sender computes; what is expected is asked for ahead, because gloo moves nothing before both sides
are there. A marker of one number comes before each message: until it is there, its sender is at work, and what passes
then is the network. So a process knows what it has waited for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.train import parallel

R = TypeVar("R")

FORWARD, BACKWARD, LENT, RETURNED = range(4)  # ways, which have messages numbered for themselves
_GO, _STOP = 1, 0  # what a marker says
_ROUNDS, _MESSAGES = 2**10, 2**18  # of which tags are made
_ON_THEIR_WAY = 32  # tensors, marker included: more are waited for


class Like(NamedTuple):
    """What a tensor that is to come looks like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Wire:
    """waiting: seconds for others to finish their part; network: for tensors under way. sent: bytes, markers apart.

    A round is a step, or a pass without gradients: messages of one are never taken for those of another.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.waiting = self.network = 0.0
        self.sent = 0
        self._round = 0
        self._numbers: dict[tuple[bool, int, int], int] = {}
        self._going: deque[tuple[Any, Tensor]] = deque()
        self._peers: set[int] = set()

    def begin(self) -> None:
        """A new round; all begin it."""
        self._round += 1
        self._numbers = {}

    def send(self, tensors: Sequence[Tensor], to: int, way: int) -> None:
        """To stage `to`, which expects them; they must not be changed any more."""
        self._send(torch.tensor([_GO]), to, way)
        for tensor in tensors:
            self.sent += tensor.nbytes
            self._send(tensor.detach().contiguous(), to, way)
        self._settle(_ON_THEIR_WAY)

    def expect(self, likes: Iterable[Like], source: int, way: int) -> Expected:
        """A message of these tensors that stage `source` sends."""
        buffers = [torch.empty(1, dtype=torch.int64)]
        buffers += [torch.empty(like.shape, dtype=like.dtype, device=parallel.exchange_device()) for like in likes]
        works = [self._begun(dist.irecv, buffer, source, self._tag(False, source, way)) for buffer in buffers]
        return Expected(self, buffers, works)

    def receive(self, likes: Iterable[Like], source: int, way: int) -> list[Tensor]:
        return self.expect(likes, source, way).take()

    def abort(self, others: Iterable[int]) -> None:
        """This process cannot go on with the round: whoever waits for it learns so."""
        for peer in others:
            for way in range(4):
                self._send(torch.tensor([_STOP]), peer, way)

    def settle(self) -> None:
        """Until all that was sent has been taken."""
        self._settle(0)

    def timed(self, call: Callable[[], R], waiting: bool) -> R:
        """What a call returns, its seconds counted. Raises `parallel.Lost` where another process has gone."""
        started = time.perf_counter()
        try:
            with parallel.telling_of_losses():
                return call()
        finally:
            seconds = time.perf_counter() - started
            if waiting:
                self.waiting += seconds
            else:
                self.network += seconds

    def _send(self, tensor: Tensor, to: int, way: int) -> None:
        tensor = tensor.to(parallel.exchange_device())
        self._going.append((self._begun(dist.isend, tensor, to, self._tag(True, to, way)), tensor))

    def _settle(self, most: int) -> None:
        while len(self._going) > most:
            work, _ = self._going.popleft()
            self.timed(work.wait, waiting=False)

    def _tag(self, out: bool, peer: int, way: int) -> int:
        number = self._numbers.get((out, peer, way), 0)
        self._numbers[out, peer, way] = number + 1
        return (self._round % _ROUNDS * _MESSAGES + number % _MESSAGES) * 4 + way

    def _begun(self, call: Callable[..., Any], tensor: Tensor, peer: int, tag: int) -> Any:
        with parallel.telling_of_losses():
            return call(tensor, peer, tag=tag)


class Expected:
    """A message that is to come."""

    def __init__(self, wire: Wire, buffers: list[Tensor], works: list[Any]):
        self._wire, self._buffers, self._works = wire, buffers, works

    def take(self) -> list[Tensor]:
        """Its tensors, waited for. Raises `parallel.Elsewhere` where the sender cannot go on with the round."""
        wire, (marker, *payload) = self._wire, self._works
        wire.timed(marker.wait, waiting=True)
        if int(self._buffers[0]) == _STOP:
            raise parallel.Elsewhere("another process could not do its part of the step")
        for work in payload:
            wire.timed(work.wait, waiting=False)
        return [buffer.to(wire.device) for buffer in self._buffers[1:]]


class Inbox:
    """Messages of one way in their order, so many of them asked for ahead."""

    def __init__(self, wire: Wire, messages: Sequence[Sequence[Like]], source: int, way: int, ahead: int = 2):
        self._wire, self._source, self._way = wire, source, way
        self._coming = iter(messages)
        self._expected: deque[Expected] = deque()
        for _ in range(ahead):
            self._ask()

    def take(self) -> list[Tensor]:
        found = self._expected.popleft().take()
        self._ask()
        return found

    def _ask(self) -> None:
        likes = next(self._coming, None)
        if likes is not None:
            self._expected.append(self._wire.expect(likes, self._source, self._way))
