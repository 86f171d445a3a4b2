"""Pretraining the 112M shape: Shoestring beside transformers' `LlamaForCausalLM`, and both beside the floor.

    python -m benchmarks.pretrain [--quick]

Both start from the same folder of weights and read the same batches of 2 × 1024 tokens of the `stdlib` corpus, with the
same fused AdamW and clipping, in processes that take turns; the peer in float32 and in the fastest format that it has
here. Floors: operations over this machine's measured matrix peak, and the bytes of weights, gradients and both moments.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.best_peer import PLAIN
from benchmarks.peer import (
    compare,
    format_peak,
    loss_ratio,
    our_update,
    peer_update,
    precision_of,
    report,
    save_batches,
    timed,
)

ROWS, TOKENS = 2, 1024
SMALL = 2, 256
WARMUP = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps: coarse, a few minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a round, after one to warm up")
    parser.add_argument("--loss-steps", type=int, default=200, help="of a small twin, to compare formats by their loss")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--format", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work, shape = WORKERS[arguments.worker], SMALL if arguments.small else (ROWS, TOKENS)
        print(json.dumps(work(arguments.folder, arguments.steps + WARMUP, arguments.format, *shape)))
        return
    rounds, steps = (1, 1) if arguments.quick else (arguments.rounds, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        parameters = _prepare(Path(folder), steps + WARMUP)
        common = ["--folder", folder, "--steps", str(steps)]
        ours, peer = (["--worker", who, *common] for who in ("shoestring", "transformers"))
        results = compare("benchmarks.pretrain", ours, peer, ["--steps", "1"], rounds, WARMUP)
        small = Path(folder) / "small"
        twin = ["--worker", "shoestring", "--folder", str(small), "--small"]

        def ratio(name: str) -> float:
            if name != PLAIN and not small.exists():
                _prepare(small, arguments.loss_steps + WARMUP, True)
            return loss_ratio("benchmarks.pretrain", twin, name, arguments.loss_steps)

        floor = "floor", f"{16 * parameters / 1e6:,.0f}"  # float32 weights, gradients and two moments
        title = f"{parameters:,} parameters, {ROWS} × {TOKENS} tokens"
        report(title, ("shoestring", "transformers"), results, ROWS * TOKENS, WARMUP, floor, ratio)


def _prepare(folder: Path, steps: int, small: bool = False) -> int:
    """The starting weights and `steps` batches, as both workers read them; -> the number of weights.

    small: of the twin that many steps of are compared: the same kinds, 6 layers of width 256, 2 x 256 tokens.
    """
    from shoestring.data.config import DataConfig
    from shoestring.data.loader import PackedLoader
    from shoestring.models.builder import build
    from shoestring.models.folder import save_model
    from shoestring.pretraining.config import load_pretrain_recipe
    from shoestring.pretraining.dataset import open_dataset

    twin = {"model.width": 256, "model.layers": 6, "model.attention.heads": 4, "model.attention.kv_heads": 1,
            "model.feed_forward.width": 704}  # fmt: skip
    config = load_pretrain_recipe("elite-112m", twin if small else None).model
    rows, tokens = SMALL if small else (ROWS, TOKENS)
    save_model(build(config, seed=1), folder / "model")
    shards = open_dataset(DataConfig(source="stdlib", separate_documents=False))
    loader = PackedLoader(shards, "train", tokens, rows, seed=1, separate_documents=False)
    save_batches(folder, [next(loader) for _ in range(steps)])
    return config.parameter_count()


def _shoestring(folder: Path, steps: int, compute: str, rows: int, tokens: int) -> dict:
    from shoestring.core.device import resolve_dtype
    from shoestring.core.machine import peak_rss_bytes
    from shoestring.core.matmul import TABLE, served_by
    from shoestring.core.speeds import matrix_peak
    from shoestring.kernels import allocator
    from shoestring.models.folder import load_model
    from shoestring.train.metrics import flops_per_token
    from shoestring.train.objective import next_token
    from shoestring.train.optimizer_config import AdamWConfig
    from shoestring.train.precision import prepared
    from shoestring.train.resident import ResidentEngine

    allocator.install()
    formats = precision_of(compute)
    engine = ResidentEngine(prepared(lambda: load_model(folder / "model"), formats), resolve_dtype(formats.dtype))
    config = engine.load().config
    engine.begin(next_token, AdamWConfig())
    return {
        **timed(our_update(engine, tokens, rows), folder, steps),
        "peak": peak_rss_bytes(),
        "flops_per_token": flops_per_token(config, tokens),
        "matrix_peak": matrix_peak("float32", refresh=True),
        "format_peak": format_peak(compute, True),
        "products": served_by(TABLE.choices()["choices"]),
    }


def _transformers(folder: Path, steps: int, name: str, rows: int, tokens: int) -> dict:
    import torch
    from transformers import LlamaForCausalLM

    from shoestring.core.machine import peak_rss_bytes

    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    if name.endswith("bfloat16"):
        model = model.to(torch.bfloat16)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    undecayed = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    return {**timed(peer_update(model, optimizer, name), folder, steps), "peak": peak_rss_bytes()}


WORKERS = {"shoestring": _shoestring, "transformers": _transformers}


if __name__ == "__main__":
    main()
