"""What a model folder loses on held-out text, and how many questions of the suite it answers: for each candidate."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from shoestring.compression.calibration import Calibration
from shoestring.compression.compress.config import CompressConfig
from shoestring.core.waiting import waiting
from shoestring.evaluate.perplexity import frozen
from shoestring.evaluate.suite.kept import Kept, digest_of
from shoestring.evaluate.suite.run import evaluate
from shoestring.models.resolve import Say
from shoestring.offload.load import close, load
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss

AT_ONCE = 1024  # tokens that a model inside a budget reads together


def loss_of(folder: Path, text: Calibration, memory: int | None) -> tuple[float, float | None]:
    """Nats per token of the text that is kept apart, and bits per byte, where ids stand for bytes; in float32."""
    language = load(folder, "cpu", "float32", memory, scoring=True)
    nats = 0.0
    try:
        decoder = language.decoder.eval()
        with torch.no_grad(), frozen(decoder), waiting("measure   held-out text", len(text.measured)) as told:
            for batch in text.measured:
                nats += float(forward_loss(decoder, next_token, batch)[0].sum)
                told.advance()
    finally:
        close(language)
    bits = nats / math.log(2) / text.label_bytes if text.label_bytes else None
    return nats / max(text.labels, 1), bits


def suite_of(folder: Path, name: str, settings: CompressConfig, say: Say | None) -> float:
    """The share of the suite's questions that are answered right. Answers are kept in the cache, by categories."""
    language = load(folder, "cpu", memory=settings.memory, say=say, scoring=True)
    try:
        digest = digest_of(language)
        found, _ = evaluate(
            language, items=settings.items, name=name, kept=None if digest is None else Kept(digest)
        )
    finally:
        close(language)
    return found.total.share
