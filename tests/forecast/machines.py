"""Machines that plans are made for in tests: no measurement of this one."""

from __future__ import annotations

from typing import Any

import torch

from shoestring.plan.machine_file import MachineConfig

PROCESS = {"decoding": 200_000_000, "training": 250_000_000, "checkpointing": 350_000_000}


def described(**changes: Any) -> MachineConfig:
    """With as many threads as the tests have, on which tensors depend."""
    values: dict[str, Any] = {
        "processor": "a processor", "cores": 2, "threads": torch.get_num_threads(), "memory": 8_000_000_000,
        "memory_bandwidth": 2e10, "products": {"float32": 1e11, "bfloat16": 1e11}, "int8_gain": 1.5, "onednn": False,
        "process": PROCESS, "disk": {"free": 100_000_000_000, "read_speed": 1e9}, "torch": torch.__version__,
    }  # fmt: skip
    return MachineConfig.model_validate({**values, **changes})


GPU = {
    "name": "a GPU", "memory": 8_000_000_000, "memory_bandwidth": 4e11,
    "products": {"float32": 2e13, "bfloat16": 1e14},
}  # fmt: skip
