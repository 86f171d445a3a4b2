"""Torch on top of the allocator, in one child that has installed it: other tests look at this process's memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from queue import SimpleQueue

import pytest
import torch

from shoestring.kernels import allocator, compiled
from tests.kernels.allocator_model import NEEDS_COMPILER, SWITCHES, occupied

early: list[torch.Tensor] = []  # in the child: made by torch's own allocator


def _install() -> None:
    torch.set_num_threads(1)
    early.append(torch.ones(1_000_000))
    assert not allocator.installed() and allocator.counts() is None
    assert allocator.install() and allocator.install() and allocator.installed()


@pytest.fixture(scope="module")
def there() -> Iterator[Callable]:
    """Calls a function of this module in a child whose tensors the allocator makes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _install) as child:
        yield lambda function: child.submit(function).result(timeout=300)


def _counts() -> allocator.Counts:
    gc.collect()
    found = allocator.counts()
    assert found is not None
    return found


@NEEDS_COMPILER
def test_bytes_of_tensors_are_counted_exactly(there: Callable) -> None:
    there(_exact)


def _exact() -> None:
    allocator.reset_peaks()
    before = _counts()
    small, large, none = torch.empty(999), torch.empty(1_000_001, dtype=torch.uint8), torch.empty(0)
    assert _counts().live - before.live == 4 * 999 + 1_000_001 and none.data_ptr() == 0
    assert _counts().held - before.held <= occupied(4 * 999) + occupied(1_000_001)
    del small, large
    after = _counts()
    assert after.live == before.live and after.live_peak - before.live == 4 * 999 + 1_000_001
    assert after.allocations - before.allocations == 2


@NEEDS_COMPILER
def test_a_trace_is_every_block_in_order(there: Callable) -> None:
    there(_traced)


def _traced() -> None:
    live = _counts().live
    allocator.trace_start()
    first = torch.empty(100_000)
    second = torch.empty(10)
    del first, second
    events = allocator.trace_stop()
    assert [event.bytes for event in events] == [400_000, 40, -400_000, -40]
    assert [event.live - live for event in events] == [400_000, 400_040, 40, 0]
    assert events[0].block == events[2].block != events[1].block == events[3].block
    torch.empty(10)
    assert allocator.trace_stop() == []


@NEEDS_COMPILER
def test_what_does_not_fit_is_refused_with_its_size_and_the_rest_goes_on(there: Callable) -> None:
    there(_refusal)


def _refusal() -> None:
    before = _counts()
    cap = before.live + 10_000_000
    allocator.limit(cap=cap)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(3_000_000)
        assert allocator.refused(caught.value) == (12_000_000, before.live, cap)
        assert _counts().live == before.live
        torch.empty(2_000_000).fill_(1)
        with pytest.raises(RuntimeError) as other:
            torch.empty(2) @ torch.empty(3)
        assert allocator.refused(other.value) is None
    finally:
        allocator.limit()


@NEEDS_COMPILER
def test_a_gradient_that_does_not_fit_is_refused_as_well(there: Callable) -> None:
    there(_refused_backward)


def _refused_backward() -> None:
    weight = torch.ones(1_000_000, requires_grad=True)
    loss = (weight * 2).sum()
    allocator.limit(cap=_counts().live + 1_000_000, target=0)
    try:
        with pytest.raises(RuntimeError) as caught:
            loss.backward()
    finally:
        allocator.limit()
    found = allocator.refused(caught.value)
    assert found is not None and found.asked == 4_000_000


@NEEDS_COMPILER
def test_tensors_from_before_go_back_to_their_own_maker(there: Callable) -> None:
    there(_earlier)


def _earlier() -> None:
    before = _counts()
    assert early.pop().sum() == 1_000_000
    assert _counts().live == before.live


@NEEDS_COMPILER
def test_copies_on_write_are_blocks_of_their_own(there: Callable) -> None:
    there(_copies)


def _copies() -> None:
    x = torch.arange(100_000)
    before = _counts().live
    y = torch._lazy_clone(x)
    assert _counts().live == before
    y[0] = 7
    assert _counts().live - before == 800_000 and x[0] == 0 and torch.equal(x[1:], y[1:])


@NEEDS_COMPILER
def test_the_profiler_sees_memory_as_from_torchs_own_allocator(there: Callable) -> None:
    assert there(_profiled) == _profiled() == [-4_000_000, 4_000_000]


def _profiled() -> list[int]:
    from torch.autograd.profiler_legacy import profile  # torch.profiler takes five seconds to begin

    with profile(profile_memory=True) as profiler:
        kept = torch.empty(1_000_000)
        del kept
    assert profiler.function_events is not None
    return sorted(event.self_cpu_memory_usage for event in profiler.function_events)


def _losses() -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 128), torch.nn.Linear(128, 512), torch.nn.GELU())
    model.append(torch.nn.Linear(512, 50))
    moments = [torch.zeros_like(weight) for weight in model.parameters()]
    tokens = torch.randint(50, (4, 128))
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():  # not torch.optim, which takes seconds to import
            for weight, moment, gradient in zip(model.parameters(), moments, gradients, strict=True):
                weight -= moment.mul_(0.9).add_(gradient)
        losses.append(loss.item())
    return losses


@NEEDS_COMPILER
def test_training_gives_the_same_losses_bit_for_bit(there: Callable) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert there(_losses) == _losses()
    finally:
        torch.set_num_threads(threads)


@NEEDS_COMPILER
def test_a_step_like_the_one_before_takes_no_new_pages(there: Callable) -> None:
    there(_again)


def _again() -> None:
    allocator.give_back()
    before = _counts().fresh
    first = _losses()
    between = _counts().fresh
    assert first == _losses()
    assert between > before and _counts().fresh == between


@NEEDS_COMPILER
def test_threads_free_one_anothers_tensors(there: Callable) -> None:
    there(_threads)


def _threads() -> None:
    before = _counts().live
    queue: SimpleQueue = SimpleQueue()

    def work(seed: int) -> None:
        for i in range(200):
            size = 1 + (seed * 7919 + i * 104729) % 300_000
            queue.put(torch.full((size,), i, dtype=torch.uint8))
            if i % 2:
                found = queue.get()
                assert bool((found == found[0]).all())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while not queue.empty():
        queue.get()
    after = _counts()
    assert after.live == before and after.live_peak >= after.live and after.held_peak >= after.live_peak


@NEEDS_COMPILER
def test_a_child_of_a_busy_process_makes_tensors(there: Callable) -> None:
    there(_forks)


def _forks() -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            torch.empty(3_000_000, dtype=torch.uint8)
            allocator.give_back()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                try:
                    assert torch.full((2_000_000,), 3, dtype=torch.uint8)[-1] == 3
                    os._exit(0)
                finally:
                    os._exit(1)
            assert _status(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _status(child: int) -> int:
    for _ in range(600):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("the child waits for a lock that nobody holds")


# --- without it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", SWITCHES)
def test_without_it_glibc_is_told_what_to_give_back(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch, "off")
    monkeypatch.setattr(allocator, "_library", lambda: compiled.kernel.__wrapped__("allocator"))
    monkeypatch.setattr(allocator, "_installed", False)
    told: list[int] = []
    monkeypatch.setattr(allocator, "map_large_tensors", told.append)
    assert not allocator.install(threshold=1 << 17)
    assert told == [1 << 17] and not allocator.installed() and allocator.counts() is None


def test_where_torch_makes_tensors_elsewhere_nothing_is_counted_or_limited(monkeypatch) -> None:
    monkeypatch.setattr(allocator, "_installed", False)
    allocator.limit(cap=1)
    allocator.reset_peaks()
    allocator.give_back()
    assert allocator.counts() is None and allocator.live() == allocator.kept() == 0
    assert torch.ones(1000).sum() == 1000  # the cap was not set
    with pytest.raises(AssertionError, match="install"):
        allocator.trace_start()
