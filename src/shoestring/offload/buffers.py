"""Memory that the disk can write to."""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.core.direct import BLOCK


def lying_at(offset: int, size: int, pinned: bool = False) -> Tensor:
    """uint8 [size], as far behind a multiple of a block as the bytes at `offset` of a file: they are read in place.

    It takes a block more than its size.
    """
    memory = torch.empty(size + BLOCK, dtype=torch.uint8, pin_memory=pinned)
    begin = (offset - memory.data_ptr()) % BLOCK
    return memory[begin : begin + size]
