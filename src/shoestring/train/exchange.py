"""Sums of gradients over all ranks, exchanged while the pass backward still makes others.

Every rank has the whole model. In a step's last pass backward each gradient is final as soon as it is there: gradients
are summed in portions, in an order that is fixed beforehand and the same on all ranks, each portion as soon as it and
those before it are complete. Large gradients are summed where they lie, so that nothing is copied; small ones go
together. Passes before the last one exchange nothing. Sums, not means: the step divides by the count of all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.kernels import allocator
from shoestring.train import parallel

LARGE = 2**18  # numbers from which a gradient travels alone
TOGETHER = 2**20  # numbers that small ones travel with


class _Portion:
    """parameters: whose gradients travel together. missing: how many of them are not there yet."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.missing = len(parameters)
        self._flat: Tensor | None = None
        self._work: dist.Work | None = None

    @property
    def sent(self) -> bool:
        return self._work is not None

    def send(self) -> None:
        """A gradient that this rank has not counts as zero."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) == 1 and gradients[0].is_contiguous():
            travelling = gradients[0]
        else:
            travelling = self._flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._work = dist.all_reduce(travelling, async_op=True)

    def receive(self) -> None:
        assert self._work is not None
        with parallel.waiting():
            self._work.wait()
        if self._flat is not None:
            parts = self._flat.split([parameter.numel() for parameter in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(part.view_as(parameter))
        self._flat = None


class Exchange:
    """One step's. parameters: all of the model's, in one order on all ranks."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        # The last of a model are the first to have gradients.
        trained = [parameter for parameter in reversed(list(parameters)) if parameter.requires_grad]
        self._portions = [_Portion(some) for some in _portions(trained)]
        self._of = {id(p): portion for portion in self._portions for p in portion.parameters}
        self._next = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def begin(self) -> None:
        """The next pass backward is the last of this step on this rank."""
        for portion in self._portions:
            for parameter in portion.parameters:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._arrived))

    def _arrived(self, parameter: Tensor) -> None:
        portion = self._of[id(parameter)]
        portion.missing -= 1
        assert portion.missing >= 0, "one pass backward gives each its gradient once"
        while self._next < len(self._portions) and not self._portions[self._next].missing:
            self._portions[self._next].send()
            self._next += 1

    def finish(self) -> None:
        """All gradients are there: send what has no gradient on this rank, and take the sums."""
        self._unhook()
        for portion in self._portions[self._next :]:
            portion.send()
        for portion in self._portions:
            portion.receive()

    def give_up(self) -> None:
        """This rank cannot do its part: the others still get from it what they wait for, one after another."""
        self._unhook()
        allocator.limit()  # the run ends, and what follows must not fail
        for portion in self._portions:
            if not portion.sent:
                portion.send()
            portion.receive()
            for parameter in portion.parameters:
                parameter.grad = None

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _portions(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Large ones alone, each where its turn is; small ones of one dtype with their neighbours."""
    together: list[nn.Parameter] = []
    for parameter in parameters:
        if parameter.numel() >= LARGE:
            yield [parameter]
            continue
        if together and parameter.dtype != together[0].dtype:
            yield together
            together = []
        together.append(parameter)
        if sum(p.numel() for p in together) >= TOGETHER:
            yield together
            together = []
    if together:
        yield together


@contextlib.contextmanager
def exchanging(parameters: Iterable[nn.Parameter]) -> Iterator[Exchange | None]:
    """Around a step's passes backward: at its end `.grad` is the sum over all ranks. None in a single process.

    Where memory is refused inside, the others are not left waiting.
    """
    if not parallel.is_parallel():
        yield None
        return
    exchange = Exchange(parameters)
    try:
        yield exchange
        exchange.finish()
    except RuntimeError:
        exchange.give_up()
        raise
