"""Held-out bits per byte after the same minutes: the recipe `speedrun` beside a plain GPT, on the same text.

    python -m benchmarks.quality_per_hour --minutes 10 [--seeds 3]
    python -m benchmarks.quality_per_hour --search --minutes 2

Both are trained by `shoestring.pretrain` on the same prepared `stdlib` with the same tokenizer and engine, in processes
of their own that take turns. The plain one (`plain.yaml`) is pre-norm with LayerNorm, learned positions, GELU, AdamW
and a cosine; its rate is the best of three around it, each tried for a share of the minutes. --search tries sizes of
both, and --ablate what each part of `speedrun` is worth, in its place the plain one's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, finish, median, run_worker, show

RECIPES = {"speedrun": "speedrun", "plain": str(ROOT / "benchmarks" / "plain.yaml")}
RATES = (1e-3, 2e-3, 4e-3)  # of the plain one
TRIAL = 0.2  # of the minutes, for each rate
SIZES = ((128, 4), (192, 4), (192, 6), (256, 4), (256, 6))  # width, layers
# What takes the place of each part.
ABLATIONS: dict[str, dict[str, Any]] = {
    "AdamW instead of Muon": {"optimizer": {"kind": "adamw", "learning_rate": 4e-3, "weight_decay": 0.1}},
    "GELU instead of squared ReLU": {"model.feed_forward.kind": "gelu"},
    "no norm of queries and keys": {"model.attention.qk_norm": False},
    "no convolution over the embedding": {"model.embedding_convolution": None},
    "outputs not zero at first": {"model.zero_init_output": False},
    "the head tied to the embedding": {"model.tied_head": True, "optimizer.adamw.head_learning_rate": None},
    "a cosine instead of constant and decay": {"schedule": {"kind": "cosine", "warmup": 0.02, "final": 0.1}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (%(default)s)")
    parser.add_argument("--rate", type=float, help="of the plain one, instead of the best of three")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--search", action="store_true", help="try sizes of both, one run each")
    mode.add_argument("--ablate", action="store_true", help="speedrun without each of its parts, one seed each")
    parser.add_argument("--worker", choices=sorted(RECIPES), help=argparse.SUPPRESS)
    parser.add_argument("--overrides", type=json.loads, default={}, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_work(arguments.worker, arguments.overrides)))
    elif arguments.search:
        _search(arguments.minutes)
    elif arguments.ablate:
        _ablate(arguments.minutes, arguments.seeds)
    else:
        _compare(arguments.minutes, arguments.seeds, arguments.rate)


def _work(who: str, overrides: dict[str, Any]) -> dict[str, Any]:
    from torch import nn

    import shoestring
    from shoestring.models import builder

    if who == "plain":  # the one thing that recipes have no word for
        setattr(builder, "RMSNorm", lambda width, epsilon: nn.LayerNorm(width, epsilon, bias=False))  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        result = shoestring.pretrain(RECIPES[who], out=Path(folder) / "run", overrides=overrides)
        return {"bits": result.bits_per_byte, "steps": result.steps, "tokens": result.tokens,
                "parameters": result.parameters, "training_seconds": result.seconds}  # fmt: skip


def run(who: str, minutes: float, seed: int, **overrides: Any) -> dict[str, Any]:
    """One run; overrides by their dotted names."""
    settings = {"train.time": f"{round(60 * minutes)}s", "seed": seed, **overrides}
    print(f"{who}, seed {seed} {overrides or ''}", file=sys.stderr, flush=True)
    found = run_worker("benchmarks.quality_per_hour", "--worker", who, "--overrides", json.dumps(settings))
    print(f"  {found['bits']:.4f} bits per byte, {found['steps']:,} steps", file=sys.stderr, flush=True)
    return found


def _row(name: str, found: dict[str, Any]) -> list[str]:
    return [name, f"{found['bits']:.4f}", f"{found['parameters'] / 1e6:.2f}M", f"{found['steps']:,}",
            f"{found['tokens'] / found['training_seconds']:,.0f}"]  # fmt: skip


_COLUMNS = ["", "bits per byte", "weights", "steps", "tokens/s"]


def _compare(minutes: float, seeds: int, rate: float | None) -> None:
    tried = {} if rate is not None else {
        one: run("plain", TRIAL * minutes, 0, **{"optimizer.learning_rate": one})["bits"] for one in RATES
    }  # fmt: skip
    best = rate if rate is not None else min(tried, key=tried.__getitem__)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    for seed in range(1, seeds + 1):
        results["speedrun"].append(run("speedrun", minutes, seed))
        results["plain"].append(run("plain", minutes, seed, **{"optimizer.learning_rate": best}))
    rows = [_row(f"{name}, seed {i}", one) for name, own in results.items() for i, one in enumerate(own, 1)]
    show(f"held-out bits per byte after {minutes:g} minutes; the plain one's rate {best:g}", _COLUMNS, rows)
    ours, plain = (median(results[name], "bits") for name in ("speedrun", "plain"))
    finish({
        "minutes": minutes, "seeds": seeds, "speedrun_bits_per_byte": ours, "plain_bits_per_byte": plain,
        "gain_bits_per_byte": plain - ours, "plain_rate": best,
        "smallest_gain": min(b["bits"] - a["bits"] for a, b in zip(results["speedrun"], results["plain"], strict=True)),
    })  # fmt: skip


def _search(minutes: float) -> None:
    rows, best = [], {}
    for who in RECIPES:
        found = {}
        for width, layers in SIZES:
            heads = width // 32
            settings = {"model.width": width, "model.layers": layers, "model.attention.heads": heads,
                        "model.attention.kv_heads": heads, "model.feed_forward.width": 4 * width}  # fmt: skip
            one = run(who, minutes, 0, **settings)
            found[width, layers] = one["bits"]
            rows.append(_row(f"{who} {layers} x {width}", one))
        best[who] = min(found, key=found.__getitem__)
    show(f"sizes, {minutes:g} minutes each", _COLUMNS, rows)
    finish({"minutes": minutes, **{f"{who}_size": list(size) for who, size in best.items()}})


def _ablate(minutes: float, seeds: int) -> None:
    rows, losses = [], {}
    for name, overrides in {"speedrun": {}, **ABLATIONS}.items():
        own = [run("speedrun", minutes, seed, **overrides) for seed in range(1, seeds + 1)]
        losses[name] = median(own, "bits")
        rows.append(_row(name, {**own[0], "bits": losses[name]}))
    show(f"speedrun without each of its parts, {minutes:g} minutes, median of {seeds}", _COLUMNS, rows)
    worth = {name: bits - losses["speedrun"] for name, bits in losses.items() if name != "speedrun"}
    finish({"minutes": minutes, "seeds": seeds, **worth})


if __name__ == "__main__":
    main()
