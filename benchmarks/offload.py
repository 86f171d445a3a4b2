"""Training larger than memory: LoRA r=8 on all linears, layers streamed from disk, inside a memory cgroup.

    python -m benchmarks.offload [--quick] [--shape qwen2.5-0.5b] [--memory 900MB] [--rounds 3] [--steps 4]
    python -m benchmarks.offload --shape qwen2.5-3b        bfloat16 as it is, 2 GB, no peer
    python -m benchmarks.offload --wait                    the share of a step that waits for a cold disk
    python -m benchmarks.offload --generate --shape ...    greedy tokens and perplexity, streamed

Random weights and tokens, 4 × 256 a step. Ours (float32, and integers on an int8 store) run inside the cgroup, which
the kernel enforces; the peer is peft on transformers with gradient checkpointing, without a limit. They take turns. The
limit of speed is arithmetic: 6 operations per layer weight and token and 4 per head weight, over the matrix peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.best_peer import PLAIN, best_format
from benchmarks.cgroup import why_not
from benchmarks.measure import alternate, finish, median, run_worker, show
from benchmarks.peer import our_update, peft_update
from benchmarks.random_models import SHAPES, large_model
from benchmarks.streamed_generation import generate, report_generation, score
from shoestring.core.units import parse_bytes

NAME = "benchmarks.offload"
ROWS, TOKENS, RANK, ALPHA = 4, 256, 8, 16
LEARNING_RATE = 2e-4
WARMUP = 1  # steps before the timed ones
MEMORY = {"qwen2.5-1.5b": "1.5GB", "qwen2.5-3b": "2GB"}  # where 900MB is not what is asked for
PEER_FITS = ("qwen2.5-0.5b", "small-25m", "small-70m")
WAITS = {"wait_256": (1, True), "wait_2048": (8, True), "wait_256_without_prefetch": (1, False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of two timed steps: coarse")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, help="[3; 1 for a shape without a peer]")
    parser.add_argument("--steps", type=int, help="timed steps of a round, after one to warm up [4; 2 without a peer]")
    parser.add_argument("--slots", type=int, default=2, help="layers in memory")
    parser.add_argument("--microbatch", type=int, default=1, help="rows computed at once, ours")
    parser.add_argument("--memory", help="of the cgroup [900MB; 2GB for qwen2.5-3b]")
    parser.add_argument("--wait", action="store_true", help="how long a step waits for a cold disk")
    parser.add_argument("--generate", action="store_true", help="tokens and perplexity of a streamed model")
    parser.add_argument("--new-tokens", type=int, default=16, help="with --generate")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--format", default=PLAIN, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", default="source", help=argparse.SUPPRESS)
    parser.add_argument("--no-prefetch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments)))
        return
    peer = arguments.shape in PEER_FITS
    arguments.rounds = arguments.rounds or (3 if peer else 1)
    arguments.steps = arguments.steps or (4 if peer else 2)
    if arguments.quick:
        arguments.rounds, arguments.steps, arguments.new_tokens = 1, 2, 4
    arguments.memory = parse_bytes(arguments.memory or MEMORY.get(arguments.shape, "900MB"))
    memory: int | None = arguments.memory
    if reason := why_not():
        print(f"the memory limit is not proven: {reason}", file=sys.stderr)
        memory = None
    model = large_model(arguments.shape)
    with tempfile.TemporaryDirectory() as folder:
        common = ["--model", str(model), "--folder", folder]
        if arguments.wait:
            _wait(arguments, common, None if memory is None else max(memory, 1_200_000_000))  # 2,048 tokens a step
        elif arguments.generate:
            report_generation(arguments, common, memory, arguments.shape in PEER_FITS)
        else:
            _train(arguments, common, memory)


# --- training -----------------------------------------------------------------------------------------------------


def _train(arguments: argparse.Namespace, common: list[str], memory: int | None) -> None:
    peer = arguments.shape in PEER_FITS
    _batches(Path(common[-1]), arguments.shape, WARMUP + arguments.steps, ROWS)
    kinds = ["streamed", "int8"] if peer else ["streamed"]
    run_worker(NAME, "--worker", "prepare", *common, *(["--weights", "int8"] if peer else []))
    how = ["--slots", str(arguments.slots), "--microbatch", str(arguments.microbatch)]
    limited = [["--worker", kind, *common, *how] for kind in kinds]
    theirs = ["--worker", "peft", *common]
    formats = []
    if peer:
        best = best_format(NAME, [*theirs, "--steps", "1"], 0)
        formats = [PLAIN] if best == PLAIN else [PLAIN, best]
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds} | {f"peft {name}": [] for name in formats}
    for round_ in range(arguments.rounds):
        print(f"round {round_ + 1}/{arguments.rounds}", file=sys.stderr, flush=True)
        turn = alternate(NAME, limited, 1, memory=memory)
        turn += alternate(NAME, [[*theirs, "--steps", str(arguments.steps), "--format", name] for name in formats], 1)
        for kept, new in zip(results.values(), turn, strict=True):
            kept += new
    _report(arguments, results, memory)


def _report(arguments: argparse.Namespace, results: dict[str, list[dict[str, Any]]], memory: int | None) -> None:
    streamed = results["streamed"]
    first = streamed[0]
    peak = max(result["matrix_peak"] for result in streamed)
    limit = peak / first["flops_per_token"]
    names = {"streamed": "streamed, float32", "int8": "streamed, int8"}

    def row(who: str, own: list[dict[str, Any]]) -> list[str]:
        speed, losses = _rate(own), own[0]["losses"]
        peaks = [max(result[key] for result in own) / 1e6 if key in own[0] else 0 for key in ("peak", "group_peak")]
        waited = f"{_waited(own):.1%}" if who in names else ""
        shown = [f"{peak:,.0f}" if peak else "–" for peak in peaks]
        return [names.get(who, f"{who}, checkpointed"), f"{speed:.1f}", f"{speed / limit:.0%}", *shown, waited,
                f"{losses[0]:.4f} → {losses[-1]:.4f}"]  # fmt: skip

    show(
        f"{arguments.shape}, {first['parameters']:,} parameters, {first['trained']:,} trained, {ROWS} × {TOKENS};"
        f" matrix peak {peak / 1e9:.0f} GFLOP/s, limit {limit:.1f} tokens/s; "
        + (f"cgroup of {memory / 1e6:,.0f} MB" if memory else "memory limit not proven"),
        ["", "tokens/s", "of the limit", "peak MB", "cgroup MB", "waited", f"loss over {len(first['losses'])} steps"],
        [row(who, own) for who, own in results.items()],
    )
    ours = [results[kind] for kind in names if kind in results]
    figures: dict[str, Any] = {
        "tokens_per_second": _rate(streamed),
        "limit_share": _rate(streamed) / limit,
        "peak_mb": max(result["peak"] for own in ours for result in own) / 1e6,
        "cgroup_mb": max(result.get("group_peak", 0) for own in ours for result in own) / 1e6,
        "limit_mb": memory / 1e6 if memory else None,
        "waited_share": _waited(streamed),
        "memory_proven": memory is not None,
    }
    if f"peft {PLAIN}" in results:
        integers, peft = results["int8"], results[f"peft {PLAIN}"]
        best_name = list(results)[-1]
        apart = [abs(a - b) / b for a, b in zip(integers[0]["losses"], first["losses"], strict=True)]
        figures |= {
            "speed_ratio": _rate(streamed) / _rate(peft),
            "int8_speed_ratio": _rate(integers) / _rate(peft),
            "best_peer_ratio": _rate(integers) / _rate(results[best_name]),
            "best_peer": best_name.partition(" ")[2],
            "best_peer_mb": median(results[best_name], "peak") / 1e6,
            "int8_tokens_per_second": _rate(integers),
            "int8_loss_difference": max(apart),
            "peer_tokens_per_second": _rate(peft),
            "peer_peak_mb": median(peft, "peak") / 1e6,
            "peer_loss_difference": max(
                abs(a - b) / b for a, b in zip(first["losses"], peft[0]["losses"], strict=True)
            ),
        }
    finish(figures)


def _rate(results: list[dict[str, Any]]) -> float:
    return results[0]["tokens"] / statistics.median(s for result in results for s in result["seconds"])


def _waited(results: list[dict[str, Any]]) -> float:
    """Share of the timed steps in which computing stood still for the disk."""
    return sum(result["waited"] for result in results) / sum(sum(result["seconds"]) for result in results)


def _batches(folder: Path, shape: str, steps: int, rows: int) -> None:
    import numpy as np

    random = np.random.default_rng(1)
    for name in ("tokens", "labels"):
        np.save(folder / f"{name}.npy", random.integers(SHAPES[shape][5], size=(steps, rows, TOKENS)))


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The store that workers read, and the adapter that the peer starts from."""
    from shoestring.models.adapters import attach
    from shoestring.models.peft_folder import save_adapter
    from shoestring.nn.lora_config import LoRAConfig
    from shoestring.offload.model import open_streamed

    for weights in {"source", arguments.weights}:
        decoder = open_streamed(arguments.model, weights)
        if weights == "source":
            attach(decoder, LoRAConfig(rank=RANK, alpha=ALPHA), seed=1)
            save_adapter(decoder, arguments.folder / "adapter", arguments.model)
        decoder.close()
    return {}


def _streamed(arguments: argparse.Namespace, integers: bool = False) -> dict[str, Any]:
    from shoestring.core.machine import peak_rss_bytes
    from shoestring.core.speeds import matrix_peak
    from shoestring.kernels import allocator
    from shoestring.models.adapters import attach
    from shoestring.nn.lora_config import LoRAConfig
    from shoestring.offload.engine import StreamedEngine
    from shoestring.offload.model import StreamedDecoder, open_streamed
    from shoestring.train.objective import next_token
    from shoestring.train.optimizer_config import AdamWConfig

    allocator.install()
    weights = "int8" if integers else arguments.weights

    def make() -> StreamedDecoder:
        model = open_streamed(
            arguments.model, weights, arguments.slots, prefetch=not arguments.no_prefetch,
            compute="int8" if integers else "float",
        )  # fmt: skip
        attach(model, LoRAConfig(rank=RANK, alpha=ALPHA), seed=1)
        return model

    engine = StreamedEngine(make)
    model = engine.load()
    assert isinstance(model, StreamedDecoder)
    engine.begin(next_token, AdamWConfig(learning_rate=LEARNING_RATE, weight_decay=0.0))
    # A step has ROWS rows, or as many as the batches of `--wait`.
    update = our_update(engine, TOKENS, arguments.microbatch)
    result = _timed(update, arguments.folder, lambda: model.waited)
    config, head = model.config, model.config.vocabulary * model.config.width
    layers = config.parameter_count() - head * (1 if config.tied_head else 2)
    return {
        **result,
        "peak": peak_rss_bytes(),
        "bytes_read": model.stream.bytes_read,
        "trained": sum(p.numel() for p in engine.parameters()),
        "parameters": config.parameter_count(),
        "flops_per_token": 6 * layers + 4 * head,
        "matrix_peak": matrix_peak("float32", refresh=True),
    }


def _int8(arguments: argparse.Namespace) -> dict[str, Any]:
    return _streamed(arguments, integers=True)


def _peft(arguments: argparse.Namespace) -> dict[str, Any]:
    import peft
    import torch

    from shoestring.core.machine import peak_rss_bytes

    model = peft.AutoPeftModelForCausalLM.from_pretrained(
        arguments.folder / "adapter", is_trainable=True, dtype=torch.float32
    )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    update = peft_update(model, LEARNING_RATE, arguments.format)
    return {**_timed(update, arguments.folder, steps=arguments.steps), "peak": peak_rss_bytes()}


def _timed(update, folder: Path, waited=lambda: 0.0, steps: int | None = None) -> dict[str, Any]:
    """Losses of all steps; seconds of the timed ones, or so many of them, and seconds waited for the disk in them."""
    import numpy as np
    import torch

    losses, seconds, before_waiting = [], [], 0.0
    batches = list(zip(np.load(folder / "tokens.npy"), np.load(folder / "labels.npy"), strict=True))
    for number, (tokens, labels) in enumerate(batches[: None if steps is None else WARMUP + steps]):
        if number == WARMUP:
            before_waiting = waited()
        before = time.perf_counter()
        losses.append(update(torch.from_numpy(tokens), torch.from_numpy(labels)))
        seconds.append(time.perf_counter() - before)
        print(f"  loss {losses[-1]:.4f}  {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return {
        "losses": losses,
        "seconds": seconds[WARMUP:],
        "waited": waited() - before_waiting,
        "tokens": int(batches[0][0].size),
    }


# --- waiting for the disk -----------------------------------------------------------------------------------------


def _wait(arguments: argparse.Namespace, common: list[str], memory: int | None) -> None:
    """A float32 store, dropped from the page cache before each run; the cgroup keeps it from growing back."""
    run_worker(NAME, "--worker", "prepare", *common, "--weights", "float32")
    figures: dict[str, Any] = {}
    rows = []
    for name, (microbatches, prefetch) in WAITS.items():
        steps = max(arguments.steps // (4 if microbatches > 1 else 1), 1)
        _batches(Path(common[-1]), arguments.shape, WARMUP + steps, microbatches)
        worker = ["--worker", "streamed", *common, "--weights", "float32", *([] if prefetch else ["--no-prefetch"])]
        results = []
        for _ in range(arguments.rounds):
            _drop_from_page_cache(Path(common[1]))
            results += alternate(NAME, [worker], 1, memory=memory)[0]
        figures[name] = _waited(results)
        seconds, waited = sum(sum(r["seconds"]) for r in results), sum(r["waited"] for r in results)
        rows.append([f"{microbatches * TOKENS:,}", "on" if prefetch else "off", f"{_rate(results):.1f}",
                     f"{seconds:.1f}", f"{waited:.2f}", f"{waited / seconds:.1%}"])  # fmt: skip
    show(
        f"{arguments.shape}, float32 store, cold page cache",
        ["tokens a step", "prefetch", "tokens/s", "seconds", "waited", "share"],
        rows,
    )
    finish(figures)


def _drop_from_page_cache(model: Path) -> None:
    """Of this model's weights and of every store of streamed layers."""
    from shoestring.core.files import cache_dir

    if not hasattr(os, "posix_fadvise"):
        print("the page cache cannot be dropped here: the disk may be warm", file=sys.stderr)
        return
    for folder in (model, cache_dir() / "stores"):
        for file in folder.rglob("*.safetensors"):
            with open(file, "rb") as content:
                os.fsync(content.fileno())
                os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


WORKERS = {
    "prepare": _prepare,
    "streamed": _streamed,
    "int8": _int8,
    "peft": _peft,
    "generate": generate,
    "perplexity": score,
}


if __name__ == "__main__":
    main()
