"""`python -m shoestring.laptops.describe`: what this machine can do, measured, for a plan over several machines."""

from __future__ import annotations

import platform
from typing import Any

from shoestring.laptops.answering import answer


def described(_: dict[str, Any]) -> dict[str, Any]:
    """Bytes, operations per second."""
    import torch

    from shoestring.core.machine import cpu_count, cpu_model, rss_bytes, total_memory_bytes
    from shoestring.core.matmul import TABLE
    from shoestring.core.matmul_choice import LAYOUTS, Kind
    from shoestring.core.speeds import matrix_peak
    from shoestring.kernels import allocator
    from shoestring.train.first_use import first_use
    from shoestring.train.planning import int8_gain

    allocator.install()
    flops = {form: matrix_peak(form, "cpu") for form in ("float32", "bfloat16")}
    first_use(checkpointing=True)
    large = Kind.of(torch.float32, LAYOUTS[False, False], 768, 768, 768)
    return {
        "system": platform.system(),
        "processor": cpu_model(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": total_memory_bytes(),
        "process": rss_bytes() - allocator.kept(),
        "flops": flops,
        "int8_gain": int8_gain(),
        "onednn": TABLE.choose(large) == "onednn",
    }


if __name__ == "__main__":
    answer(described)
