"""A tiny random model that chats, a few dozen sums to teach it, and settings of a run of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import save_model
from tests.data import templates
from tests.data.families import chatml

SHAPE = {
    "width": 32, "layers": 2, "context": 512,
    "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 16},
    "feed_forward": {"kind": "swiglu", "width": 48},
}  # fmt: skip
SHORT: dict[str, Any] = {
    "train.steps": 6, "train.batch_tokens": 512, "train.sequence_length": 128, "train.evaluate_every": 2,
    "train.checkpoint_every": 2, "optimizer.learning_rate": 1e-2, "data.validation": 0.2, "train.answers": 2,
    "precision.compute": "float32",  # in processes that a test starts too, on every processor
}  # fmt: skip


def chat_model(folder: Path, shape: dict[str, Any] = SHAPE) -> Path:
    """A model folder with a byte-level tokenizer and a ChatML template."""
    tokenizer = chatml(templates.CHATML)
    config = ModelConfig.model_validate({**shape, "vocabulary": tokenizer.vocabulary_size})
    save_model(build(config, seed=1), folder, tokenizer)
    return folder


def sums(file: Path) -> Path:
    """All sums of two numbers below eight, as messages."""
    rows = [
        {"messages": [{"role": "user", "content": f"{a}+{b}?"}, {"role": "assistant", "content": str(a + b)}]}
        for a in range(8)
        for b in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def flags(settings: dict[str, Any]) -> list[str]:
    """The same settings on a command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]
