"""A text as numbers of its characters, split for training and validation, and the score of a model on the latter.

The first 90% of the characters train, the last 10% validate. The score is the mean negative log-likelihood (nats) of
every character of the validation split but its first, read in windows of 64 that do not overlap: a character is
predicted from those before it in its window, 64 at most. The last window may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

CONTEXT = 64
WINDOWS = 64  # scored at once


@dataclass(frozen=True)
class Characters:
    """train, validation: int64 [N]. vocabulary: how many different characters the whole text has."""

    train: Tensor
    validation: Tensor
    vocabulary: int


def read_characters(path: Path) -> Characters:
    text = path.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    numbers = torch.zeros(ord(alphabet[-1]) + 1, dtype=torch.int64)
    numbers[[ord(character) for character in alphabet]] = torch.arange(len(alphabet))
    numbers = numbers[codes]
    cut = int(len(text) * 0.9)
    return Characters(numbers[:cut], numbers[cut:], len(alphabet))


@torch.no_grad()
def score(logits_of: Callable[[Tensor], Tensor], text: Tensor) -> float:
    """Nats per character. logits_of: tokens [B, T] -> logits [B, T, V], each from its own row's past alone."""
    predicted = len(text) - 1
    whole = predicted // CONTEXT * CONTEXT
    inputs, labels = text[:whole].view(-1, CONTEXT), text[1 : whole + 1].view(-1, CONTEXT)
    parts = list(zip(inputs.split(WINDOWS), labels.split(WINDOWS), strict=True))
    if whole < predicted:
        parts.append((text[None, whole:-1], text[None, whole + 1 :]))
    total = 0.0
    for tokens, expected in parts:
        logits = logits_of(tokens).flatten(0, 1).float()
        total += float(F.cross_entropy(logits, expected.flatten(), reduction="sum"))
    return total / predicted
