"""Models of every kind to be split over processes, how each is trained, and the same training in one process.

`split_ranks` runs these cases in several processes; `test_split_training` runs them in one and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoestring.data.batch import IGNORED, Batch
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from shoestring.nn.config import Recompute
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import Int4Config, Int8Config
from shoestring.train.engine import LocalEngine
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig, MuonConfig, OptimizerConfig
from shoestring.train.resident import ResidentEngine

SHAPE: dict[str, Any] = {
    "vocabulary": 61, "width": 32, "layers": 4, "context": 64,
    "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 16},
    "feed_forward": {"kind": "swiglu", "width": 48},
}  # fmt: skip
MLA = {"kind": "mla", "heads": 2, "latent_rank": 8, "content_width": 8, "value_width": 8, "rotary_width": 8}


@dataclass(frozen=True)
class Case:
    """shape: changes of the model. adapter: of a frozen one. streamed: how its layers are kept on disk; keeps: of how
    many of them what was computed is kept."""

    shape: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    quantized: Int8Config | Int4Config | None = None
    streamed: str | None = None
    keeps: int = 0
    compute: torch.dtype = torch.float32
    recompute: Recompute | None = None
    optimizer: OptimizerConfig = AdamWConfig(learning_rate=1e-2)
    steps: int = 3
    dtype: torch.dtype = torch.float32


TWICE, SLOW = torch.float64, AdamWConfig(learning_rate=1e-3)
CASES: dict[str, Case] = {
    "full, tied": Case(steps=20, dtype=TWICE),
    "full, untied": Case({"tied_head": False}, steps=20, optimizer=SLOW),
    "lora": Case(adapter={"rank": 3, "dropout": 0.2}, steps=20, optimizer=SLOW),
    "dora": Case(adapter={"rank": 3, "dora": True}),
    "lora on int8": Case(adapter={"rank": 3}, quantized=Int8Config(), steps=20, optimizer=SLOW),
    "lora in int8": Case(adapter={"rank": 3}, quantized=Int8Config(compute="int8")),
    "lora on int4": Case(adapter={"rank": 3}, quantized=Int4Config()),
    "lora, streamed": Case(adapter={"rank": 3, "dropout": 0.2}, streamed="source"),
    "lora, streamed int8": Case(adapter={"rank": 3}, streamed="int8", steps=20, optimizer=SLOW),
    "lora, streamed, activations kept": Case(adapter={"rank": 3, "dropout": 0.2}, streamed="source", keeps=4),
    "lora, streamed int8, some activations kept": Case(adapter={"rank": 3}, streamed="int8", keeps=2),
    "lora in bfloat16": Case(adapter={"rank": 3}, compute=torch.bfloat16),
    "full in bfloat16, value residuals": Case({"value_residual": True}, compute=torch.bfloat16),
    "full, recomputed": Case(recompute="full"),
    "value residuals": Case({"value_residual": True}, steps=20, dtype=TWICE),
    "reversible": Case({"block": "reversible"}, steps=20, dtype=TWICE),
    "reversible, lora": Case({"block": "reversible"}, adapter={"rank": 3, "dropout": 0.2}),
    "shared by turns": Case({"sharing": {"unique_layers": 2, "order": "cycle"}}, steps=20, dtype=TWICE),
    "shared in a row": Case({"sharing": {"unique_layers": 2, "order": "repeat"}}, adapter={"rank": 3}),
    "experts": Case({"feed_forward": {"kind": "moe", "width": 16, "experts": 4}}, steps=20, dtype=TWICE),
    "experts, balanced by biases": Case(
        {"feed_forward": {"kind": "moe", "width": 16, "experts": 4, "balance": "bias"}}
    ),
    "mla": Case({"attention": MLA}),
    "a memory": Case({"memory": {"layers": [1, 2], "block": 4, "capacity": 8, "top_k": 2}}),
    "a convolution, learned positions": Case({"embedding_convolution": 2, "position": {"kind": "rope_learned"}}),
    "muon": Case({"tied_head": False}, optimizer=MuonConfig(learning_rate=1e-2)),
}  # fmt: skip


def save(folder: Path, case: Case) -> Path:
    config = ModelConfig.model_validate({**SHAPE, **case.shape})
    save_model(build(config, seed=3, dtype=case.dtype), folder, replace=True)
    return folder


def batches(step: int) -> list[Batch]:
    """Four microbatches of unequal lengths and counts of labels, of packed documents; one has no label that counts."""
    random = torch.Generator().manual_seed(step)
    found = []
    for number, tokens in enumerate((10, 14, 8, 10)):
        tokens_BT = torch.randint(0, SHAPE["vocabulary"], (2, tokens), generator=random)
        labels_BT = torch.randint(0, SHAPE["vocabulary"], (2, tokens), generator=random)
        labels_BT[:, : 2 + number] = IGNORED
        if number == 2:
            labels_BT[:] = IGNORED
        segments_BT = torch.zeros(2, tokens, dtype=torch.int64)
        segments_BT[0, 6:] = 1
        positions_BT = torch.arange(tokens).expand(2, -1).clone()
        positions_BT[0, 6:] -= 6
        found.append(Batch(tokens_BT, labels_BT, positions_BT, segments_BT))
    return found


def adapted(decoder: Decoder, case: Case) -> Decoder:
    """Fresh adapters whose second factor is not zero, the same for any part of the model."""
    if case.adapter is None:
        return decoder
    attach(decoder, LoRAConfig(**case.adapter), seed=1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith(".lora_B"):
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name) * 31 + ord(name[7])))
    return decoder


def train(engine: LocalEngine, case: Case) -> tuple[list[list[float]], dict[str, Tensor]]:
    """-> loss, count, norm and metrics of each step; gradients by step and name."""
    torch.manual_seed(7)
    engine.begin(next_token, case.optimizer)
    figures, gradients = [], {}
    for step in range(case.steps):
        loss = engine.forward_backward(batches(step))
        for name, parameter in engine.decoder.named_parameters():
            if parameter.grad is not None:
                gradients[f"{step}/{name}"] = parameter.grad.clone()
        norm = engine.optimizer_step(0.5, 1.0).norm
        figures.append([loss.mean, float(loss.count), norm, *(loss.metrics[name] for name in sorted(loss.metrics))])
    return figures, gradients


def alone(folder: Path, case: Case) -> tuple[list[list[float]], dict[str, Tensor], dict[str, Tensor], Decoder]:
    """The same in one process, in memory; -> also the trained weights."""
    quantized = Int8Config() if case.streamed == "int8" else case.quantized

    def make() -> Decoder:
        return adapted(load_model(folder, dtype=case.dtype, quantized=quantized), case)

    engine = ResidentEngine(make, case.compute, case.recompute)
    engine.load()
    figures, gradients = train(engine, case)
    return figures, gradients, trained(engine.decoder), engine.decoder


def trained(decoder: Decoder) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in decoder.named_parameters() if p.requires_grad}


