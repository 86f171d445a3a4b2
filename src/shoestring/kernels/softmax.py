"""Softmax of rows of logits, in place, with the two numbers of each row that cross-entropy wants.

logits_NV: [N, V] of float, whose rows may lie further apart than V; labels_N: int64. The logits may be a block of a
wider matrix whose first column is number `first`: then a label may stand elsewhere. torch takes four passes over memory
(largest, softmax, and what reads the labels); the kernel (softmax.cpp) takes one that reads and one that writes.
It takes float32 and bfloat16 (computed in float32, rounded once) on a CPU, the twin takes the rest.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from shoestring.kernels.compiled import kernel


def softmax_rows(logits_NV: Tensor, labels_N: Tensor, first: int = 0, less_one: bool = True) -> tuple[Tensor, Tensor]:
    """-> log Σ exp of each row, and the logit of each label that stands here (elsewhere it is undefined), both [N], in
    float32 at least.

    logits_NV becomes the rows' probabilities, but for a label that stands here: less_one says whether its own is
    lowered by one (the gradient of the cross-entropy) or zero.
    """
    kernels = _kernels(logits_NV)
    if kernels is None:
        return softmax_rows_plain(logits_NV, labels_N, first, less_one)
    return _call(kernels, logits_NV, labels_N, first, less_one, False)


def log_sums(logits_NV: Tensor, labels_N: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """The same two numbers where no gradient is wanted. What becomes of the logits is undefined."""
    kernels = _kernels(logits_NV)
    if kernels is None:
        return softmax_rows_plain(logits_NV, labels_N, first)
    return _call(kernels, logits_NV, labels_N, first, True, True)


def softmax_rows_plain(
    logits_NV: Tensor, labels_N: Tensor, first: int = 0, less_one: bool = True
) -> tuple[Tensor, Tensor]:
    """The definition."""
    if logits_NV.dtype == torch.bfloat16:
        wide_NV = logits_NV.float()
        found = softmax_rows_plain(wide_NV, labels_N, first, less_one)
        logits_NV.copy_(wide_NV)
        return found
    labels_N1 = (labels_N - first).unsqueeze(1)
    at_N1 = labels_N1.clamp(0, logits_NV.shape[1] - 1)
    labelled_N = logits_NV.gather(1, at_N1).squeeze(1)
    highest_N = logits_NV.amax(1)
    torch.softmax(logits_NV, dim=1, out=logits_NV)
    # log Σ exp(z) = z_max − log p_max: the largest logit is the largest probability too.
    normalizer_N = highest_N - logits_NV.amax(1).log_()
    p_N1 = logits_NV.gather(1, at_N1)
    own_N1 = p_N1 - 1 if less_one else torch.zeros_like(p_N1)
    logits_NV.scatter_(1, at_N1, torch.where(labels_N1 == at_N1, own_N1, p_N1))
    return normalizer_N, labelled_N


def _call(
    kernels: ctypes.CDLL, logits_NV: Tensor, labels_N: Tensor, first: int, less_one: bool, loss_alone: bool
) -> tuple[Tensor, Tensor]:
    rows, vocabulary = logits_NV.shape
    labels_N = labels_N.contiguous()
    normalizer_N, labelled_N = torch.empty(rows), torch.empty(rows)
    kernels.softmax_rows(
        logits_NV.data_ptr(), logits_NV.dtype == torch.bfloat16, rows, vocabulary, logits_NV.stride(0),
        labels_N.data_ptr(), first, normalizer_N.data_ptr(), labelled_N.data_ptr(), less_one, loss_alone,
        torch.get_num_threads(),
    )  # fmt: skip
    return normalizer_N, labelled_N


def _kernels(logits_NV: Tensor) -> ctypes.CDLL | None:
    fits = logits_NV.dtype in (torch.float32, torch.bfloat16) and logits_NV.is_cpu and logits_NV.stride(1) == 1
    return _typed_kernel() if fits else None


@functools.cache
def _typed_kernel() -> ctypes.CDLL | None:
    found = kernel("softmax")
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.softmax_rows.argtypes = [at, number, size, size, size, at, size, at, at, number, number, number]
    return found
