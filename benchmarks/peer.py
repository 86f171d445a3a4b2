"""Two trainers over the same batches: the batches on disk, each step timed, and the table that compares them.

A result of a worker is a dict: losses, seconds (of each step) and peak (bytes); ours also has flops_per_token,
matrix_peak (of float32), format_peak (of its own format) and products, which make the limits that all are measured
against. The peer runs in float32 and in the fastest format that it has here (`benchmarks.best_peer`); ours in float32,
in bfloat16 where this processor is faster with it, and in int8. Which of ours is honest is told by the loss of a longer
run beside float32's (`loss_ratio`).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.best_peer import PLAIN, autocast, best_format, in_format
from benchmarks.measure import alternate, finish, median, run_worker, show

Results = list[dict[str, Any]]
HONEST = 0.01  # of the loss


def save_batches(folder: Path, batches: Sequence[Any]) -> None:
    """tokens and labels of `data.batch.Batch`es, for `timed`."""
    import numpy as np

    np.save(folder / "tokens.npy", np.stack([batch.tokens_BT.numpy() for batch in batches]))
    np.save(folder / "labels.npy", np.stack([batch.labels_BT.numpy() for batch in batches]))


def timed(update: Callable[[Any, Any], float], folder: Path, steps: int | None = None) -> dict[str, list[float]]:
    """Losses and seconds of update(tokens_BT, labels_BT) over the saved batches, or the first so many of them."""
    import numpy as np
    import torch

    losses, seconds = [], []
    batches = list(zip(np.load(folder / "tokens.npy"), np.load(folder / "labels.npy"), strict=True))
    for tokens, labels in batches[:steps]:
        before = time.perf_counter()
        losses.append(update(torch.from_numpy(tokens), torch.from_numpy(labels)))
        seconds.append(time.perf_counter() - before)
        print(f"  loss {losses[-1]:.4f}  {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return {"losses": losses, "seconds": seconds}


def our_update(engine: Any, tokens: int, at_once: int) -> Callable[[Any, Any], float]:
    """One optimizer step of an engine that has begun, as a run makes it. tokens: of a row; at_once: rows computed."""
    import torch

    from shoestring.data.batch import Batch

    positions_BT = torch.arange(tokens).expand(at_once, -1)
    segments_BT = torch.zeros(at_once, tokens, dtype=torch.int64)

    def update(tokens_BT: Any, labels_BT: Any) -> float:
        parts = zip(tokens_BT.split(at_once), labels_BT.split(at_once), strict=True)
        loss = engine.forward_backward([Batch(some, labels, positions_BT, segments_BT) for some, labels in parts])
        engine.optimizer_step(1.0, 1.0)
        return loss.mean

    return update


def peer_update(model: Any, optimizer: Any, name: str) -> Callable[[Any, Any], float]:
    """One optimizer step of a transformers model in the format `name`, as `timed` calls it."""
    import torch

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    called = in_format(model, name)

    def update(tokens_BT: Any, labels_BT: Any) -> float:
        with autocast(name):
            loss = called(input_ids=tokens_BT, labels=labels_BT, shift_labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return update


def peft_update(model: Any, learning_rate: float, name: str = PLAIN) -> Callable[[Any, Any], float]:
    """The same for a peft model, whose adapters stay in float32."""
    import torch

    if name.endswith("bfloat16"):
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        name = name.removesuffix("bfloat16") + "autocast"  # which casts adapters and activations where they meet
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return peer_update(model, optimizer, name)


def our_formats() -> list[str]:
    """float32, bfloat16 where this processor is faster with it, and int8."""
    from shoestring.core.speeds import matrix_peak
    from shoestring.train.precision import GAIN

    faster = matrix_peak("bfloat16") >= GAIN * matrix_peak("float32")
    return [PLAIN, "bfloat16", "int8"] if faster else [PLAIN, "int8"]


def precision_of(name: str) -> Any:
    """A format's settings; around int8 the faster one of floats."""
    from shoestring.train.precision_config import PrecisionConfig

    around = {"around": "bfloat16"} if name == "int8" and "bfloat16" in our_formats() else {}
    return PrecisionConfig.model_validate({"compute": name, **around})


def format_peak(name: str, trained: bool) -> float:
    """Operations per second of products in a format; of int8 with every weight trained, whose weight gradients are
    products of floats, of the three together."""
    from shoestring.core.speeds import matrix_peak

    if name != "int8":
        return matrix_peak(name)
    integers = _int8_peak()
    return 3 / (2 / integers + 1 / matrix_peak(precision_of(name).dtype)) if trained else integers


def _int8_peak(size: int = 1024, rounds: int = 20) -> float:
    import torch

    from shoestring.kernels import int8

    rows = int8.quantize_rows(torch.randn(size, size))
    weight = torch.randint(-127, 128, (size, size), dtype=torch.int8)
    seconds = []
    for _ in range(rounds):
        before = time.perf_counter()
        int8.product(rows, weight)
        seconds.append(time.perf_counter() - before)
    return 2 * size**3 / min(seconds)


def loss_ratio(module: str, ours: Sequence[str], name: str, steps: int) -> float:
    """The mean loss of the last tenth of `steps` in a format over that in float32; 1 for float32 itself."""
    if name == PLAIN:
        return 1.0
    last = max(steps // 10, 1)
    losses = [
        run_worker(module, *ours, "--steps", str(steps), "--format", one)["losses"][-last:] for one in (PLAIN, name)
    ]
    return sum(losses[1]) / sum(losses[0])


def compare(
    module: str, ours: Sequence[str], peer: Sequence[str], trial: Sequence[str], rounds: int, warmup: int
) -> dict[str, Results]:
    """Results by name: ours in each of our formats, the peer in float32 and at its best, all taken in turn.

    ours, peer: arguments of the workers without a format. trial: arguments that make a peer's run a short one.
    """
    best = best_format(module, [*peer, *trial], warmup)
    formats = [PLAIN] if best == PLAIN else [PLAIN, best]
    workers = {f"ours {name}": [*ours, "--format", name] for name in our_formats()}
    workers |= {f"peer {name}": [*peer, "--format", name] for name in formats}
    return dict(zip(workers, alternate(module, list(workers.values()), rounds), strict=True))


def report(
    title: str, names: tuple[str, str], results: dict[str, Results], tokens: int, warmup: int, floor: tuple[str, str],
    ratio: Callable[[str], float],
) -> None:
    """The table and the last line. names: of us and of the peer. tokens: of a step; warmup: steps not counted; floor:
    its row's name and its MB. ratio: the loss in a format of ours beside float32's."""

    def rate(own: Results) -> float:
        return tokens / statistics.median(s for result in own for s in result["seconds"][warmup:])

    ours, theirs = results["ours float32"], results[f"peer {PLAIN}"]
    best_name = list(results)[-1]
    best = results[best_name]
    by_speed = sorted((who for who in results if who[0] == "o"), key=lambda who: -rate(results[who]))
    ratios: dict[str, float] = {}
    for who in by_speed:  # the fastest whose loss is within 1% of float32's
        fast = who.partition(" ")[2]
        ratios[fast] = ratio(fast)
        if abs(ratios[fast] - 1) <= HONEST:
            break
    fastest = results[f"ours {fast}"]
    first = ours[0]
    peak = max(result["matrix_peak"] for result in ours)
    limit = peak / first["flops_per_token"]
    mine, other = ([loss for result in own for loss in result["losses"]] for own in (ours, theirs))
    rows = [
        [f"{names[who[0] == 'p']}, {who.partition(' ')[2]}", f"{rate(own):.0f}", f"{rate(own) / limit:.0%}",
         f"{median(own, 'peak') / 1e6:,.0f}", f"{own[0]['losses'][0]:.4f} → {own[0]['losses'][-1]:.4f}"]
        for who, own in results.items()
    ]  # fmt: skip
    rows.append([floor[0], f"{limit:.0f}", "100%", floor[1], ""])
    show(
        f"{title}; products by {first['products']}; matrix peak {peak / 1e9:.0f} GFLOP/s in float32",
        ["", "tokens/s", "of float32's limit", "peak MB", f"loss over {len(first['losses'])} steps"],
        rows,
    )
    finish(
        {
            "speed_ratio": rate(ours) / rate(theirs),
            "best_peer_ratio": rate(fastest) / rate(best),
            "best_peer": best_name.partition(" ")[2],
            "fast_format": fast,
            "loss_ratio": ratios[fast],
            "other_loss_ratios": {name: one for name, one in ratios.items() if name != fast},
            "fast_limit_share": rate(fastest) * first["flops_per_token"] / max(one["format_peak"] for one in fastest),
            "best_peer_memory_ratio": median(fastest, "peak") / median(best, "peak"),
            "best_peer_mb": median(best, "peak") / 1e6,
            "memory_ratio": median(ours, "peak") / median(theirs, "peak"),
            "limit_share": rate(ours) / limit,
            "peer_limit_share": rate(theirs) / limit,
            "tokens_per_second": rate(ours),
            "peer_tokens_per_second": rate(theirs),
            "peak_mb": median(ours, "peak") / 1e6,
            "peer_peak_mb": median(theirs, "peak") / 1e6,
            "largest_loss_difference": max(abs(a - b) / b for a, b in zip(mine, other, strict=True)),
        }
    )
