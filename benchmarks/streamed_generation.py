"""Greedy tokens and perplexity of a model that is streamed from disk, for `benchmarks.offload --generate`.

Each is a process of its own inside the memory cgroup, and loads the model as `shoestring.load(MODEL, memory=...)` does.
A model that fits is read into memory as well, without a limit: its tokens must be the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, run_worker, show

_TEXT = 2000  # characters, about as many tokens of the random models


def report_generation(
    arguments: argparse.Namespace, common: list[str], memory: int | None, compared: bool
) -> None:
    """common: --model and --folder of the workers. memory: of the cgroup. compared: also with the model in memory."""
    (Path(common[-1]) / "text.txt").write_text(Path(__file__).read_text(encoding="utf-8")[:_TEXT], encoding="utf-8")
    asked = ["--new-tokens", str(arguments.new_tokens), *common]
    budget = ["--memory", str(arguments.memory)]

    def both(*flags: str, memory: int | None) -> dict[str, Any]:
        tokens = run_worker("benchmarks.offload", "--worker", "generate", *asked, *flags, memory=memory)
        scores = run_worker("benchmarks.offload", "--worker", "perplexity", *asked, *flags, memory=memory)
        return tokens | scores | {k: max(tokens[k], scores[k]) for k in ("peak", "group_peak") if k in tokens}

    streamed = both(*budget, memory=memory)
    workers = [("streamed", streamed)]
    if compared:
        workers.append(("resident", both(memory=None)))
    show(
        f"{arguments.shape}: {arguments.new_tokens} greedy tokens, perplexity of {streamed['scored']:,} tokens"
        + (f"; cgroup of {memory / 1e6:,.0f} MB" if memory else "; memory limit not proven"),
        ["", "tokens/s", "perplexity", "scored tokens/s", "peak MB", "cgroup MB"],
        [
            [name, f"{r['tokens_per_second']:.3f}", f"{r['perplexity']:,.0f}", f"{r['scored_per_second']:.1f}",
             f"{r['peak'] / 1e6:,.0f}", f"{r['group_peak'] / 1e6:,.0f}" if "group_peak" in r else "–"]
            for name, r in workers
        ],
    )  # fmt: skip
    figures = {
        "tokens_per_second": streamed["tokens_per_second"],
        "perplexity_tokens_per_second": streamed["scored_per_second"],
        "peak_mb": streamed["peak"] / 1e6,
        "memory_proven": memory is not None,
    }
    if len(workers) == 2:
        figures["same_tokens"] = streamed["tokens"] == workers[1][1]["tokens"]
        figures["loss_difference"] = abs(streamed["loss"] - workers[1][1]["loss"])
    finish(figures)


def generate(arguments: argparse.Namespace) -> dict[str, Any]:
    from shoestring.core.machine import peak_rss_bytes
    from shoestring.offload.load import load

    model = load(arguments.model, memory=arguments.memory)
    model.stop_tokens = frozenset()  # a model of random numbers may say anything
    prompt = model.encode_prompt((arguments.folder / "text.txt").read_text(encoding="utf-8"))[:256]
    (reply,) = model.complete_ids([prompt], temperature=0.0, max_tokens=arguments.new_tokens)
    return {
        "tokens": reply.tokens,
        "tokens_per_second": model.speed.tokens_per_second or 0.0,
        "prompt_seconds": model.speed.prompt_seconds,
        "peak": peak_rss_bytes(),
    }


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    from shoestring.evaluate.perplexity import perplexity
    from shoestring.offload.load import load

    model = load(arguments.model, memory=arguments.memory, scoring=True)
    scored = perplexity(model, arguments.folder / "text.txt", context=1024)
    return {
        "perplexity": scored.perplexity,
        "loss": scored.loss,
        "scored": scored.tokens,
        "scored_per_second": scored.tokens_per_second,
        "peak": scored.peak_memory,
    }
