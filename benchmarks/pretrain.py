"""Pretraining the 112M shape: Shoestring beside transformers' `LlamaForCausalLM`, and both beside the floor.

    python -m benchmarks.pretrain [--quick]

Both start from the same folder of weights and read the same batches of 2 × 1024 tokens of the `stdlib` corpus,
in float32, with the same fused AdamW and clipping, in processes that take turns. Floors: operations over this
machine's measured matrix peak, and the bytes of weights, gradients and both moments.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.measure import alternate
from benchmarks.peer import report, save_batches, timed

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
    from shoestring.data.config import DataConfig
    from shoestring.data.loader import PackedLoader
    from shoestring.models.builder import build
    from shoestring.models.folder import save_model
    from shoestring.train.dataset import open_dataset
    from shoestring.train.recipe import load_recipe

    save_model(build(load_recipe("elite-112m").model, seed=1), folder / "model")
    shards = open_dataset(DataConfig(source="stdlib", separate_documents=False))
    loader = PackedLoader(shards, "train", TOKENS, ROWS, seed=1, separate_documents=False)
    save_batches(folder, [next(loader) for _ in range(steps)])


def _shoestring(folder: Path, steps: int) -> dict:
    import torch

    from shoestring.core.allocator import map_large_tensors
    from shoestring.core.machine import matrix_peak, peak_rss_bytes
    from shoestring.core.matmul import TABLE, served_by
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

    return {
        **timed(update, folder),
        "peak": peak_rss_bytes(),
        "parameters": model.parameter_count(),
        "flops_per_token": flops_per_token(model.config, TOKENS),
        "matrix_peak": matrix_peak("float32", refresh=True),
        "products": served_by(TABLE.choices()["choices"]),
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

    return {**timed(update, folder), "peak": peak_rss_bytes()}


WORKERS = {"shoestring": _shoestring, "transformers": _transformers}


def _report(ours: list[dict], theirs: list[dict]) -> None:
    first = ours[0]
    title = f"{first['parameters']:,} parameters, {ROWS} × {TOKENS} tokens, float32"
    floor = "floor", f"{16 * first['parameters'] / 1e6:,.0f}"  # float32 weights, gradients and two moments
    report(title, ("shoestring", "transformers"), ours, theirs, ROWS * TOKENS, 1, floor)


if __name__ == "__main__":
    main()
