"""Memory that the disk can write to."""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.core.direct import BLOCK


def whole_blocks(count: int, dtype: torch.dtype = torch.uint8, pinned: bool = False) -> Tensor:
    """So many numbers, which begin at a multiple of a block of the disk."""
    size = count * dtype.itemsize
    memory = torch.empty(size + BLOCK, dtype=torch.uint8, pin_memory=pinned)
    begin = -memory.data_ptr() % BLOCK
    return memory[begin : begin + size].view(dtype)
