"""Which library multiplies matrices, for each kind of product: measured when it is first met, kept in a file.

A kind is format, layout and size class: sizes by powers of four up to 768, since beyond that no library's speed
changes with size. It is measured on operands of the class's own size (7 MB in float32), never on the caller's, so
that what is kept does not depend on who came first. The choice stands in cache_dir()/matmul.json under processor,
threads and torch; the first one written holds for every process, which makes a run's numbers repeatable on this
machine. A run's state holds what it used too (`choices`, `adopt`), because a cache can be deleted.
"""

from __future__ import annotations

import bisect
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir, exclusive
from shoestring.core.foreign import read_json
from shoestring.core.machine import cpu_identity

Product = Callable[[Tensor, Tensor], Tensor]  # (rows_MK, weight_NK) -> rows · weightᵀ

FASTER = 1.05  # what a library must gain to be taken instead of torch's own
_HOPELESS, _QUICK = 3, 1e-3  # times slower on small operands, and more seconds: not tried on larger, taking seconds
_SIZES = (12, 48, 192, 768)
_LIMITS = (24, 96, 384)  # sizes up to these belong to the first, second, third
_ROUNDS, _SHORT, _LONG = 3, 0.01, 0.15  # at least so many rounds; seconds, at least and at most
_STEADY = 1.05  # what the two best times of a library may differ by; a busy machine is asked again

LAYOUTS = {  # whether rows and weight are transposed views
    (False, False): "forward",  # x·Wᵀ
    (False, True): "input gradient",  # g·W
    (True, True): "weight gradient",  # gᵀ·x
    (True, False): "rows transposed",
}


class Kind(NamedTuple):
    """M rows, N outputs, K summed over: the sizes of a class."""

    dtype: torch.dtype
    layout: str
    M: int
    N: int
    K: int

    @classmethod
    def of(cls, dtype: torch.dtype, layout: str, M: int, N: int, K: int) -> Kind:
        """The kind that a product of these sizes belongs to."""
        return cls(dtype, layout, *(_SIZES[bisect.bisect_left(_LIMITS, size)] for size in (M, N, K)))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.layout} {self.M}x{self.N}x{self.K}"

    @property
    def operations(self) -> int:
        return 2 * self.M * self.N * self.K

    def operands(self) -> tuple[Tensor, Tensor]:
        """rows_MK and weight_NK as they would lie in memory; no random number is drawn."""
        lies = {name: transposed for transposed, name in LAYOUTS.items()}[self.layout]
        rows, weight = (
            torch.ones(self.K, size, dtype=self.dtype, device="cpu").t()
            if transposed
            else torch.ones(size, self.K, dtype=self.dtype, device="cpu")
            for size, transposed in zip((self.M, self.N), lies, strict=True)
        )
        return rows, weight


def machine_key() -> str:
    """What choices hold for."""
    return f"{_processor()} | {torch.get_num_threads()} threads | torch {torch.__version__}"


@functools.cache
def _processor() -> str:
    return f"{cpu_identity()}, {torch.backends.cpu.get_cpu_capability()}"


class Clocks(NamedTuple):
    """Seconds: of this thread on a processor, and of the wall."""

    processor: Callable[[], float] = time.thread_time if sys.platform != "win32" else time.perf_counter
    wall: Callable[[], float] = time.perf_counter


class Measured(NamedTuple):
    """seconds by library, of a product with `threads` threads; a hopeless library's reckoned from a smaller one."""

    seconds: dict[str, float]
    threads: int


class Table:
    """libraries: products by name for a format, torch's own first. forced: the one to take, "" to measure."""

    def __init__(
        self,
        libraries: Callable[[torch.dtype], Mapping[str, Product]],
        forced: str = "",
        clocks: Clocks = Clocks(),  # noqa: B008  it is never changed
    ):
        self._libraries, self._clocks = libraries, clocks
        self.forced = forced if forced in ("torch", "onednn") else ""
        self._products: dict[tuple[Kind, int], Product] = {}
        self._chosen: dict[str, dict[str, str]] = {}  # machine -> kind -> library, as this process uses them
        self._entries: dict[str, dict[str, Any]] = {}  # what the file cannot hold where it cannot be written
        self._lock = threading.RLock()

    def product(self, kind: Kind) -> Product:
        """The product of the library that serves this kind."""
        key = kind, torch.get_num_threads()
        found = self._products.get(key)
        if found is None:
            with self._lock:
                found = self._products[key] = self._libraries(kind.dtype)[self.choose(kind)]
        return found

    def choose(self, kind: Kind) -> str:
        """The name of the library that serves this kind, from now on in this process."""
        with self._lock:
            chosen = self._chosen.setdefault(machine_key(), {})
            name = chosen.get(str(kind))
            if name is None:
                allowed = self._allowed(kind.dtype)
                chosen[str(kind)] = name = allowed[0] if len(allowed) == 1 else self.entry(kind)["library"]
            return name

    def entry(self, kind: Kind) -> dict[str, Any]:
        """`library`, the fastest, and `gflops` by library of so many `threads`; measured where the file has none."""
        machine = machine_key()
        with self._lock:
            known = self._entries.get(f"{machine} | {kind}") or self._in_file(_read(), machine, kind)
            if known is not None:
                return known
            try:
                path = _path()
                with exclusive(path.with_name(f".{path.name}.lock")):  # whoever waited here finds it measured
                    content = _read()
                    known = self._in_file(content, machine, kind)
                    if known is None:
                        known = self._measured(kind)
                        content.setdefault(machine, {})[str(kind)] = known
                        with atomic_write(path) as file:
                            json.dump(content, file, indent=1, sort_keys=True)
            except (OSError, ShoestringError):  # no cache: this process alone goes by what it measures
                known = known or self._measured(kind)
                self._entries[f"{machine} | {kind}"] = known
            return known

    def choices(self) -> dict[str, Any]:
        """What this process has used on this machine, as plain JSON for a run's state."""
        machine = machine_key()
        return {"machine": machine, "choices": dict(sorted(self._chosen.get(machine, {}).items()))}

    def adopt(self, recorded: Mapping[str, Any]) -> bool:
        """Use what `choices` gave in another process, whatever the file says.

        False where that cannot be: it was another processor, number of threads or torch, or another library is
        forced now. Then the choices are this machine's, and results may differ in the last bits.
        """
        choices = recorded.get("choices", {})
        if not choices:
            return True
        if not isinstance(choices, dict) or not all(isinstance(name, str) for name in choices.values()):
            return False
        allowed = {str(dtype).removeprefix("torch."): self._allowed(dtype) for dtype in (torch.float32, torch.bfloat16)}
        here = all(name in allowed.get(kind.partition(" ")[0], ()) for kind, name in choices.items())
        if recorded.get("machine") != machine_key() or not here:
            return False
        with self._lock:
            self._chosen.setdefault(machine_key(), {}).update(choices)
            self._products.clear()
        return True

    def _allowed(self, dtype: torch.dtype) -> list[str]:
        available = list(self._libraries(dtype))
        if self.forced:
            return [self.forced if self.forced in available else available[0]]
        return available

    def _in_file(self, content: dict[str, Any], machine: str, kind: Kind) -> dict[str, Any] | None:
        known = content.get(machine, {}).get(str(kind))
        usable = isinstance(known, dict) and known.get("library") in self._libraries(kind.dtype)
        return known if usable else None

    def _measured(self, kind: Kind) -> dict[str, Any]:
        seconds, threads = measure(kind, self._libraries(kind.dtype), self._clocks)
        own, best = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
        return {
            "library": best if seconds[own] >= FASTER * seconds[best] else own,
            "gflops": {name: float(f"{kind.operations / each / 1e9:.4g}") for name, each in seconds.items()},
            "threads": threads,
        }


def measure(kind: Kind, products: Mapping[str, Product], clocks: Clocks) -> Measured:
    """Each library's best time, of calls that take turns.

    Other programs make threads wait for one another, the slowest of them each time, so figures are of all threads
    only where those beat one thread's processor time, which nobody disturbs; otherwise they are of one thread.
    """
    threads = torch.get_num_threads()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            torch.set_num_threads(1)
            small = kind._replace(M=max(kind.M // 4, 12), N=max(kind.N // 4, 12), K=max(kind.K // 4, 12))
            first, _ = _take_turns(small, products, clocks.processor, longest=0.0)
            bound = max(_HOPELESS * min(first.values()), _QUICK)
            hopeful = {name: product for name, product in products.items() if first[name] <= bound}
            alone, _ = _take_turns(kind, hopeful, clocks.processor, _LONG)
        finally:
            torch.set_num_threads(threads)
        together, steady = (alone, True) if threads == 1 else _take_turns(kind, hopeful, clocks.wall, _LONG)
    quiet = steady and all(together[name] <= alone[name] for name in hopeful)
    seconds = {name: each * kind.operations / small.operations for name, each in first.items()}
    return Measured(seconds | (together if quiet else alone), threads if quiet else 1)


def _take_turns(
    kind: Kind, products: Mapping[str, Product], clock: Callable[[], float], longest: float
) -> tuple[dict[str, float], bool]:
    """Best seconds by library, and whether they would come out like this again."""
    operands = kind.operands()
    times: dict[str, list[float]] = {name: [] for name in products}
    for product in products.values():  # kernels are made, pages touched
        product(*operands)
    started, rounds, enough, steady = clock(), 0, False, False
    while not enough:
        for name in sorted(products, reverse=rounds % 2 == 1):
            before = clock()
            products[name](*operands)
            times[name].append(clock() - before)
        rounds, elapsed = rounds + 1, clock() - started
        steady = rounds > 1 and all(best[1] <= _STEADY * best[0] for best in map(sorted, times.values()))
        enough = rounds > 1 and (elapsed >= longest or (rounds >= _ROUNDS and elapsed >= _SHORT and steady))
    return {name: max(min(each), 1e-9) for name, each in times.items()}, steady


def _path() -> Path:
    return cache_dir() / "matmul.json"


def _read() -> dict[str, Any]:
    """The file's machines; unreadable ones only cost time."""
    try:
        content = read_json(_path())
    except (OSError, ValueError, ShoestringError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {machine: kinds for machine, kinds in content.items() if isinstance(kinds, dict)}
