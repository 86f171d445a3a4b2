"""Tiny models on disk for streaming, and batches with ignored labels, packed documents and padding."""

from __future__ import annotations

from pathlib import Path

import torch

from shoestring.data.batch import IGNORED, Batch
from shoestring.models.adapters import attach
from shoestring.models.decoder import Decoder
from shoestring.nn.lora_config import LoRAConfig
from tests.models import tiny_families

VOCABULARY, LAYERS = 61, 3


def save(folder: Path, family: str = "qwen2", tied: bool = True, dtype: torch.dtype = torch.float64) -> Path:
    sizes = {"num_hidden_layers": LAYERS, "tie_word_embeddings": tied}
    tiny_families.make_model(family, dtype, **sizes).save_pretrained(folder)
    return folder


def batches(count: int, rows: int = 2, tokens: int = 10, seed: int = 0) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        tokens_BT = torch.randint(0, VOCABULARY, (rows, tokens), generator=random)
        labels_BT = torch.randint(0, VOCABULARY, (rows, tokens), generator=random)
        labels_BT[:, :3] = IGNORED
        segments_BT = torch.zeros(rows, tokens, dtype=torch.int64)
        segments_BT[0, 7:] = 1
        positions_BT = torch.arange(tokens).expand(rows, -1).clone()
        positions_BT[0, 7:] -= 7
        found.append(Batch(tokens_BT, labels_BT, positions_BT, segments_BT))
    return found


def adapt(model: Decoder, **settings) -> Decoder:
    """Fresh adapters whose second factor is not zero, so that every gradient is there from the first step."""
    attach(model, LoRAConfig(rank=3, **settings), seed=1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".lora_B"):
                parameter.normal_(0, 0.05, generator=random)
    return model.train()


def trained(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
