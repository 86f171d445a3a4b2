"""Guessing ahead from the text itself, against decoding without it: SmolLM2-135M in float32, greedy, the same tokens.

    python -m benchmarks.guessing [--quick] [--tokens N] [--rounds N] [--model MODEL]

Two prompts: one whose answer repeats it, and one whose answer is free, where guesses should cost nothing. Rounds
alternate in one process between decoding without guesses, with them, and transformers without and with its prompt
lookup; the table shows medians. Before it, what a pass over so many tokens takes, which decides whether a guess pays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from shoestring.generate.language_model import LanguageModel
from shoestring.generate.speculation import Speculation
from shoestring.models.resolve import find_model

LIST = "apple, banana, cherry, damson, elderberry, fig, grape, hazelnut, iceberg lettuce, juniper, kale, lemon"
PROMPTS = {
    "repeats": f"Repeat: {LIST}.\nAgain: {LIST}.\nAgain: {LIST}.\nAgain:",
    "free": "Once upon a time, in a village by the sea, there lived",
}


def pass_seconds(model: LanguageModel, tokens: int, rounds: int = 7) -> float:
    """Of a pass over so many tokens behind a text of 64."""
    times = []
    with torch.inference_mode():
        cache = model.decoder.new_cache(1, 64 + tokens)
        model.decoder(torch.arange(64).unsqueeze(0), cache=cache)
        for _ in range(rounds):
            started = time.perf_counter()
            hidden_BTD, _ = model.decoder(torch.arange(tokens).unsqueeze(0), cache=cache)
            model.decoder.head(hidden_BTD[0])
            times.append(time.perf_counter() - started)
            cache.cut(0, 64)
    return statistics.median(times)


def timed(run: Callable[[], list[int]]) -> tuple[float, list[int]]:
    started = time.perf_counter()
    tokens = run()
    return time.perf_counter() - started, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    tokens = options.tokens or (48 if options.quick else 128)
    rounds = options.rounds or (3 if options.quick else 5)

    from transformers import LlamaForCausalLM

    folder = find_model(options.model)
    model = LanguageModel.load(folder, device="cpu")
    model.stop_tokens = frozenset()
    lookup = Speculation()  # what it learns lasts
    judge: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ours(prompt: list[int], guess: bool) -> list[int]:
        model.speculation = lookup if guess else None
        return model.complete_ids([prompt], max_tokens=tokens, temperature=0, repetition_penalty=1.0)[0].tokens

    @torch.inference_mode()
    def theirs(prompt: list[int], guess: bool) -> list[int]:
        more = {"prompt_lookup_num_tokens": 8} if guess else {}
        ids = judge.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, **more
        )
        return ids[0, len(prompt) :].tolist()

    print(f"{options.model}, float32, {torch.get_num_threads()} threads, {tokens} greedy tokens, {rounds} rounds\n")
    one = pass_seconds(model, 1)
    costs = {count: pass_seconds(model, count) / one for count in (2, 3, 5, 9)}
    shown = ", ".join(f"{count} tokens {cost:.2f}" for count, cost in costs.items())
    print(f"a pass over {shown} times one over 1\n")
    heads = f"{'plain':>10}{'guessing':>10}{'ratio':>8}"
    print(f"{'answer':<10}{heads}{'right':>8}  transformers:{heads}")
    result: dict[str, Any] = {f"pass_{count}_cost": round(cost, 3) for count, cost in costs.items()}
    same = True
    for name, text in PROMPTS.items():
        prompt, speeds = model.tokenizer.encode(text), dict[tuple[str, bool], list[float]]()
        right = 0.0
        for guess in (False, True):
            ours(prompt, guess), theirs(prompt, guess)
        for _ in range(rounds):
            said = []
            for who, run in (("ours", ours), ("theirs", theirs)):
                for guess in (False, True):
                    seconds, new = timed(lambda run=run, prompt=prompt, guess=guess: run(prompt, guess))
                    speeds.setdefault((who, guess), []).append(tokens / seconds)
                    said.append(new)
                    if who == "ours" and guess:
                        right = model.speed.right / max(model.speed.guessed, 1)
            same = same and all(one == said[0] for one in said)
        medians = {key: statistics.median(values) for key, values in speeds.items()}
        ratio, peer = (medians[who, True] / medians[who, False] for who in ("ours", "theirs"))
        print(
            f"{name:<10}{medians['ours', False]:>10.1f}{medians['ours', True]:>10.1f}{ratio:>8.2f}{right:>8.0%}"
            f"{'':>15}{medians['theirs', False]:>10.1f}{medians['theirs', True]:>10.1f}{peer:>8.2f}"
        )
        result |= {f"{name}_ratio": round(ratio, 3), f"{name}_peer_ratio": round(peer, 3)}
        result[f"{name}_right"] = round(right, 3)
    print(f"\nsame tokens: {'yes' if same else 'NO'}")
    print(json.dumps(result | {"same_tokens": same}))


if __name__ == "__main__":
    main()
