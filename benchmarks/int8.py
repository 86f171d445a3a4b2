"""Products of int8 beside float32's of both libraries, and the loss of a frozen head in either format.

    python -m benchmarks.int8 [--quick] [--rounds N]

Products: rows [M, K] with a frozen weight [N, K], forward x·Wᵀ and backward g·W, rounding the rows and keeping their
eight largest columns included. The head: SmolLM2-135M's, hidden states of README.md, loss and gradient beside float64.
All take turns in one process, medians count. On a busy machine OMP_NUM_THREADS=1 counts the thread's processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import ROOT, finish, show
from shoestring.core import matmul
from shoestring.kernels import allocator, int8
from shoestring.nn.head import Head, OutputHead
from shoestring.nn.head_loss import head_loss
from shoestring.nn.quantized.int8 import KEPT_COLUMNS, quantize_rows
from shoestring.nn.quantized.int8_head import Int8Head

SHAPES = ((896, 896), (4864, 896), (896, 4864), (2048, 768), (1536, 576))  # [N, K]
ROWS = (256, 2048)
STATES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, no head")
    parser.add_argument("--rounds", type=int, help="[9]")
    arguments = parser.parse_args()
    allocator.install()
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    figures = products(rounds)
    if not arguments.quick:
        figures |= head(rounds)
    finish(figures)


def in_turn(kinds: dict[str, Callable[[], object]], rounds: int, least: float = 0.02) -> dict[str, float]:
    """Seconds of each, the median of all rounds, each of which takes at least so many seconds."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    counts, seconds = {}, {name: [] for name in kinds}
    for name, call in kinds.items():
        call()
        before = clock()
        call()
        counts[name] = max(1, int(least / max(clock() - before, 1e-6)))
    for _ in range(rounds):
        for name, call in kinds.items():
            before = clock()
            for _ in range(counts[name]):
                call()
            seconds[name].append((clock() - before) / counts[name])
    return {name: statistics.median(found) for name, found in seconds.items()}


# --- products -----------------------------------------------------------------------------------------------------


def products(rounds: int) -> dict[str, float]:
    table, names = [], []
    ratios: dict[str, list[float]] = {"forward": [], "backward": []}
    for outputs, inputs in SHAPES:
        for rows in ROWS:
            found = in_turn(_kinds(rows, outputs, inputs), rounds)
            names = list(found)
            rates = [2 * rows * outputs * inputs / seconds / 1e9 for seconds in found.values()]
            integers, floats = rates[:2], [max(rates[2], rates[4]), max(rates[3], rates[5])]
            ratio = [mine / best for mine, best in zip(integers, floats, strict=True)]
            for way, one in zip(ratios, ratio, strict=True):
                ratios[way].append(one)
            table.append([f"{rows:,} rows, {outputs} × {inputs}", *(f"{rate:.0f}" for rate in rates),
                          " ".join(f"{one:.2f}" for one in ratio)])  # fmt: skip
    show(f"Gop/s, {torch.get_num_threads()} threads", ["", *names, "of the best float32"], table)
    return {f"{way}_ratio": statistics.median(found) for way, found in ratios.items()}


def _kinds(rows: int, outputs: int, inputs: int) -> dict[str, Callable[[], object]]:
    """The same two products in three ways."""
    x, gradient, weight = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(outputs, inputs)
    codes, scale = quantize_rows(weight)
    return {
        "int8 x·Wᵀ": lambda: int8.product(int8.quantize_rows(x, keep=KEPT_COLUMNS), codes, scale),
        "int8 g·W": lambda: int8.product(int8.quantize_rows(gradient, scale), codes.t()),
        "MKL x·Wᵀ": lambda: torch.mm(x, weight.t()),
        "MKL g·W": lambda: torch.mm(gradient, weight),
        "oneDNN x·Wᵀ": lambda: _onednn(x, weight),
        "oneDNN g·W": lambda: _onednn(gradient, weight.t()),
    }


def _onednn(rows: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


# --- the head -----------------------------------------------------------------------------------------------------


def head(rounds: int) -> dict[str, float]:
    """Of the loss with its gradient for the hidden states."""
    import shoestring

    model = shoestring.load("smollm2-135m")
    ids = torch.tensor(model.tokenizer.encode((ROOT / "README.md").read_text(encoding="utf-8"))[: STATES + 1])
    with torch.no_grad():
        hidden_BTD, _ = model.decoder(ids[None, :-1])
    dense = Head(nn.Parameter(model.decoder.head.weight.detach(), requires_grad=False))
    heads: dict[str, OutputHead] = {"float32": dense, "int8": Int8Head.from_head(dense)}
    exact_loss, exact = _loss(Head(nn.Parameter(dense.weight.double(), requires_grad=False)), hidden_BTD.double(), ids)
    kinds = {name: lambda one=one: _loss(one, hidden_BTD, ids) for name, one in heads.items()}
    seconds = in_turn(kinds, rounds)
    library = "oneDNN" if matmul.prefers_onednn() else "MKL"
    table, figures = [], {"head_speedup": seconds["float32"] / seconds["int8"]}
    for name, one in heads.items():
        loss, gradient = _loss(one, hidden_BTD, ids)
        apart = float((gradient - exact).norm() / exact.norm())
        rate = 4 * STATES * dense.vocabulary * dense.width / seconds[name] / 1e9
        table.append([f"{name}{f' ({library})' * (name == 'float32')}", f"{rate:.0f}", f"{loss - exact_loss:+.2e}",
                      f"{apart:.2%}"])  # fmt: skip
        figures |= {f"head_{name}_loss_difference": loss - exact_loss, f"head_{name}_gradient_error": apart}
    show(f"A frozen head of {dense.vocabulary:,} × {dense.width}, {STATES} hidden states, loss {exact_loss:.4f}",
         ["", "Gop/s", "loss", "gradient"], table)  # fmt: skip
    return figures


def _loss(one: OutputHead, hidden_BTD: Tensor, ids: Tensor) -> tuple[float, Tensor]:
    hidden_BTD = hidden_BTD.clone().requires_grad_()
    total, count = head_loss(hidden_BTD, one, ids[None, 1:])
    total = total / count
    return float(total.detach()), torch.autograd.grad(total, hidden_BTD)[0]


if __name__ == "__main__":
    main()
