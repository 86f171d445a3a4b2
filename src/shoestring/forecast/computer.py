"""This machine, measured and described as a file describes one (`plan.machine_file`).

What it says of a GPU has not been run on one.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

from shoestring.core.files import cache_dir
from shoestring.plan.machine_file import DiskConfig, GPUConfig, MachineConfig, ProcessConfig, ProductsConfig


def this_computer(process: ProcessConfig, refresh: bool = False) -> MachineConfig:
    """refresh: measure again what is known. What is not known yet takes some seconds."""
    import torch

    from shoestring.core import machine, speeds
    from shoestring.core.device import resolve_device
    from shoestring.train.planning import int8_gain, multiplies_by_onednn

    peaks = {name: speeds.matrix_peak(name, "cpu", refresh=refresh) for name in ("float32", "bfloat16")}
    return MachineConfig(
        processor=machine.cpu_model(),
        cores=machine.cpu_count(),
        threads=torch.get_num_threads(),
        memory=machine.total_memory_bytes(),
        memory_bandwidth=speeds.memory_bandwidth(refresh=refresh),
        products=ProductsConfig(**peaks),
        int8_gain=int8_gain(),
        onednn=multiplies_by_onednn(),
        process=process,
        disk=DiskConfig(free=shutil.disk_usage(cache_dir()).free, read_speed=speeds.disk_read_speed()),
        gpu=_gpu(resolve_device("auto")),
        torch=torch.__version__,
    )


def _gpu(device: Any) -> GPUConfig | None:
    """The first that torch sees; memory of Apple's is the machine's, and is not told apart."""
    import torch

    from shoestring.core.speeds import matrix_peak

    if device.type != "cuda":
        return None
    formats = ("float32", "bfloat16", "float16")
    return GPUConfig(
        name=torch.cuda.get_device_name(device),
        memory=torch.cuda.get_device_properties(device).total_memory,
        memory_bandwidth=_bandwidth(device),
        products=ProductsConfig(**{name: matrix_peak(name, device) for name in formats}),
    )


def _bandwidth(device: Any) -> float:
    """Bytes per second of reading a GPU's memory: the sum of a float32 array of 1 GB, the best of 5."""
    import torch

    array, found = torch.ones(250_000_000, device=device), 0.0
    for _ in range(6):
        torch.cuda.synchronize(device)
        before = time.perf_counter()
        array.sum()
        torch.cuda.synchronize(device)
        found = max(found, array.numel() * 4 / (time.perf_counter() - before))
    return found
