"""This machine and this process: memory in bytes, the processor and its cores. Its speeds are in `core.speeds`.

Memory of the process is what the kernel counts: VmHWM and VmRSS of /proc, elsewhere the nearest thing there is.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


# --- memory of this process and machine, in bytes -----------------------------------------------------------


def peak_rss_bytes() -> int:
    """The largest resident set this process has had (VmHWM), in bytes."""
    if sys.platform == "win32":
        return _windows_memory()["PeakWorkingSetSize"]
    found = _status_field("VmHWM")
    if found is not None:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB


def rss_bytes() -> int:
    """The resident set now (VmRSS), in bytes.

    Where the system offers no cheap way (macOS), the peak so far.
    """
    if sys.platform == "win32":
        return _windows_memory()["WorkingSetSize"]
    found = _status_field("VmRSS")
    return found if found is not None else peak_rss_bytes()


def total_memory_bytes() -> int:
    """The memory this process may use:

    the machine's, or its container's limit (cgroup v2 or v1) if that is less.
    """
    if sys.platform == "win32":
        return _windows_total_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(limit_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():  # "max" means no limit
            total = min(total, int(limit))
    return total


def _status_field(name: str) -> int | None:
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _windows_memory() -> dict[str, int]:
    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS of psapi.h
        _fields_ = [("cb", ctypes.c_ulong), ("PageFaultCount", ctypes.c_ulong)] + [
            (name, ctypes.c_size_t)
            for name in (
                "PeakWorkingSetSize", "WorkingSetSize", "QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage",
                "QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage", "PagefileUsage", "PeakPagefileUsage",
            )
        ]  # fmt: skip

    windows: Any = vars(ctypes)["windll"]
    windows.kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    counters = Counters(cb=ctypes.sizeof(Counters))
    process = ctypes.c_void_p(windows.kernel32.GetCurrentProcess())
    windows.kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb)
    return {name: getattr(counters, name) for name in ("PeakWorkingSetSize", "WorkingSetSize")}


def _windows_total_memory() -> int:
    class Status(ctypes.Structure):  # MEMORYSTATUSEX of sysinfoapi.h
        _fields_ = [("dwLength", ctypes.c_ulong), ("dwMemoryLoad", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "TotalPhys",
                "AvailPhys",
                "TotalPageFile",
                "AvailPageFile",
                "TotalVirtual",
                "AvailVirtual",
                "Extended",
            )
        ]

    windows: Any = vars(ctypes)["windll"]
    status = Status(dwLength=ctypes.sizeof(Status))
    windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.TotalPhys


# --- the processor ------------------------------------------------------------------------------------------


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith(("model name", "Model", "Hardware")):
                    return line.split(":", 1)[1].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine() or "unknown processor"


@functools.cache
def has_int8_instructions() -> bool:
    """Whether this processor multiplies four int8 numbers where it would multiply a float (VNNI, AMX, NEON's)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(f" {name}" in flags for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))


def cpu_identity() -> str:
    """The name with what tells processors of one name apart: clouds call several generations just "AMD EPYC"."""
    numbers: dict[str, str] = {}
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                name, _, value = line.partition(":")
                if name.strip() in ("cpu family", "model", "CPU part"):
                    numbers.setdefault(name.strip(), value.strip())
        except OSError:
            pass
    return ", ".join([cpu_model(), *(f"{name.removeprefix('cpu ')} {value}" for name, value in numbers.items())])


def cpu_count() -> int:
    """The cores this process may use: the affinity mask where there is one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def others_load(seconds: float = 0.25) -> float | None:
    """The share of this process's cores that other processes keep busy, watched for so long; None where unknown.

    Linux counts what each core does; elsewhere it is the average of the last minute, this process included.
    """
    before = _core_times()
    if before:
        time.sleep(seconds)
        busy, total = (now - then for now, then in zip(_core_times() or before, before, strict=True))
        return busy / total if total > 0 else None
    if not hasattr(os, "getloadavg"):
        return None
    return min(os.getloadavg()[0] / cpu_count(), 1.0)


def _core_times() -> tuple[int, int] | None:
    """Clock ticks since the start, of this process's cores together: busy, and all."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    # user, nice, system, idle, waiting for a disk, interrupts, soft interrupts, stolen by other machines
    ticks = [[int(count) for count in line.split()[1:9]] for line in lines if line.split()[0] in names]
    return (sum(sum(each) - each[3] - each[4] for each in ticks), sum(map(sum, ticks))) if ticks else None
