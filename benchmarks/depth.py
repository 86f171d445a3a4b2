"""What reversible blocks and activation checkpointing save, and what they cost.

    python -m benchmarks.depth [--quick]

Three questions: do the activations of 12, 24 and 48 reversible layers take the same bytes (counted where autograd
keeps them); what does a reversible step (forward and backward) take beside a plain one of the same shape, taking
turns; and what is the peak memory of velocity-2b's block shape with whole blocks recomputed, beside nothing
recomputed (each in a process of its own; weights and gradients are part of it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from benchmarks.measure import finish, run_worker, show

DEPTHS = (12, 24, 48)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tokens: coarse, about a minute")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", choices=("growth", "time", "peak"), help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=6, help="of velocity-2b's blocks, for its peak memory")
    parser.add_argument("--tokens", type=int, default=8192, help="of its batch, in rows of 2048")
    arguments = parser.parse_args()
    if arguments.worker == "growth":
        print(json.dumps({str(depth): _kept_bytes(depth) for depth in DEPTHS}))
    elif arguments.worker == "time":
        print(json.dumps(_step_times(arguments.rounds)))
    elif arguments.worker == "peak":
        print(json.dumps(_peak(arguments.mode, arguments.layers, arguments.tokens)))
    else:
        _report(arguments)


def _report(arguments: argparse.Namespace) -> None:
    growth = run_worker("benchmarks.depth", "--worker", "growth")
    rounds = 3 if arguments.quick else arguments.rounds
    times = run_worker("benchmarks.depth", "--worker", "time", "--rounds", str(rounds))
    layers, tokens = (2, 2048) if arguments.quick else (arguments.layers, arguments.tokens)
    shape = ["--layers", str(layers), "--tokens", str(tokens)]
    peaks = {
        mode: run_worker("benchmarks.depth", "--worker", "peak", "--mode", mode, *shape)
        for mode in ("none", "selective", "full")
    }
    kept = [growth[str(depth)] for depth in DEPTHS]
    rows = [[f"{depth} reversible layers", f"{growth[str(depth)] / 1e6:.2f} MB"] for depth in DEPTHS]
    show("activations kept for the backward pass, width 512, 512 tokens", ["", "kept"], rows)
    rows = [[name, f"{times[name] * 1e3:.0f} ms"] for name in ("plain", "reversible")]
    show(f"a step of 12 layers of width 768, 2 × 512 tokens, median of {rounds}", ["", "forward and backward"], rows)
    rows = [[mode, f"{p['peak'] / 1e9:.2f} GB", f"{p['seconds']:.1f} s"] for mode, p in peaks.items()]
    title = f"{layers} blocks of velocity-2b, {tokens} tokens: weights, gradients and activations"
    show(title, ["recomputed", "peak memory", "step"], rows)
    finish({
        "activation_growth": max(kept) / min(kept),
        "step_time_ratio": times["ratio"],
        "checkpoint_memory_ratio": peaks["full"]["peak"] / peaks["none"]["peak"],
        "checkpoint_memory_ratio_selective": peaks["full"]["peak"] / peaks["selective"]["peak"],
        "checkpoint_time_ratio": peaks["full"]["seconds"] / peaks["none"]["seconds"],
    })  # fmt: skip


def _config(layers: int, block: str, width: int = 512):
    from shoestring.models.config import ModelConfig

    return ModelConfig.model_validate({
        "vocabulary": 1024, "width": width, "layers": layers, "context": 512, "block": block,
        "attention": {"heads": width // 64, "kv_heads": width // 256, "head_width": 64},
        "feed_forward": {"width": width * 8 // 3 // 64 * 64},
    })  # fmt: skip


def _kept_bytes(layers: int) -> int:
    """Bytes of distinct memory that autograd keeps, weights left out."""
    import torch

    from shoestring.models.builder import build

    model = build(_config(layers, "reversible"), seed=0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_BT = torch.randint(0, 1024, (1, 512), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(tokens_BT)[0]
    assert hidden.requires_grad
    return sum(kept.values())


def _step_times(rounds: int) -> dict[str, float]:
    import torch

    from shoestring.kernels import allocator
    from shoestring.models.builder import build

    allocator.install()
    models = {
        name: build(_config(12, block, 768), seed=0)
        for name, block in (("plain", "sequential"), ("reversible", "reversible"))
    }
    tokens_BT = torch.randint(0, 1024, (2, 512), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            model(tokens_BT)[0].square().mean().backward()
            seconds[name].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(seconds["plain"][1:], seconds["reversible"][1:], strict=True)]
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {**medians, "ratio": statistics.median(ratios)}


def _peak(mode: str, layers: int, tokens: int) -> dict[str, float]:
    """Of one forward and backward pass, above the process before it had a model."""
    import torch

    from shoestring.core.machine import peak_rss_bytes, rss_bytes
    from shoestring.kernels import allocator
    from shoestring.models.builder import build
    from shoestring.pretraining.config import load_pretrain_recipe

    allocator.install()
    shape = load_pretrain_recipe("velocity-2b").model
    before = rss_bytes()
    model = build(shape.model_copy(update={"layers": layers, "vocabulary": 1024}), seed=0)
    model.activation_checkpointing = mode
    tokens_BT = torch.randint(0, 1024, (tokens // 2048, 2048), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    model(tokens_BT)[0].square().mean().backward()
    return {"peak": peak_rss_bytes() - before, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
