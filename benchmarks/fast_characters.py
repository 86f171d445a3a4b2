"""The character model that Shoestring trains as fast as it can: what the trials in `docs/experiments.md` ended with.

Same interface as `benchmarks.plain_gpt.Training`: `step()`, `logits(tokens)`. Model, engine, optimizer and schedule are
the package's own, and everything that is set stands in the three dictionaries. The schedule falls to
zero where the target is reached.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoestring.core.allocator import LARGE
from shoestring.data.batch import Batch
from shoestring.kernels import allocator
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import MuonConfig
from shoestring.train.resident import ResidentEngine
from shoestring.train.schedule import build_schedule
from shoestring.train.schedule_config import WSDConfig

CONTEXT, ROWS, STEPS = 64, 12, 215
MODEL: dict[str, Any] = {
    "width": 128, "layers": 1, "context": CONTEXT, "tied_head": False, "zero_init_output": True,
    "embedding_convolution": 4,
    "attention": {"heads": 4, "kv_heads": 4, "head_width": 32, "qk_norm": True},
    "feed_forward": {"kind": "relu2", "width": 512}, "position": {"kind": "rope", "theta": 1000.0},
}  # fmt: skip
OPTIMIZER: dict[str, Any] = {
    "learning_rate": 0.03, "momentum": 0.9, "weight_decay": 0.0, "adamw": {
        "learning_rate": 0.03, "head_learning_rate": 0.006, "epsilon": 1e-10,
        "weight_decay": 0.0,
    },
}  # fmt: skip
SCHEDULE: dict[str, Any] = {"warmup": 0.02, "decay": 0.999}


class Training:
    """`step()` is one step on rows that are drawn from `text`, a tensor of character numbers."""

    steps = STEPS

    def __init__(self, text: Tensor, vocabulary: int, seed: int) -> None:
        allocator.install(LARGE)  # as every run of ours does
        self.text, self.done = text, 0
        self.random = torch.Generator().manual_seed(seed)
        model = ModelConfig.model_validate({"vocabulary": vocabulary, **MODEL})
        self.engine = ResidentEngine(lambda: build(model, seed=seed), recompute="none")
        self.engine.load()
        self.engine.begin(next_token, MuonConfig.model_validate(OPTIMIZER))
        self.schedule = build_schedule(WSDConfig.model_validate(SCHEDULE))
        self.places = torch.arange(CONTEXT + 1)
        self.positions = self.places[:-1].expand(ROWS, CONTEXT)
        self.segments = torch.zeros_like(self.positions)

    def step(self) -> None:
        starts = torch.randint(len(self.text) - CONTEXT, (ROWS, 1), generator=self.random)
        rows = self.text[starts + self.places]
        batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), self.positions, self.segments)
        self.engine.forward_backward([batch])
        self.engine.optimizer_step(None, self.schedule(self.done, self.steps))
        self.done += 1

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the model as it would be used now, [B, T] -> [B, T, V]."""
        decoder = self.engine.decoder
        return decoder.head(decoder(tokens)[0])
