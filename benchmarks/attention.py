"""One attention layer of each kind: time, cache and peak memory of training and of decoding.

    python -m benchmarks.attention [--quick] [--rounds N]

Width 768, float32, 12 heads of 64 (latents: R 256, Cn 64, Cr 32, Cv 64). Training is forward and backward over one
sequence of T tokens; decoding is one token in each of 8 rows that hold T tokens. The kinds take turns in one process
and the table shows medians; peak memory, beyond libraries and weights, is measured in a process of its own for each
figure (left out with --quick). On a busy machine threads wait for each other: OMP_NUM_THREADS=1 then compares kinds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import finish, run_worker, show
from shoestring.core.machine import peak_rss_bytes, rss_bytes
from shoestring.core.units import format_bytes
from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.attention.mla import MultiHeadLatentAttention
from shoestring.nn.attention.mtla import TemporalLatentAttention
from shoestring.nn.cache import Cache, KVCache
from shoestring.nn.config import GQAConfig, RopeConfig
from shoestring.nn.context import make_context
from shoestring.nn.latent_cache import LatentCache
from shoestring.nn.rope import RotaryEmbedding
from shoestring.nn.temporal_cache import TemporalCache

WIDTH, HEADS, HEAD_WIDTH = 768, 12, 64
RANK, ROTARY = 256, 32
LATENT = {
    "heads": HEADS, "latent_rank": RANK, "content_width": 64, "rotary_width": ROTARY, "value_width": 64,
}  # fmt: skip
BATCH = 8  # rows that decode
STEPS = 8  # tokens that one turn of decoding takes
CONTEXTS = (512, 2048, 8192)
KINDS = ("MHA 12/12", "GQA 12/3", "MLA", "MTLA s=2", "MTLA s=4")


def layer(kind: str) -> tuple[nn.Module, RotaryEmbedding]:
    """The attention of a kind, with fresh weights, and its rotary positions."""
    torch.manual_seed(0)
    if kind.startswith(("MHA", "GQA")):
        kv_heads = int(kind.split("/")[1])
        config = GQAConfig(heads=HEADS, kv_heads=kv_heads, head_width=HEAD_WIDTH)
        return GroupedQueryAttention(config, WIDTH, 1e-5), RotaryEmbedding(RopeConfig(), HEAD_WIDTH)
    rotary = RotaryEmbedding(RopeConfig(), ROTARY)
    if kind == "MLA":
        return MultiHeadLatentAttention(MLAConfig(**LATENT), WIDTH, 1e-5), rotary
    return TemporalLatentAttention(MTLAConfig(**LATENT, stride=stride(kind)), WIDTH, 1e-5), rotary


def stride(kind: str) -> int:
    return int(kind.split("=")[1])


def new_cache(kind: str, batch: int, capacity: int) -> Cache:
    if kind.startswith(("MHA", "GQA")):
        return KVCache(1, batch, capacity, int(kind.split("/")[1]), HEAD_WIDTH)
    if kind == "MLA":
        return LatentCache(1, batch, capacity, RANK + ROTARY)
    return TemporalCache(1, batch, capacity, RANK, RANK + ROTARY, stride(kind), MTLAConfig(**LATENT).rollback)


def training(kind: str, tokens: int) -> Callable[[], float]:
    """Seconds of one forward and backward pass."""
    attention, rotary = layer(kind)
    x_BTD = torch.randn(1, tokens, WIDTH, requires_grad=True)
    upstream_BTD = torch.randn(1, tokens, WIDTH)

    def step() -> float:
        started = time.perf_counter()
        context = make_context(x_BTD[..., 0].long(), rotary)
        attention(x_BTD, context).backward(upstream_BTD)
        return time.perf_counter() - started

    return step


def decoding(kind: str, context: int, turns: int) -> Callable[[], float]:
    """Seconds of the fastest of STEPS tokens in each row, after `context` that the cache already holds.

    A step takes milliseconds, less than the wait for a core on a busy machine: the fastest is the one that had none.
    """
    attention, rotary = layer(kind)
    cache = new_cache(kind, BATCH, context + turns * STEPS)
    for group in cache.tensors.values():
        for tensor in group:
            tensor.normal_()
    cache.lengths = [context] * BATCH
    x_BTD = torch.randn(BATCH, 1, WIDTH)

    @torch.inference_mode()
    def step() -> float:
        started = time.perf_counter()
        made = make_context(x_BTD[..., 0].long(), rotary, cache=cache)
        attention(x_BTD, made, cache.layer(0))
        cache.advance(made.counts)
        return time.perf_counter() - started

    return lambda: min(step() for _ in range(STEPS))


def in_turn(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each call gives, the kinds alternating; the first call of each warms up and does not count."""
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for round_ in range(rounds + 1):
        for kind, step in steps.items():
            elapsed = step()
            if round_:
                seconds[kind].append(elapsed)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of one's time over the other's: what disturbs a round disturbs both."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def measure_memory(what: str, kind: str, context: int) -> None:
    """Print what a training or decoding step adds to the process, as one JSON object."""
    torch.randn(64, 64) @ torch.randn(64, 64)
    before = rss_bytes()
    step = training(kind, context) if what == "train" else decoding(kind, context, 1)
    step()
    finish({"peak_bytes": max(0, peak_rss_bytes() - before)})


def memory(what: str, kind: str, context: int) -> str:
    return format_bytes(run_worker("benchmarks.attention", "--worker", what, kind, str(context))["peak_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the compared lengths only, few rounds, no memory")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--worker", nargs=3, metavar=("WHAT", "KIND", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, kind, context = options.worker
        measure_memory(what, kind, int(context))
        return
    rounds = options.rounds or (3 if options.quick else 9)
    trained: dict[int, dict[str, list[float]]] = {}
    decoded: dict[int, dict[str, list[float]]] = {}
    for context in (2048,) if options.quick else CONTEXTS:
        print(f"training, {context} tokens", file=sys.stderr, flush=True)
        steps = {kind: training(kind, context) for kind in KINDS}
        trained[context] = in_turn(steps, max(3, rounds // 3) if context > 2048 else rounds)
    for context in (8192,) if options.quick else CONTEXTS:
        print(f"decoding, context {context}", file=sys.stderr, flush=True)
        turns = 3 * rounds
        decoded[context] = in_turn({kind: decoding(kind, context, turns + 1) for kind in KINDS}, turns)

    header = ["", *(f"{kind}" for kind in KINDS)]
    rows = []
    for context, seconds in trained.items():
        rows.append([f"train {context}, ms", *(f"{1e3 * statistics.median(seconds[kind]):.1f}" for kind in KINDS)])
        if not options.quick:
            rows.append([f"train {context}, peak", *(memory("train", kind, context) for kind in KINDS)])
    for context, seconds in decoded.items():
        step_ms = [1e3 * statistics.median(seconds[kind]) for kind in KINDS]
        rows.append([f"decode {context}, ms/step", *(f"{value:.2f}" for value in step_ms)])
        if not options.quick:
            rows.append([f"decode {context}, peak", *(memory("decode", kind, context) for kind in KINDS)])
    per_token = {kind: new_cache(kind, 1, 8).bytes_per_token() for kind in KINDS}
    for context in CONTEXTS:
        rows.append([f"cache {context}, a row", *(format_bytes(int(per_token[kind] * context)) for kind in KINDS)])
    threads = torch.get_num_threads()
    title = f"One attention layer, width {WIDTH}, float32, {threads} thread{'s' * (threads > 1)}, medians"
    show(title, header, rows)
    print("MTLA rows hold their last 16 + s tokens unmerged besides, so that truncation is exact.")
    decode, train = decoded[8192], trained[2048]
    finish(
        {
            "mtla2_cache_over_mla": per_token["MTLA s=2"] / per_token["MLA"],
            "mtla2_decode_speed_over_mla": ratio(decode, "MLA", "MTLA s=2"),
            "mtla2_decode_speed_over_mha": ratio(decode, "MHA 12/12", "MTLA s=2"),
            "mtla2_train_time_over_mla": ratio(train, "MTLA s=2", "MLA"),
        }
    )


if __name__ == "__main__":
    main()
