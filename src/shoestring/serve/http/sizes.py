"""How many texts at once, and how long, a server has room for.

A slot of the cache is as long as the longest text that it may hold, and takes memory for all of it where a budget is to
be kept. Without one, slots are as long as the model's context up to a limit, and what is never written costs nothing.
Within a budget tensors have a cap besides: what would pass it is an error of the request that asks for it, and the
process is not killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from shoestring.core.errors import BudgetError, ConfigError
from shoestring.core.machine import rss_bytes
from shoestring.core.units import format_bytes
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.offload.model import StreamedDecoder
from shoestring.plan.constants import SPARE
from shoestring.plan.serving import CONTEXT, SLOTS, predict_serving
from shoestring.plan.shapes import Machine
from shoestring.serve.http.limits import BESIDE

_LEAST_CONTEXT = 256


class Sizes(NamedTuple):
    """slots: texts at once, of each model. context: tokens of each text, prompt and answer. memory: bytes that the
    process is predicted to take with them at most, where a budget asks."""

    slots: int
    context: int
    memory: int | None = None


def free_sizes(context: int, slots: int | None, asked: int | None) -> Sizes:
    """Without a budget. context: the model's. Raises ConfigError for more than the model can."""
    if asked is not None and asked > context:
        raise ConfigError(f"--context {asked:,} is more than the model's context of {context:,} (command line)")
    return Sizes(slots or SLOTS, asked or min(context, CONTEXT))


def sizes_within(language: LanguageModel, budget: int, lanes: int, slots: int | None, asked: int | None) -> Sizes:
    """With a budget of bytes for the process, in which the model is already. lanes: models that share it, adapters and
    base. What is not asked for is chosen: long texts before many. Raises BudgetError."""
    wanted = free_sizes(language.decoder.config.context, slots, asked)
    if isinstance(language.decoder, StreamedDecoder):  # the plan of loading has room for so many tokens
        most = language.at_once or 0
        found = _fitting(wanted, slots, asked, lambda many, context: many * context * lanes, most, budget)
        return Sizes(found.slots, found.context)
    process = max(rss_bytes() - allocator.kept() - allocator.live(), 0)
    machine = Machine(process, flops=1.0, threads=torch.get_num_threads())
    cache = language.decoder.new_cache(1, 1).bytes_per_token()
    config, dtype = language.decoder.config, language.decoder.embedding.weight.dtype
    compute = str(dtype).removeprefix("torch.")
    beside_weights = max(allocator.live() - int(config.parameter_count()) * dtype.itemsize, 0)  # adapters

    def needs(many: int, context: int) -> int:
        return predict_serving(config, many, context, machine, compute, lanes, beside_weights, cache).total

    return _fitting(wanted, slots, asked, needs, int(budget * SPARE), budget)


def _fitting(
    wanted: Sizes, slots: int | None, asked: int | None, needs: Callable[[int, int], int], most: int, budget: int
) -> Sizes:
    """The most that fits of what is wanted: fewer slots first, then shorter ones, but never less than was asked for."""
    context = wanted.context
    while True:
        for many in range(wanted.slots, 0, -1):
            if slots is not None and many < slots:
                break
            if (need := needs(many, context)) <= most:
                return Sizes(many, context, need)
        if asked is not None or context // 2 < _LEAST_CONTEXT:
            raise BudgetError(
                f"{format_bytes(budget)} of memory are too little to serve this model with "
                f"{slots or 1} slots of {context:,} tokens",
                hint="more --memory, fewer --slots, or a shorter --context",
            )
        context //= 2


def keep_within(budget: int | None) -> None:
    """From now on no tensor is made that would pass the budget of the process, of which BESIDE bytes are for requests
    and answers: what would need more is refused with an error. None: as before."""
    if budget is None:
        allocator.limit()
        return
    process = max(rss_bytes() - allocator.kept() - allocator.live(), 0)
    allocator.limit(cap=max(budget - process - BESIDE, 0))
