"""A model to decode and measure with whose layers lie on several machines: `load_over(MODEL, split)` on each of them.

All machines run the same calls with the same arguments, as torchrun starts them; each gets the same texts and figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.language_model import LanguageModel
from shoestring.models.external import open_external
from shoestring.models.families.registry import read_config
from shoestring.models.folder import read_generation_config
from shoestring.models.peft_folder import find_base, is_adapter, load_adapter
from shoestring.offload.config import QUANTIZED, StoreFormat
from shoestring.offload.pipeline.load import load_part, open_streamed_part
from shoestring.offload.pipeline.place import Place, check_exchange
from shoestring.plan.ranges import Split
from shoestring.train import parallel
from shoestring.train.run import find_once


def load_over(
    model: str | Path,
    split: Split,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    weights: StoreFormat = "source",
    slots: int | None = None,
    say: Callable[[str], Any] | None = None,
    adapter: str | Path | None = None,
) -> LanguageModel:
    """The part of a model or adapter folder that this process has by `split`, as a whole language model.

    adapter: a PEFT folder for `model`, wherever it says that its base is.
    weights: how the layers are kept, rounded to nearest where they are dense in the folder; dtype: what the rest is,
    and what is computed in. slots: layers in memory at a time, which are then read from this machine's disk for every
    token; None: all. Call it and all that follows inside `parallel.stages()`. Raises ConfigError for a split that does
    not fit the model or the number of processes, and what `LanguageModel.load` raises.
    """
    parallel.start()
    folder = find_once(model)
    if adapter is not None:
        base, folder = folder, Path(adapter)
    else:
        base = find_base(folder) if is_adapter(folder) else folder
    config = read_config(base)
    split.check(config.layers, parallel.world_size())
    check_exchange()
    place, where = Place.of(split, parallel.rank()), resolve_device(device)
    kept = torch.float32 if dtype == "auto" else resolve_dtype(dtype)
    if slots is not None:
        decoder = open_streamed_part(base, place, weights, slots, where, kept, say=say)
    elif weights in ("source", "float32", "bfloat16"):
        if weights == "bfloat16":
            kept = torch.bfloat16
        decoder = load_part(base, place, where, kept)
    else:
        decoder = load_part(base, place, where, kept, QUANTIZED[weights])
    if folder != base:
        load_adapter(decoder, folder)
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)
    external = open_external(config, tokenizer, say)
    language = SplitLanguageModel(decoder.eval(), tokenizer, folder, read_generation_config(base), external)
    language.tell_unused(say)
    return language


class SplitLanguageModel(LanguageModel):
    """What would differ from machine to machine is refused."""

    def speculate(self, by: Any, most: int = 0) -> None:
        if by is not None:
            raise ConfigError("over several machines nothing is guessed ahead: each would say for itself if it pays")
