"""Eight texts at once against one, and the first token of a second turn with what the first left in the cache.

    python -m benchmarks.streams [--quick] [--weights int4,float32] [--tokens N] [--rounds N] [--model MODEL]

Rounds alternate in one process; the table shows medians. batch8_ratio: tokens a second of eight texts together over
those of one. prefix_ratio: seconds until the first token of a question behind a history of 1,000 tokens, with a
scheduler that has just answered that history over one that begins anew. Both of the first weights that are named.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.measure import finish, show
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request

TOGETHER, PROMPT, HISTORY, QUESTION = 8, 16, 1000, 16


def decoded(model: LanguageModel, prompts: Sequence[list[int]], tokens: int) -> float:
    """Tokens a second of these texts together, once all prompts are read."""
    scheduler = model.scheduler(len(prompts), len(prompts[0]) + tokens + 1)
    for prompt in prompts:
        scheduler.add(Request(prompt, SamplingConfig(max_tokens=tokens + 1, temperature=0)))
    scheduler.step()
    began = time.perf_counter()
    found = sum(len(scheduler.step()) for _ in range(tokens))
    assert found == tokens * len(prompts), "a text ended early"
    return found / (time.perf_counter() - began)


def first_token(model: LanguageModel, history: list[int], question: list[int], kept: bool) -> float:
    """Seconds until the first token behind both. kept: the same scheduler has answered the history before."""
    scheduler = model.scheduler(1, len(history) + len(question) + 2)
    if kept:
        scheduler.add(Request(history, SamplingConfig(max_tokens=1, temperature=0)))
        list(scheduler.run())
    scheduler.add(Request([*history, *question], SamplingConfig(max_tokens=1, temperature=0)))
    began = time.perf_counter()
    list(scheduler.run())
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--weights", default="int4,float32", help="how they are kept, with commas")
    parser.add_argument("--tokens", type=int, help="of each text [96, or 24 with --quick]")
    parser.add_argument("--rounds", type=int, help="[5, or 2 with --quick]")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args(arguments)
    tokens, rounds = options.tokens or (24 if options.quick else 96), options.rounds or (2 if options.quick else 5)
    rows, result = [], dict[str, float]()
    for weights in options.weights.split(","):
        model, draw = LanguageModel.load(options.model, device="cpu", weights=weights), random.Random(1)
        last = model.decoder.config.vocabulary // 4
        *prompts, history, question = (
            [draw.randrange(last) for _ in range(count)] for count in [PROMPT] * TOGETHER + [HISTORY, QUESTION]
        )
        decoded(model, prompts, 4)
        one, eight, anew, kept = [], [], [], []
        for _ in range(rounds):
            one.append(decoded(model, prompts[:1], tokens))
            eight.append(decoded(model, prompts, tokens))
            anew.append(first_token(model, history, question, kept=False))
            kept.append(first_token(model, history, question, kept=True))
        batch = statistics.median(b / a for a, b in zip(one, eight, strict=True))
        prefix = statistics.median(b / a for a, b in zip(anew, kept, strict=True))
        rows.append([
            weights, f"{statistics.median(one):.1f}", f"{statistics.median(eight):.1f}", f"{batch:.2f}",
            f"{1000 * statistics.median(anew):.0f}", f"{1000 * statistics.median(kept):.0f}", f"{prefix:.3f}",
        ])  # fmt: skip
        suffix = f"_{weights}" if rows[1:] else ""
        result |= {f"batch8_ratio{suffix}": batch, f"prefix_ratio{suffix}": prefix}
    columns = ["weights", "one, tokens/s", f"{TOGETHER}, tokens/s", "ratio", "anew, ms", "with the cache, ms", "ratio"]
    threads = torch.get_num_threads()
    title = f"{options.model}, {threads} threads: texts at once; the first token behind {HISTORY} tokens"
    show(title, columns, rows)
    finish(result)


if __name__ == "__main__":
    main()
