"""Two trainers over the same batches: the batches on disk, each step timed, and the table that compares the two.

A result of a worker is a dict: losses, seconds (of each step) and peak (bytes); ours also has flops_per_token,
matrix_peak and products, which make the limit that both are measured against.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, median, show


def save_batches(folder: Path, batches: Sequence[Any]) -> None:
    """tokens and labels of `data.batch.Batch`es, for `timed`."""
    import numpy as np

    np.save(folder / "tokens.npy", np.stack([batch.tokens_BT.numpy() for batch in batches]))
    np.save(folder / "labels.npy", np.stack([batch.labels_BT.numpy() for batch in batches]))


def timed(update: Callable[[Any, Any], float], folder: Path) -> dict[str, list[float]]:
    """Losses and seconds of update(tokens_BT, labels_BT) over the saved batches."""
    import numpy as np
    import torch

    losses, seconds = [], []
    for tokens, labels in zip(np.load(folder / "tokens.npy"), np.load(folder / "labels.npy"), strict=True):
        before = time.perf_counter()
        losses.append(update(torch.from_numpy(tokens), torch.from_numpy(labels)))
        seconds.append(time.perf_counter() - before)
        print(f"  loss {losses[-1]:.4f}  {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return {"losses": losses, "seconds": seconds}


def peft_update(model: Any, learning_rate: float) -> Callable[[Any, Any], float]:
    """One optimizer step of a transformers model, as `timed` calls it."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def update(tokens_BT: Any, labels_BT: Any) -> float:
        loss = model(input_ids=tokens_BT, labels=labels_BT, shift_labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return update


def report(
    title: str,
    names: tuple[str, str],
    ours: list[dict],
    theirs: list[dict],
    tokens: int,
    warmup: int,
    floor: tuple[str, str],
) -> None:
    """The table and the last line. tokens: of a step; warmup: steps not counted; floor: its row's name and its MB."""

    def rate(results: list[dict]) -> float:
        return tokens / statistics.median(s for result in results for s in result["seconds"][warmup:])

    first = ours[0]
    peak = max(result["matrix_peak"] for result in ours)
    limit = peak / first["flops_per_token"]
    mine, other = ([loss for result in results for loss in result["losses"]] for results in (ours, theirs))
    rows = [
        [name, f"{rate(results):.0f}", f"{rate(results) / limit:.0%}", f"{median(results, 'peak') / 1e6:,.0f}",
         f"{results[0]['losses'][0]:.4f} → {results[0]['losses'][-1]:.4f}"]
        for name, results in zip(names, (ours, theirs), strict=True)
    ]  # fmt: skip
    rows.append([floor[0], f"{limit:.0f}", "100%", floor[1], ""])
    show(
        f"{title}; products by {first['products']}; matrix peak {peak / 1e9:.0f} GFLOP/s",
        ["", "tokens/s", "of the limit", "peak MB", f"loss over {len(first['losses'])} steps"],
        rows,
    )
    finish(
        {
            "speed_ratio": rate(ours) / rate(theirs),
            "memory_ratio": median(ours, "peak") / median(theirs, "peak"),
            "limit_share": rate(ours) / limit,
            "tokens_per_second": rate(ours),
            "peer_tokens_per_second": rate(theirs),
            "peak_mb": median(ours, "peak") / 1e6,
            "peer_peak_mb": median(theirs, "peak") / 1e6,
            "largest_loss_difference": max(abs(a - b) / b for a, b in zip(mine, other, strict=True)),
        }
    )
