"""Causal attention forward and backward, our kernel beside torch's, and both beside the machine's matrix products.

    python -m benchmarks.attention_kernel [--quick] [--rounds N]

GFLOP/s of the multiply-adds that causality, documents and the window leave: two products forward, five backward (the
scores are made again). Documents are packed into one row; torch's kernel is then called once for each. All take turns
in one process, medians count. On a busy machine OMP_NUM_THREADS=1 counts the thread's processor time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.int8 import in_turn
from benchmarks.measure import finish, show
from shoestring.kernels import allocator, attention
from shoestring.nn.attention import core
from shoestring.nn.attention.window import attend_window
from shoestring.nn.context import Context, Visibility

CASES = {  # rows, tokens, query heads, kv heads, width, tokens of a document, window
    "2 × 1,024, 12/3 heads of 64": (2, 1024, 12, 3, 64, None, None),
    "2 × 1,024, 12/12 heads of 64": (2, 1024, 12, 12, 64, None, None),
    "2 × 256, 9/3 heads of 64": (2, 256, 9, 3, 64, None, None),
    "1 × 4,096, 12/3 heads of 64": (1, 4096, 12, 3, 64, None, None),
    "2 × 1,024, 16/2 heads of 128": (2, 1024, 16, 2, 128, None, None),
    "12 × 64, 4/4 heads of 32": (12, 64, 4, 4, 32, None, None),
    "2 × 1,024, documents of 50": (2, 1024, 12, 3, 64, 50, None),
    "2 × 1,024, documents of 100": (2, 1024, 12, 3, 64, 100, None),
    "2 × 1,024, documents of 400": (2, 1024, 12, 3, 64, 400, None),
    "1 × 4,096, window of 512": (1, 4096, 12, 3, 64, None, 512),
}
QUICK = 3  # cases; those in bfloat16 as well, where torch takes a second for each without units for it


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases, three rounds")
    parser.add_argument("--rounds", type=int, help="[9]")
    arguments = parser.parse_args()
    allocator.install()
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    finish(measure(list(CASES)[: QUICK if arguments.quick else None], rounds))


def measure(cases: list[str], rounds: int) -> dict[str, float]:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    peak = 2 * 1024**3 / in_turn({"product": lambda: a @ b}, rounds)["product"] / 1e9
    table = []
    ratios: dict[str, list[float]] = {"forward": [], "backward": []}
    shares: dict[str, list[float]] = {"forward": [], "backward": []}
    for name in cases:
        for dtype in (torch.float32, torch.bfloat16) if name in list(CASES)[:QUICK] else (torch.float32,):
            work, calls = calls_of(CASES[name], dtype)
            seconds = in_turn(calls, rounds)
            rates = {
                "forward": [2 * work / seconds[who] / 1e9 for who in ("ours", "torch")],
                "backward": [
                    5 * work / (seconds[f"{who}, both"] - seconds[who]) / 1e9 for who in ("ours", "torch")
                ],
            }  # fmt: skip
            row = [f"{name}, {'float32' if dtype == torch.float32 else 'bfloat16'}"]
            for way, (mine, theirs) in rates.items():
                row += [f"{mine:.0f}", f"{theirs:.0f}", f"{mine / theirs:.2f}"]
                if dtype == torch.float32:
                    ratios[way].append(mine / theirs)
                    shares[way].append(mine / peak)
            table.append(row)
    threads = torch.get_num_threads()
    columns = ["", "forward", "torch", "ratio", "backward", "torch", "ratio"]
    show(f"GFLOP/s, {threads} thread{'s' * (threads > 1)}; products of 1,024³: {peak:.0f}", columns, table)
    return {
        "product_gflops": peak,
        **{f"{way}_ratio": statistics.median(found) for way, found in ratios.items()},
        **{f"{way}_share": statistics.median(found) for way, found in shares.items()},
    }


def calls_of(case: tuple, dtype: torch.dtype) -> tuple[float, dict[str, Callable[[], object]]]:
    """-> operations of one product (multiplications and additions), and what is timed."""
    rows, tokens, heads, groups, width, size, window = case
    documents = None
    if size is not None:
        starts = [(row, start) for row in range(rows) for start in range(0, tokens, size)]
        documents = tuple((row, start, min(start + size, tokens)) for row, start in starts)
    lengths = [end - start for _, start, end in documents] if documents else [tokens] * rows
    seen = sum(sum(min(t + 1, window or t + 1) for t in range(length)) for length in lengths)
    shapes = ((heads, width), (groups, width), (groups, width))
    leaves = [torch.randn(rows, tokens, *shape).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]
    upstream = torch.randn(rows, tokens, heads, width).to(dtype).transpose(1, 2)
    attend = partial(_attend, leaves, documents, window)

    def forward(ours: bool) -> None:
        with torch.no_grad():
            attend(ours)

    def both(ours: bool) -> None:
        torch.autograd.grad(attend(ours), leaves, upstream)

    calls: dict[str, Callable[[], object]] = {}
    for who, ours in (("ours", True), ("torch", False)):
        calls |= {who: partial(forward, ours), f"{who}, both": partial(both, ours)}
    return 2.0 * heads * width * seen, calls


def _attend(leaves: list[Tensor], documents, window: int | None, ours: bool) -> Tensor:
    """As layers call it; torch's where ours is told to take nothing."""
    shortest = attention.SHORTEST
    attention.SHORTEST = shortest if ours else 1 << 40
    try:
        q, k, v = leaves
        seen, scale = Visibility(causal=True, documents=documents), q.shape[-1] ** -0.5
        if window is None:
            return core.attend(q, k, v, seen, scale)
        return attend_window(q, k, v, Context(torch.arange(q.shape[2])[None], None, seen), scale, window)
    finally:
        attention.SHORTEST = shortest


if __name__ == "__main__":
    main()
