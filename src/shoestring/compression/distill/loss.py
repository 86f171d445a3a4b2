"""Head, comparison with the teacher and cross-entropy in one function, in chunks of rows: no [N, V] exists as a whole.

A chunk makes the student's logits and asks the target about them; the gradients for hidden states and, where the head
is trained, for its weight are made at once, so the pass backward is a scaling and nothing is computed twice. The loss
of a label is (1 − labels) · T² · divergence at temperature T + labels · cross-entropy; T² keeps the gradient's size
(arXiv 1503.02531). `follow_loss_plain` is the definition.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.compression.distill.divergence import Divergence, Drawn, sampled_kl
from shoestring.core.filled import filled_down
from shoestring.core.matmul import add_matmul, filled_rows
from shoestring.nn.head import Head, OutputHead, lifted, weight_share
from shoestring.nn.head_blocks import block_rows, compared_rows
from shoestring.nn.norm import wide


class Target(Protocol):
    """What the teacher says of N places."""

    @property
    def temperature(self) -> float:
        """Of both sides."""
        ...

    def compare(self, first: int, end: int, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of the places first to end, and their gradient for the student's logits over the temperature.

        log_q_NV: the student's, at the temperature; may be overwritten.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """The teacher's whole distributions, made from its hidden states [N, D] as they are asked for."""

    hidden_ND: Tensor
    head: OutputHead
    divergence: Divergence
    temperature: float = 1.0

    def compare(self, first: int, end: int, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV, _ = logits_of(self.hidden_ND[first:end], self.head)
        log_p_NV = torch.log_softmax(logits_NV.div_(self.temperature), -1).to(log_q_NV.dtype)
        del logits_NV  # before the divergence makes arrays of its own
        return self.divergence(log_q_NV, log_p_NV)


@dataclass(frozen=True)
class Sampled:
    """Tokens that were drawn from its distributions at this temperature."""

    drawn: Drawn
    temperature: float = 1.0

    def compare(self, first: int, end: int, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
        return sampled_kl(log_q_NV, self.drawn.part(first, end))


def follow_loss(
    hidden_ND: Tensor, head: OutputHead, target: Target, labels_N: Tensor, labels: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """-> sums over N places, float32 scalars: the loss, and without a graph the divergence and the cross-entropy.

    Differentiable in the hidden states and, where it is trained, in the head's weight. labels: their share.
    """
    weight_VD = None if head.frozen else head.weight
    return _Follow.apply(hidden_ND, weight_VD, head, target, labels_N, labels)


def follow_loss_plain(
    hidden_ND: Tensor, head: OutputHead, log_p_NV: Tensor, labels_N: Tensor, divergence: Divergence,
    temperature: float = 1.0, labels: float = 0.0,
) -> Tensor:  # fmt: skip
    """The definition, with full logits; differentiable where the divergence is. log_p_NV: at the temperature."""
    logits_NV = head(hidden_ND)
    log_q_NV = torch.log_softmax(logits_NV / temperature, -1)
    value_N, _ = divergence(log_q_NV.clone(), log_p_NV.clone())
    crossed = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    return (1 - labels) * temperature**2 * value_N.sum() + labels * crossed


def logits_of(rows_ND: Tensor, head: OutputHead) -> tuple[Tensor, Tensor | None]:
    """Logits [N, V] of any head without a graph, at least float32, and the cap's derivative (None without a cap)."""
    logits_NV = rows_ND.new_empty(len(rows_ND), head.vocabulary, dtype=wide(rows_ND).dtype)
    x = head.rounded(rows_ND)
    for first, block in head.blocks(block_rows(head.width), rows_ND.dtype):
        logits_NV[:, first : first + len(block)] = block.logits(x)
        del block  # before the next one is made
    return _capped(logits_NV, head.softcap)


def _capped(logits_NV: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    if softcap is None:
        return logits_NV, None
    logits_NV = logits_NV.div_(softcap).tanh_()  # cap·tanh(z/cap), whose derivative is 1 − tanh²
    slope_NV = 1 - logits_NV.square()
    return logits_NV.mul_(softcap), slope_NV


class _FrozenSide:
    """Products of a student's frozen head."""

    weight_gradient: Tensor | None = None

    def __init__(self, head: OutputHead, dtype: torch.dtype):
        self._head, self._dtype, self.vocabulary = head, dtype, head.vocabulary

    def logits(self, rows_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        return logits_of(rows_ND, self._head)

    def backward(self, gradient_NV: Tensor, rows_ND: Tensor, labels_N: Tensor) -> Tensor:
        shares = (
            block.backward(gradient_NV[:, first : first + len(block)].clone())  # which float16 makes larger in place
            for first, block in self._head.blocks(block_rows(self._head.width), self._dtype)
        )
        return functools.reduce(Tensor.add_, shares)


class _TrainedSide:
    """Products of one that is trained; `weight_gradient` grows with each chunk."""

    def __init__(self, head: Head, dtype: torch.dtype):
        self._whole, self._softcap, self._kept = head.whole(dtype), head.softcap, head.weight.dtype
        self.vocabulary = head.vocabulary
        self.weight_gradient: Tensor | None = None

    def logits(self, rows_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        return _capped(wide(self._whole.logits(rows_ND, None)), self._softcap)

    def backward(self, gradient_NV: Tensor, rows_ND: Tensor, labels_N: Tensor) -> Tensor:
        gradient_NV = lifted(gradient_NV, rows_ND.dtype)
        into_ND = torch.empty_like(rows_ND)
        self._whole.backward(gradient_NV, labels_N, into_ND)
        total_VD = self.weight_gradient
        if total_VD is not None and rows_ND.dtype == total_VD.dtype == torch.float32:
            add_matmul(total_VD, gradient_NV.t(), rows_ND.t())
        else:
            share_VD = weight_share(gradient_NV, rows_ND).to(self._kept)
            self.weight_gradient = share_VD if total_VD is None else total_VD.add_(share_VD)
        return into_ND


class _Follow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD, head, target, labels_N, labels):
        kind = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        with torch.autocast(kind, enabled=False):
            side = _FrozenSide(head, dtype) if weight_VD is None else _TrainedSide(head, dtype)
            gradient_ND, sums = _over_chunks(hidden_ND, dtype, side, target, labels_N, labels)
        ctx.gradients = gradient_ND, side.weight_gradient
        value, crossed = sums
        total = (1 - labels) * target.temperature**2 * value + labels * crossed
        ctx.mark_non_differentiable(value, crossed)
        return total, value, crossed

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        rows_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None  # scaled in place, so they serve once
        scale = gradients[0]
        if weight_gradient is not None:
            weight_gradient = weight_gradient.mul_(scale)
        return rows_gradient.mul_(scale), weight_gradient, None, None, None, None


def _longer(x: Tensor, more: int) -> Tensor:
    """With so many rows of zeros behind."""
    return torch.cat([x, x.new_zeros(more, *x.shape[1:])]) if more else x


def _over_chunks(
    hidden_ND: Tensor, dtype: torch.dtype, side: _FrozenSide | _TrainedSide, target: Target, labels_N: Tensor,
    labels: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """-> the gradient for the hidden states, and the sums of divergence and cross-entropy."""
    gradient_ND = torch.empty_like(hidden_ND)
    accuracy = wide(hidden_ND).dtype
    value, crossed = (torch.zeros((), dtype=accuracy, device=hidden_ND.device) for _ in range(2))
    temperature, step = target.temperature, compared_rows(side.vocabulary)
    if hidden_ND.is_cpu and dtype in (torch.bfloat16, torch.float16):
        step = filled_down(step)  # so that the last chunk alone is filled up
    for first in range(0, len(hidden_ND), step):
        rows_ND, labels_n = hidden_ND[first : first + step].to(dtype), labels_N[first : first + step]
        count = len(rows_ND)
        more = filled_rows(rows_ND, count) - count  # rows of zeros, which change no gradient
        rows_ND = _longer(rows_ND, more)
        logits_NV, slope_NV = side.logits(rows_ND)
        logits_NV, slope_NV = logits_NV[:count], None if slope_NV is None else slope_NV[:count]
        labelled_N = logits_NV.gather(1, labels_n.unsqueeze(1)).squeeze(1)
        normalizer_N = logits_NV.logsumexp(-1)
        crossed += (normalizer_N - labelled_N).sum()
        own_NV = None
        if labels:
            own_NV = torch.softmax(logits_NV, -1)
            own_NV[torch.arange(len(labels_n), device=labels_n.device), labels_n] -= 1
        if temperature != 1:
            logits_NV.div_(temperature)
            normalizer_N = logits_NV.logsumexp(-1)
        log_q_NV = logits_NV.sub_(normalizer_N.unsqueeze(-1))
        value_N, slope = target.compare(first, first + count, log_q_NV)
        value += value_N.sum()
        slope = slope.mul_((1 - labels) * temperature)
        if own_NV is not None:
            slope.add_(own_NV, alpha=labels)
        if slope_NV is not None:
            slope.mul_(slope_NV)
        del logits_NV, log_q_NV, own_NV, slope_NV  # before what goes backward is made
        slope = _longer(slope, more)
        gradient_ND[first : first + step] = side.backward(slope, rows_ND, _longer(labels_n, more))[:count]
        del slope
    return gradient_ND, (value, crossed)
