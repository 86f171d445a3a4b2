"""A tiny teacher that has learned something, a smaller student of its vocabulary, and settings of a run of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from shoestring.compression.distill.job import distill
from shoestring.compression.distill.result import Distilled
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, read_config, save_model
from tests.finetuning import tiny

SMALLER = {
    **tiny.SHAPE, "width": 16, "layers": 1, "attention": {"kind": "gqa", "heads": 1, "kv_heads": 1, "head_width": 16}
}  # fmt: skip
SHORT: dict[str, Any] = {
    "train.steps": 4, "train.batch_tokens": 256, "train.sequence_length": 128, "train.microbatch": 1,
    "train.evaluate_every": 2, "train.checkpoint_every": 2, "optimizer.learning_rate": 1e-2, "data.validation": 0.2,
    "optimizer.weight_decay": 0.0,
}  # fmt: skip


def sharp(folder: Path) -> Path:
    """The same model with larger weights, so that it predicts something."""
    decoder, tokenizer = load_model(folder), Tokenizer.load(folder)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=random)
    save_model(decoder, folder, tokenizer, replace=True)
    return folder


def smaller(teacher: Path, folder: Path) -> Path:
    """A student's folder, of fewer and narrower layers."""
    shape = ModelConfig.model_validate({**SMALLER, "vocabulary": read_config(teacher).vocabulary})
    save_model(build(shape, seed=3), folder, Tokenizer.load(teacher))
    return folder


def run(teacher: Path, student: Path | str, data: Path | str, out: Path, **changes: Any) -> Distilled:
    """A short run, with these settings over `SHORT`."""
    return distill(teacher, student, data, overrides={**SHORT, "out": str(out), **changes})


def losses(out: Path, name: str = "loss") -> list[float]:
    """Of each step, by its name in metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]
