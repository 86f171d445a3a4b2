"""`perplexity(model, data, ..., memory="2GB")`: evaluation inside a memory budget, layers from disk where it must."""

from __future__ import annotations

from pathlib import Path

import torch

from shoestring.core.allocator import SHORT_LIVED, map_large_tensors
from shoestring.core.errors import ConfigError
from shoestring.data.supervised.config import OnBadLine
from shoestring.evaluate.perplexity import CONTEXT, Perplexity, check_windows
from shoestring.evaluate.perplexity import perplexity as measure
from shoestring.generate.language_model import LanguageModel
from shoestring.models.resolve import Say
from shoestring.offload.load import load

_INSIDE_A_BUDGET = 1024  # tokens computed together where memory is limited: what `offload.load` keeps room for
_LOSS_BYTES = 2 * 4 * _INSIDE_A_BUDGET * 8192  # logits of a block of the vocabulary, and a copy


def perplexity(
    model: str | Path | LanguageModel,
    data: str | Path,
    context: int | None = None,
    stride: int | None = None,
    examples: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    on_bad_line: OnBadLine = "stop",
    say: Say | None = None,
) -> Perplexity:
    """As `evaluate.perplexity.perplexity`: tokens of context and stride, nats per token, in `memory` for the process.

    memory: bytes or "2GB"; None: no limit. A larger model's layers come from disk, and at most 1,024 tokens are read at
    once. Raises what that function does, and BudgetError with the least memory that would do.
    """
    largest = CONTEXT if memory is None else _INSIDE_A_BUDGET
    check_windows(context, stride, examples)
    if context is not None and memory is not None and context > largest:
        raise ConfigError(
            f"inside a memory budget at most {largest:,} tokens are read at once, and the context is {context:,}"
        )
    map_large_tensors(SHORT_LIVED)
    if memory is not None and not isinstance(model, LanguageModel):
        model = load(model, device, dtype, memory, say=say, beside=_LOSS_BYTES)
        model.decoder.requires_grad_(False)  # the loss passes over the vocabulary in blocks: the budget keeps room
    return measure(model, data, context, stride, examples, device, dtype, on_bad_line, say, largest)
