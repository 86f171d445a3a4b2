"""Tiny models of three families that chat, whose every matrix counts, and what they are calibrated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.prune.config import prune_config
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from tests.data import templates
from tests.data.families import chatml

FEW: dict[str, Any] = {"rows": 4, "context": 64, "held_out": 2}
_ATTENTION = {
    "llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True, "qkv_bias": True, "output_bias": True}
}  # fmt: skip


def prunable(folder: Path, family: str = "llama", tied: bool = True, layers: int = 3) -> Path:
    """Of three attention groups of two query heads."""
    tokenizer = chatml(templates.CHATML)
    shape = {
        "vocabulary": tokenizer.vocabulary_size, "width": 32, "layers": layers, "context": 512, "tied_head": tied,
        "attention": {"heads": 6, "kv_heads": 3, "head_width": 8, **_ATTENTION[family]}, "feed_forward": {"width": 48},
    }  # fmt: skip
    decoder, random = build(ModelConfig.model_validate(shape), seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" in name:
                parameter.normal_(1, 0.2, generator=random)
            else:
                parameter.normal_(0, 0.1 if name.endswith("bias") else 0.2, generator=random)
    save_model(decoder, folder, tokenizer)
    return folder


def text_of(model: Path, source: Path, **settings: Any) -> Calibration:
    """As `prune` reads it with the settings of FEW."""
    config = prune_config({"calibrate": str(source), "layers": 1, **FEW, **settings})
    return read_calibration(config, Tokenizer.load(model), 512, None)


def inputs(decoder: Decoder, text: Calibration, *names: str) -> dict[str, torch.Tensor]:
    """What reaches modules of a model in memory on the calibration text, [N, I], padding left out."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        decoder.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: found[name].append(given[0]))
        for name in names
    ]
    there = [batch.segments_BT >= 0 for batch in text.calibrating]
    with torch.no_grad():
        for batch in text.calibrating:
            decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat([x_BTI[there_BT] for x_BTI, there_BT in zip(some, there, strict=True)])
        for name, some in found.items()
    }


def logits(folder: Path) -> torch.Tensor:
    decoder = load_model(folder)
    with torch.no_grad():
        return decoder.head(decoder(torch.arange(40).unsqueeze(0))[0])
