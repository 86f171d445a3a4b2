"""Pretraining the 112M shape: Shoestring beside transformers' `LlamaForCausalLM`, and both beside the floor.

    python -m benchmarks.pretrain [--quick]

Both start from the same folder of weights and read the same batches of 2 × 1024 tokens of the `stdlib` corpus,
in float32, with the same fused AdamW and clipping, in processes that take turns. Floors: operations over this
machine's measured matrix peak, and the bytes of weights, gradients and both moments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import alternate, finish, median, show

ROWS, TOKENS = 2, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps: coarse, under a minute")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a round, after one to warm up")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments.folder, arguments.steps)))
        return
    rounds, steps = (1, 1) if arguments.quick else (arguments.rounds, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), steps + 1)
        common = ["--folder", folder, "--steps", str(steps)]
        ours, theirs = alternate(
            "benchmarks.pretrain", [["--worker", who, *common] for who in ("shoestring", "transformers")], rounds
        )
    _report(ours, theirs)


def _prepare(folder: Path, steps: int) -> None:
    """The starting weights and `steps` batches, as both workers read them."""
    import numpy as np

    from shoestring.data.config import DataConfig
    from shoestring.data.loader import PackedLoader
    from shoestring.models.builder import build
    from shoestring.models.folder import save_model
    from shoestring.train.dataset import open_dataset
    from shoestring.train.recipe import load_recipe

    save_model(build(load_recipe("elite-112m").model, seed=1), folder / "model")
    shards = open_dataset(DataConfig(source="stdlib", separate_documents=False))
    loader = PackedLoader(shards, "train", TOKENS, ROWS, seed=1, separate_documents=False)
    batches = [next(loader) for _ in range(steps)]
    np.save(folder / "tokens.npy", np.stack([batch.tokens_BT.numpy() for batch in batches]))
    np.save(folder / "labels.npy", np.stack([batch.labels_BT.numpy() for batch in batches]))


def _batches(folder: Path):
    import numpy as np
    import torch

    for tokens, labels in zip(np.load(folder / "tokens.npy"), np.load(folder / "labels.npy"), strict=True):
        yield torch.from_numpy(tokens), torch.from_numpy(labels)


def _shoestring(folder: Path, steps: int) -> dict:
    import torch

    from shoestring.core.allocator import map_large_tensors
    from shoestring.core.machine import matrix_peak, peak_rss_bytes
    from shoestring.core.matmul import prefers_onednn
    from shoestring.data.batch import Batch
    from shoestring.models.folder import load_model
    from shoestring.train.config import AdamWConfig
    from shoestring.train.metrics import flops_per_token
    from shoestring.train.objective import next_token
    from shoestring.train.optimizer import build_optimizer
    from shoestring.train.step import ResidentStep

    map_large_tensors()
    model = load_model(folder / "model").train()
    optimizer = build_optimizer(AdamWConfig(), model)
    step = ResidentStep(model, next_token)
    positions_BT, segments_BT = torch.arange(TOKENS).expand(ROWS, -1), torch.zeros(ROWS, TOKENS, dtype=torch.int64)

    def update(tokens_BT, labels_BT) -> float:
        loss = step([Batch(tokens_BT, labels_BT, positions_BT, segments_BT)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.mean

    losses, seconds = _timed(update, folder)
    return {
        "losses": losses,
        "seconds": seconds,
        "peak": peak_rss_bytes(),
        "parameters": model.parameter_count(),
        "flops_per_token": flops_per_token(model.config, TOKENS),
        "matrix_peak": matrix_peak("float32", refresh=True),
        "products": "oneDNN" if prefers_onednn() else "torch's default",
    }


def _transformers(folder: Path, steps: int) -> dict:
    import torch
    from transformers import LlamaForCausalLM

    from shoestring.core.machine import peak_rss_bytes

    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    undecayed = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)

    def update(tokens_BT, labels_BT) -> float:
        loss = model(input_ids=tokens_BT, labels=labels_BT, shift_labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    losses, seconds = _timed(update, folder)
    return {"losses": losses, "seconds": seconds, "peak": peak_rss_bytes()}


WORKERS = {"shoestring": _shoestring, "transformers": _transformers}


def _timed(update, folder: Path) -> tuple[list[float], list[float]]:
    losses, seconds = [], []
    for tokens_BT, labels_BT in _batches(folder):
        before = time.perf_counter()
        losses.append(update(tokens_BT, labels_BT))
        seconds.append(time.perf_counter() - before)
        print(f"  loss {losses[-1]:.4f}  {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return losses, seconds


def _report(ours: list[dict], theirs: list[dict]) -> None:
    def rate(results: list[dict]) -> float:
        return ROWS * TOKENS / statistics.median(s for result in results for s in result["seconds"][1:])

    first = ours[0]
    peak = max(result["matrix_peak"] for result in ours)
    limit = peak / first["flops_per_token"]
    held = 16.0 * first["parameters"]  # float32 weights, gradients and two moments
    mine, other = ([loss for result in results for loss in result["losses"]] for results in (ours, theirs))
    apart = max(abs(a - b) / b for a, b in zip(mine, other, strict=True))
    rows = [
        [name, f"{rate(results):.0f}", f"{rate(results) / limit:.0%}", f"{median(results, 'peak') / 1e6:,.0f}",
         f"{results[0]['losses'][0]:.4f} → {results[0]['losses'][-1]:.4f}"]
        for name, results in (("shoestring", ours), ("transformers", theirs))
    ]  # fmt: skip
    rows.append(["floor", f"{limit:.0f}", "100%", f"{held / 1e6:,.0f}", ""])
    show(
        f"{first['parameters']:,} parameters, {ROWS} × {TOKENS} tokens, float32; products by {first['products']}; "
        f"matrix peak {peak / 1e9:.0f} GFLOP/s",
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
            "largest_loss_difference": apart,
        }
    )


if __name__ == "__main__":
    main()
