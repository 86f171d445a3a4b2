"""Decoding speed beside transformers: SmolLM2-135M in float32, greedy, one prompt, the same tokens.

    python -m benchmarks.generate [--quick] [--tokens N] [--rounds N] [--model MODEL]

Rounds alternate between the two in one process, and with the peer in bfloat16 where that is its fastest format here;
the table shows medians. The limit is one reading of all weights for each token, at the memory bandwidth measured in the
same run. Also prints the time to load the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from shoestring.core.speeds import memory_bandwidth
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request
from shoestring.models.resolve import find_model

PROMPT = "Once upon a time, in a village by the sea, there lived"


def ours(model: LanguageModel, prompt: list[int], tokens: int) -> list[int]:
    sampling = SamplingConfig(max_tokens=tokens, temperature=0)
    scheduler = model.scheduler(slots=1, capacity=len(prompt) + tokens)
    scheduler.add(Request(prompt, sampling))
    return [event.token for event in scheduler.run()]


@torch.inference_mode()
def theirs(model, prompt: list[int], tokens: int) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0
    )
    return ids[0, len(prompt) :].tolist()


def seconds(run, *arguments) -> tuple[float, list[int]]:
    started = time.perf_counter()
    tokens = run(*arguments)
    return time.perf_counter() - started, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    tokens = options.tokens or (24 if options.quick else 96)
    rounds = options.rounds or (3 if options.quick else 7)

    from transformers import LlamaForCausalLM

    folder = find_model(options.model)
    load_seconds = []
    for _ in range(3):
        started = time.perf_counter()
        model = LanguageModel.load(folder, device="cpu")
        load_seconds.append(time.perf_counter() - started)
    judge = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = model.tokenizer.encode(PROMPT)
    ours(model, prompt, 4), theirs(judge, prompt, 4)
    half = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    theirs(half, prompt, 2)
    halved = seconds(theirs, half, prompt, 8)[0] < seconds(theirs, judge, prompt, 8)[0]
    best, best_format = (half, "bfloat16") if halved else (judge, "float32")

    speeds: dict[str, list[float]] = {"shoestring": [], "transformers": [], "its best": []}
    limits, equal = [], True
    weights = sum(p.numel() * p.element_size() for p in model.decoder.parameters())
    for _ in range(rounds):
        limits.append(memory_bandwidth(refresh=True) / weights)
        mine, our_tokens = seconds(ours, model, prompt, tokens)
        peer, their_tokens = seconds(theirs, judge, prompt, tokens)
        speeds["shoestring"].append(tokens / mine)
        speeds["transformers"].append(tokens / peer)
        speeds["its best"].append(tokens / (seconds(theirs, best, prompt, tokens)[0] if halved else peer))
        equal = equal and our_tokens == their_tokens
    figures = {name: statistics.median(values) for name, values in speeds.items()}
    limit = statistics.median(limits)
    ratio, best_ratio = (
        statistics.median(a / b for a, b in zip(speeds["shoestring"], speeds[peer], strict=True))
        for peer in ("transformers", "its best")
    )
    print(f"{options.model}, float32, {torch.get_num_threads()} threads, one prompt of {len(prompt)} tokens")
    print(f"{tokens} greedy tokens, median of {rounds} rounds, reading the prompt included\n")
    print(f"{'':<14}{'tokens/s':>10}{'of the limit':>14}")
    for name, speed in figures.items():
        print(f"{name:<14}{speed:>10.1f}{speed / limit:>13.0%}")
    print(f"{'limit':<14}{limit:>10.1f}   {weights / 1e6:.0f} MB read for each token")
    print(f"\nratio {ratio:.2f}, to its best format ({best_format}) {best_ratio:.2f}")
    print(f"same tokens: {'yes' if equal else 'NO'}   load {min(load_seconds):.2f} s")
    result = {
        "tokens_per_second": round(figures["shoestring"], 2),
        "transformers_tokens_per_second": round(figures["transformers"], 2),
        "speed_ratio": round(ratio, 3),
        "best_peer_ratio": round(best_ratio, 3),
        "best_peer_format": best_format,
        "limit_share": round(figures["shoestring"] / limit, 3),
        "same_tokens": equal,
        "load_seconds": round(statistics.median(load_seconds), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
