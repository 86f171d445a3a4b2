"""One microbatch of token sequences, as every objective, model and engine takes it.

Labels are already shifted: labels_BT[b, t] is the token after tokens_BT[b, t], or -100 where there is none.
Positions restart with each document; segments number the documents of a row, and -1 marks padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100
PADDING_SEGMENT = -1


@dataclass
class Batch:
    """The four arrays _BT are int64 [B, T]; external_BTE: float [B, T, E] or None."""

    tokens_BT: torch.Tensor
    labels_BT: torch.Tensor
    positions_BT: torch.Tensor
    segments_BT: torch.Tensor
    external_BTE: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        external = self.external_BTE
        return Batch(
            self.tokens_BT.to(device, non_blocking=True),
            self.labels_BT.to(device, non_blocking=True),
            self.positions_BT.to(device, non_blocking=True),
            self.segments_BT.to(device, non_blocking=True),
            None if external is None else external.to(device, non_blocking=True),
        )
