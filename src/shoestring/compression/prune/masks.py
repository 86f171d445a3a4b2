"""Which weights of a matrix become zero: those of the lowest scores, an exact number of them.

    magnitude   |w|, over the whole matrix (Han et al., arXiv 1506.02626)
    wanda       |w_oi| · ‖x_i‖ over the calibration inputs x, in each row apart (arXiv 2306.11695)

With a pattern N:M each run of M inputs of a row keeps its N highest, whatever the method. A weight that is zero already
has the lowest score there is, so that a model that is pruned in rounds keeps its zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.passage import Passage, inputs_of
from shoestring.compression.prune.config import Method
from shoestring.compression.quantize.config import STAGES


@dataclass(frozen=True)
class Mask:
    """sparsity: part of a matrix, or of a row, that becomes zero; or zeros: so many of so many neighbours."""

    method: Method
    sparsity: float | None
    zeros: tuple[int, int] | None

    def of(self, score_OI: Tensor) -> Tensor:
        """[O, I]: True where a weight is kept."""
        if self.zeros is not None:
            count, of = self.zeros
            return _kept(score_OI.reshape(-1, of), count).view_as(score_OI)
        assert self.sparsity is not None
        rows = score_OI if self.method == "wanda" else score_OI.reshape(1, -1)
        return _kept(rows, int(rows.shape[1] * self.sparsity)).view_as(score_OI)


def _kept(score_NI: Tensor, zeros: int) -> Tensor:
    """All but the lowest of each row."""
    kept = torch.ones_like(score_NI, dtype=torch.bool)
    return kept.scatter_(1, score_NI.topk(zeros, 1, largest=False, sorted=False).indices, False)


def input_norms(block: nn.Module, linear: str, passages: Sequence[Passage]) -> Tensor:
    """‖x_i‖ of each input over all tokens of the text, [I]."""
    module: Any = block.get_submodule(linear)
    squares_I = torch.zeros(module.in_features, dtype=torch.float64)
    for x_NI in inputs_of(block, linear, passages):
        squares_I += x_NI.double().square().sum(0)
    return squares_I.sqrt().float()


@torch.no_grad()
def mask_block(
    block: nn.Module, mask: Mask, passages: Sequence[Passage], done: Callable[[], Any]
) -> dict[str, tuple[int, float]]:
    """Make weights of the block's linears zero, in place; -> of each, how many are zero, and what part of the sum of
    scores went. Inputs are those behind the linears before, which are pruned. done: called after each linear."""
    found = {}
    for stage in STAGES:
        norms_I = input_norms(block, stage[0], passages) if mask.method == "wanda" else None
        for name in stage:
            linear: Any = block.get_submodule(name)
            score_OI = linear.weight.abs() if norms_I is None else linear.weight.abs() * norms_I
            kept_OI = mask.of(score_OI)
            lost = float(score_OI[~kept_OI].double().sum() / score_OI.double().sum().clamp_min(1e-30))
            linear.weight.masked_fill_(~kept_OI, 0.0)
            found[name] = int((linear.weight == 0).sum()), lost
            done()
    return found
