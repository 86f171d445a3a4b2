"""Attention kinds at equal cost to hold: the same parameters, the same tokens of `stdlib`, the same schedule.

    python -m benchmarks.quality [--quick] [--tokens N] [--kinds gqa,mtla2]

Each kind trains a small model; the width of the feed-forward evens out the parameters. Printed: bits per byte of
held-out text, training speed, and the bytes that a token takes in the cache. One seed: differences below about 0.02
bits per byte mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, show

HEADS, HEAD = 4, 32
LATENT = {"heads": HEADS, "latent_rank": 64, "content_width": HEAD, "rotary_width": 16, "value_width": HEAD}
KINDS: dict[str, dict[str, Any]] = {
    "mha": {"kind": "gqa", "heads": HEADS, "kv_heads": HEADS, "head_width": HEAD},
    "gqa": {"kind": "gqa", "heads": HEADS, "kv_heads": 1, "head_width": HEAD},
    "gqa window": {"kind": "gqa", "heads": HEADS, "kv_heads": 1, "head_width": HEAD, "window": 128},
    "mla": {"kind": "mla", **LATENT},
    "mtla2": {"kind": "mtla", **LATENT, "stride": 2},
    "mtla4": {"kind": "mtla", **LATENT, "stride": 4},
    "mtla2 efficientlm": {"kind": "mtla", **LATENT, "stride": 2, "rotary_scale": True, "part_norms": True},
}


def recipe(attention: dict[str, Any], tokens: int, feed_forward: int) -> dict[str, Any]:
    return {
        "model": {
            "vocabulary": 2048, "width": 128, "layers": 4, "context": 512,
            "attention": attention, "feed_forward": {"kind": "swiglu", "width": feed_forward},
        },
        "data": {"source": "stdlib", "tokenizer": {"vocabulary": 2048}},
        "train": {
            "tokens": tokens, "batch_tokens": 4096, "sequence_length": 512, "evaluate_every": 10**9,
            "final_evaluate_tokens": 131072, "checkpoint_every": 10**9,
        },
        "optimizer": {"learning_rate": 4e-3}, "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.4},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens")
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}; all")
    arguments = parser.parse_args()
    names = arguments.kinds.split(",") if arguments.kinds else list(KINDS)
    tokens = arguments.tokens // 10 if arguments.quick else arguments.tokens
    from shoestring.core.config import load_config
    from shoestring.core.yaml_document import Document
    from shoestring.models.count import cache_numbers
    from shoestring.pretraining.config import PretrainRecipe
    from shoestring.pretraining.job import pretrain

    def made(kind: str, feed_forward: int) -> PretrainRecipe:
        return load_config(PretrainRecipe, Document(recipe(KINDS[kind], tokens, feed_forward), name=kind))

    target = made("mha", 352).model.parameter_count()
    rows, figures = [], {}
    for name in names:
        widths = range(192, 640, 8)
        width = min(widths, key=lambda w: abs(made(name, w).model.parameter_count() - target))  # noqa: B023
        run = made(name, width)
        with tempfile.TemporaryDirectory() as folder:
            result = pretrain(run, out=str(Path(folder) / "run"))
        speed = result.tokens / result.seconds
        cache = 4 * cache_numbers(run.model)
        rows.append([name, f"{result.parameters:,}", f"{result.bits_per_byte:.3f}", f"{speed:,.0f}", f"{cache:,.0f}"])
        figures[f"{name.replace(' ', '_')}_bits_per_byte"] = result.bits_per_byte
    columns = ["attention", "parameters", "bits per byte", "tokens/s", "cache bytes per token"]
    show(f"{tokens:,} tokens of stdlib, 4 layers of width 128, float32", columns, rows)
    finish(figures)


if __name__ == "__main__":
    main()
