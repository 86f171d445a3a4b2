"""What this torch is able to do: the oldest that serves, and what only some versions, builds and devices have.

Everything else that the package uses is in every torch from `OLDEST` on. Development is on the version that
constraints.txt pins; docs/gpu.md says what was run with the oldest.
"""

from __future__ import annotations

import functools
import importlib.util
import re

import torch

from shoestring.core.errors import ConfigError

OLDEST = (2, 11)


@functools.cache
def require() -> None:
    """Raises ConfigError for a torch that is too old."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is not None and tuple(map(int, found.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"torch {torch.__version__} is too old: {oldest} or newer is needed", hint=f'pip install "torch>={oldest}"'
        )


@functools.cache
def flex_attention(device: torch.device) -> bool:
    """Whether FlexAttention has a kernel that trains here: on CUDA (or ROCm), with Triton, which makes it.

    On other devices it has none that goes backward, in any version so far.
    """
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None
