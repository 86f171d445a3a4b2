"""Shoestring: language models on the hardware a person owns.

`load(MODEL).generate(...)`, `load(MODEL).chat(...)`, `pretrain(recipe)`, `finetune(MODEL, data)`, `perplexity(MODEL,
data)` and `prepare_dataset(data, MODEL)` do what the commands do. They are looked up on first use, so that `import
shoestring` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoestring.finetune.examples import prepare_dataset as prepare_dataset
    from shoestring.finetune.run import finetune as finetune
    from shoestring.offload.load import load as load
    from shoestring.plan.perplexity import perplexity as perplexity
    from shoestring.train.pretrain import pretrain as pretrain

__version__ = "0.1.0"
__all__ = ["__version__", "finetune", "load", "perplexity", "prepare_dataset", "pretrain"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("shoestring.offload.load").load
    if name == "finetune":
        return importlib.import_module("shoestring.finetune")  # the room itself, which can be called
    if name == "perplexity":
        return importlib.import_module("shoestring.plan.perplexity").perplexity
    if name == "prepare_dataset":
        return importlib.import_module("shoestring.finetune.examples").prepare_dataset
    if name == "finetune_within":  # what calling the room does
        return importlib.import_module("shoestring.plan.finetune").finetune
    if name == "pretrain":
        return importlib.import_module("shoestring.train.pretrain").pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
