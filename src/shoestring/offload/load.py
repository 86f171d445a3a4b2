"""`shoestring.load(MODEL, memory="2GB")`: a model to decode with, streamed from disk where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shoestring.core.device import check_memory_budget, resolve_device, resolve_dtype
from shoestring.core.errors import BudgetError
from shoestring.core.machine import rss_bytes
from shoestring.core.units import format_bytes, parse_bytes
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.models.config import ModelConfig
from shoestring.models.folder import read_generation_config
from shoestring.models.peft_folder import find_base, is_adapter, load_adapter
from shoestring.models.resolve import find_model
from shoestring.models.weight_files import WeightFiles
from shoestring.offload.config import StoreFormat
from shoestring.offload.model import StreamedDecoder, open_streamed
from shoestring.plan.constants import SPARE
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.shapes import Machine

_TOKENS = 1024  # of the cache, and computed together, for which room is kept


def load(
    model: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: str | int | None = None,
    weights: StoreFormat = "source",
    say: Callable[[str], Any] | None = None,
    scoring: bool = False,
) -> LanguageModel:
    """`LanguageModel.load`, inside `memory` bytes ("2GB") for the whole process if given.

    A model that does not fit is read from disk layer by layer for every token (`weights`: how it is kept there).
    scoring: keep room for `perplexity` too. Raises BudgetError with the least that would do, and what
    `LanguageModel.load` raises.
    """
    allocator.install()
    if memory is None:
        return LanguageModel.load(model, device, dtype, say)
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    where = resolve_device(device)
    check_memory_budget(budget, where)
    folder = find_model(model, say=say)
    base = find_base(folder, say) if is_adapter(folder) else folder
    with WeightFiles(base) as files:
        config = files.config
        source = str(files.places["embedding.weight"].info.dtype).removeprefix("torch.")
    machine = Machine(rss_bytes() - allocator.kept(), flops=1.0, threads=torch.get_num_threads())
    uses = [Use(1, _TOKENS, 1)] + [Use(1, _TOKENS, scored=True, documents=True)] * scoring
    resident = max(predict_use(config, use, machine, source).total for use in uses)
    if weights == "source" and resident <= budget * SPARE:
        language = LanguageModel.load(model, where, dtype, say)
        language.at_once = _TOKENS
        return language
    slots = _slots(config, weights, source, budget, machine, uses)
    settled = torch.float32 if dtype == "auto" else resolve_dtype(dtype)
    decoder = open_streamed(base, weights, slots, where, settled, say=say)
    if folder != base:
        load_adapter(decoder, folder)
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)
    language = LanguageModel(decoder.eval(), tokenizer, folder=folder, defaults=read_generation_config(base))
    language.at_once = _TOKENS
    return language


def _slots(
    config: ModelConfig, weights: StoreFormat, source: str, budget: int, machine: Machine, uses: list[Use]
) -> int:
    """The most layers in memory that fit. Raises BudgetError."""
    for slots in range(max(config.unique_layers, 2), 1, -1):
        least = max(predict_use(config, use, machine, source, weights, slots).total for use in uses)
        if least <= budget * SPARE:
            return slots
    enough = -(-int(least / SPARE) // 10_000_000) * 10
    raise BudgetError(
        f"{format_bytes(budget)} of memory are too little to decode with this model, layer by layer",
        hint=f"{enough}MB would do" + ("" if weights != "source" else ", and less with the weights kept in int4"),
    )


def close(model: LanguageModel) -> None:
    """End the reading threads of a streamed model."""
    if isinstance(model.decoder, StreamedDecoder):
        model.decoder.close()
