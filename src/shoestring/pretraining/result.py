"""What a pretraining run says before and after: the header, and `PretrainResult`, whose text is the closing lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoestring.core.units import format_bytes, format_count
from shoestring.data.corpus import Corpus
from shoestring.data.rows.best_fit import BestFit
from shoestring.data.rows.row import Rows
from shoestring.models.config import ModelConfig
from shoestring.nn.config import GQAConfig
from shoestring.train.result import RunResult


@dataclass(frozen=True, kw_only=True)
class PretrainResult(RunResult):
    """bits_per_byte: the model's on `held_out_bytes` bytes of held-out text. xz_bytes: what `xz -9e` makes of the same
    documents one by one; None where that was not measured. prompt: the beginning of a text like those that it read."""

    parameters: int
    bits_per_byte: float | None
    held_out_loss: float | None
    held_out_bytes: int
    xz_bytes: int | None
    prompt: str

    @property
    def xz_bits_per_byte(self) -> float | None:
        return 8 * self.xz_bytes / max(self.held_out_bytes, 1) if self.xz_bytes is not None else None

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "xz_bits_per_byte": self.xz_bits_per_byte}

    def __str__(self) -> str:
        lines = []
        if self.bits_per_byte is not None:
            text = f"held-out {self.bits_per_byte:.2f} bits/byte"
            xz = self.xz_bits_per_byte
            if xz is not None:
                text += f" (xz -9e, document by document: {xz:.2f})"
            lines.append(f"{text} · {self.cost()}")
            if self.xz_bytes is not None:
                own = format_bytes(self.bits_per_byte * self.held_out_bytes / 8)
                lines.append(
                    f"          {format_bytes(self.held_out_bytes)} of text: {own} by the model,"
                    f" {format_bytes(self.xz_bytes)} by xz"
                )
        lines.append(f"model     {self.model}")
        if self.plot is not None:
            lines.append(f"plot      {self.plot}")
        if self.quantize is not None:
            lines.append(f"quantize  {self.quantize}")
        lines.append(f'next      shoestring generate {self.out} --prompt "{self.prompt}"')
        return "\n".join(lines)


def model_and_data(config: ModelConfig, source: str, corpus: Corpus, rows: Rows) -> list[str]:
    """Their lines of the header."""
    attention = config.attention
    heads = f"{attention.heads}/{attention.kv_heads}" if isinstance(attention, GQAConfig) else f"{attention.heads}"
    shape = f"{config.layers} layers × {config.width}, {attention.kind.upper()} {heads}"
    size = format_count(config.parameter_count())
    counts = [corpus.token_count(split) for split in ("train", "validation")]
    packing = f"; rows of whole documents, {rows.padding():.1%} padding" if isinstance(rows, BestFit) else ""
    text = "tokenized on the fly"
    if counts[0] is not None and counts[1] is not None:
        text = f"{format_count(counts[0])} tokens train, {format_count(counts[1])} held out"
    return [
        f"model     {size} parameters, {shape}, vocabulary {config.vocabulary:,}",
        f"data      {source}: {text}{packing}",
    ]
