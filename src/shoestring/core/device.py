"""Names of devices and number formats, as recipes and flags write them, turned into torch's objects.

"auto" prefers CUDA, then Apple's MPS, then the CPU. MPS runs where torch does; we have not run it ourselves.
"""

from __future__ import annotations

from typing import Any

import torch

from shoestring.core import torch_features
from shoestring.core.errors import ConfigError

_DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
    "float64": torch.float64, "fp64": torch.float64,
}  # fmt: skip


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1" or "mps".

    Raises ConfigError if unknown or absent here, or if torch is too old.
    """
    torch_features.require()
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise ConfigError(f"unknown device {name!r}", hint="expected one of: auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                "device cuda is not usable with this torch build and machine", hint="use cpu or auto"
            )
        if index and int(index) >= torch.cuda.device_count():
            raise ConfigError(
                f"device {name} does not exist: this machine has {torch.cuda.device_count()} GPU(s)"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "device mps is not usable with this torch build and machine", hint="use cpu or auto"
        )
    return torch.device(name)


def resolve_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype for "float32", "bfloat16", "float16", "float64" or a short form such as "bf16"."""
    if isinstance(name, torch.dtype):
        return name
    if name not in _DTYPES:
        raise ConfigError(f"unknown number format {name!r}", hint=f"expected one of: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on this device, not waited for: CUDA copies pinned memory beside its work, and any other after it."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def numbers_on(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`torch.tensor(values)` on this device, not waited for."""
    made = torch.tensor(values, dtype=dtype, device="cpu")
    return made if device.type == "cpu" else to_device(made, device)


def check_memory_budget(memory: int | None, device: torch.device) -> None:
    """Raises ConfigError for a budget on a GPU: what is counted and predicted is the process's own memory."""
    if memory is not None and device.type != "cpu":
        raise ConfigError(
            f"a memory budget counts the process's memory, and on {device.type} a model lies in the GPU's",
            hint="leave out --memory, or stay on the CPU with --device cpu",
        )
