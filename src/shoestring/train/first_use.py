"""What the first step of a process loads, loaded beforehand: then it is measured with the process, not guessed.

Matrix libraries read in code made for this processor and lay out tables for its threads, torch's checkpointing imports
a compiler: tens of MB, others on each machine and with each version. One step of a tiny model brings them in; it costs
what the first real step would, and draws no random number.
"""

from __future__ import annotations

import functools
import importlib

import torch

from shoestring.core.matmul import libraries
from shoestring.core.matmul_choice import LAYOUTS, Kind
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn.head_loss import head_loss
from shoestring.train.optimizer import build_optimizer
from shoestring.train.optimizer_config import AdamWConfig

_TINY = {
    "vocabulary": 512, "width": 64, "layers": 1, "context": 64,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 32}, "feed_forward": {"width": 128},
}  # fmt: skip
_USUAL = 768  # rows, outputs and sums of a product for which the libraries use all that they have


@functools.cache
def first_use(training: bool = True, checkpointing: bool = False, parts: bool = False) -> None:
    """Once in a process. training: backward and an optimizer's step too. checkpointing: the compiler, 100 MB; parts:
    what a model in parts needs, the compiler among it."""
    if checkpointing or parts:
        importlib.import_module("torch._dynamo")
    if parts:
        importlib.import_module("torch.distributed.fsdp")
    with torch.no_grad():
        for product in libraries(torch.float32).values():
            product(*Kind.of(torch.float32, LAYOUTS[False, False], _USUAL, _USUAL, _USUAL).operands())
    decoder = build(ModelConfig.model_validate(_TINY), seed=0)
    tokens_BT = torch.arange(128).view(2, 64)
    with torch.set_grad_enabled(training):
        loss, _ = head_loss(decoder(tokens_BT)[0], decoder.head, tokens_BT)
    if training:
        loss.backward()
        build_optimizer(AdamWConfig(), decoder).step()
