"""What this machine can do, measured: matrix products, memory and disk.

Peaks are the ceilings that progress lines and plans compare with, so they are measured with the libraries that train
(`core.matmul`), not read from a data sheet; the best of them all in several rounds, cached per CPU, threads and torch.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir
from shoestring.core.foreign import read_json
from shoestring.core.machine import cpu_identity, total_memory_bytes

if TYPE_CHECKING:
    import torch

FEW = 16_000_000  # numbers: 64 MB, still more than processors keep beside them


def matrix_peak(
    dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu", refresh: bool = False
) -> float:
    """FLOP/s of large matrix products in `dtype` on `device`: the best library's best of many rounds, 0.5 s once.

    2·M·N·K operations for M x K by K x N. Cached in cache_dir()/machine.json under processor, threads and torch
    version; refresh: measure again, as `shoestring doctor` does (the first time may have met a busy machine).
    """
    import torch

    from shoestring.core.device import resolve_device, resolve_dtype

    where, number = resolve_device(device), resolve_dtype(dtype)
    name = cpu_identity() if where.type == "cpu" else _device_name(where)
    threads = torch.get_num_threads() if where.type == "cpu" else 0
    form = str(number).removeprefix("torch.")
    key = f"matrix_peak {name} | {threads} threads | torch {torch.__version__} | {form} by the fastest library"
    return _cached(key, lambda: _measure_matrix_peak(number, where), refresh)


def _measure_matrix_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    import torch

    if device.type == "cpu":
        return _cpu_peak(dtype, seconds)
    left, right = (torch.ones(4096, 4096, dtype=dtype, device=device) for _ in range(2))
    return _best_rate([(2 * 4096**3, lambda: torch.mm(left, right))], device, seconds)


def _cpu_peak(dtype: torch.dtype, seconds: float) -> float:
    """Of the fastest library and layout, at sizes that take 21 MB at most in float32.

    Where other programs hold threads up, so that several cannot be measured: one thread's times their number.
    """
    import torch

    from shoestring.core.matmul import libraries
    from shoestring.core.matmul_choice import Clocks, Kind, measure

    products, threads = libraries(dtype), torch.get_num_threads()
    found = []
    for layout in ("forward", "input gradient", "weight gradient"):
        kind = Kind.of(dtype, layout, 1024, 1024, 1024)
        measured = measure(kind, products, Clocks())
        share = measured.threads / threads
        found += [(each * share, share, kind, products[name]) for name, each in measured.seconds.items()]
    best, share, kind, product = min(found, key=lambda one: one[0])
    if share < 1:
        return kind.operations / best
    sizes = [kind._replace(M=M, N=1024, K=1024) for M in (1024, 2048)]
    contenders = [(sized.operations, functools.partial(product, *sized.operands())) for sized in sizes]
    return max(kind.operations / best, _best_rate(contenders, torch.device("cpu"), seconds))


def _best_rate(contenders: Sequence[tuple[int, Callable[[], Any]]], device: torch.device, seconds: float) -> float:
    """Operations per second, the best of many rounds: a ceiling, which what a busy machine gives at times is not."""
    for _, multiply in contenders:  # kernels are chosen, pages touched
        multiply()
    _synchronize(device)
    rates: list[float] = []
    started = time.perf_counter()
    while len(rates) < 200:
        for operations, multiply in contenders:
            before = time.perf_counter()
            multiply()
            _synchronize(device)
            rates.append(operations / (time.perf_counter() - before))
        elapsed = time.perf_counter() - started
        if elapsed > 4 * seconds or (elapsed > seconds and len(rates) >= 5):  # a slow format gets one round
            break
    return max(rates)


def memory_bandwidth(refresh: bool = False, count: int = 64_000_000) -> float:
    """Bytes per second of reading memory: the sum of a float32 array of 256 MB, median of 5.

    Cached like the matrix peak. count: numbers of the array, where there is no memory for as many.
    """
    import torch

    key = f"memory_bandwidth {cpu_identity()} | {torch.get_num_threads()} threads | torch {torch.__version__}"
    return _cached(key, lambda: _measure_memory_bandwidth(count), refresh)


def _measure_memory_bandwidth(count: int) -> float:
    import torch

    array = torch.ones(min(count, total_memory_bytes() // 64))
    rates = []
    for _ in range(6):
        before = time.perf_counter()
        array.sum()
        rates.append(array.numel() * 4 / (time.perf_counter() - before))
    return statistics.median(rates[1:])


def disk_read_speed(folder: str | Path | None = None, size: int = 128_000_000) -> float:
    """Bytes per second of reading a fresh file of `size` bytes in `folder` (default: the cache's disk).

    The file is dropped from the page cache first where the system can (Linux); elsewhere this is an upper
    bound.
    """
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder or cache_dir(), prefix=".disk-speed-") as file:
        for _ in range(max(1, size >> 20)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return file_read_speed(file.name, size)


def file_read_speed(path: str | Path, size: int = 128_000_000) -> float:
    """Bytes per second of reading the first `size` bytes of a file that the page cache does not hold (on Linux)."""
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        buffer, read, before = bytearray(1 << 22), 0, time.perf_counter()
        while read < size and (count := file.readinto(buffer)):
            read += count
        return max(read, 1) / max(time.perf_counter() - before, 1e-6)


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _cached(key: str, measure: Any, refresh: bool) -> float:
    """The figure under `key` in machine.json, measured if absent or if `refresh` asks for it.

    An unreadable or unwritable cache only costs time.
    """
    try:
        path = cache_dir() / "machine.json"
        known = read_json(path)
        known = known if isinstance(known, dict) else {}
    except ShoestringError:
        return measure()
    except (OSError, ValueError):
        known = {}
    figure = known.get(key)
    if not refresh and isinstance(figure, (int, float)) and figure > 0:
        return float(figure)
    known[key] = measure()
    try:
        with atomic_write(path) as file:
            json.dump(known, file, indent=1, sort_keys=True)
    except ShoestringError:
        return known[key]
    return known[key]
