"""Our side of `benchmarks.decode`, and transformers: workers that answer as `benchmarks/llama_worker.py` does.

    python -m benchmarks.decode_worker shoestring|transformers MODEL WEIGHTS THREADS
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

Answer = Callable[[list[int], int], tuple[float, float, list[int]]]


def shoestring(model: str, weights: str) -> tuple[dict[str, Any], Answer]:
    """What it says of itself, and how it answers. weights: as `LanguageModel.load` takes them."""
    from shoestring.generate.config import SamplingConfig
    from shoestring.generate.language_model import LanguageModel
    from shoestring.generate.request import Request

    language = LanguageModel.load(model, device="cpu", weights=weights)  # type: ignore[arg-type]

    def answer(prompt: list[int], tokens: int) -> tuple[float, float, list[int]]:
        scheduler = language.scheduler(1, len(prompt) + tokens)
        scheduler.add(Request(prompt, SamplingConfig(max_tokens=tokens, temperature=0)))
        started = time.perf_counter()
        found = [event.token for event in scheduler.step()]
        read = time.perf_counter()
        while len(found) < tokens:
            found += [event.token for event in scheduler.step()]
        return read - started, time.perf_counter() - read, found

    held = matrices(language.decoder)
    return {"bytes": sum(one.held.nbytes for one in held), "products": products(held)}, answer


def matrices(decoder: Any) -> list[Any]:
    """All that a token is multiplied with."""
    from shoestring.kernels.decode import FloatMatrix

    found = []
    for module in decoder.modules():
        if hasattr(module, "matrix") and module is not decoder.embedding:
            found.append(module.matrix)
        elif isinstance(module, torch.nn.Linear):
            found.append(FloatMatrix(module.weight.detach()))
    return found


def products(held: list[Any], rounds: int = 5) -> float:
    """Seconds that all products of one token take, and nothing besides; the least of some rounds. 0 without a
    compiler."""
    from shoestring.kernels.decode import BLOCK, RowsStruct, decode_kernels, struct_of

    kernels, least = decode_kernels(), float("inf")
    if kernels is None:
        return 0.0
    deepest, widest = max(one.depth for one in held), max(one.columns for one in held)
    row, out, codes = torch.randn(deepest), torch.empty(widest), torch.empty(deepest, dtype=torch.int8)
    scales, totals = torch.empty(deepest // BLOCK + 1), torch.empty(deepest // BLOCK + 1)
    room = RowsStruct(codes.data_ptr(), scales.data_ptr(), totals.data_ptr(), None)
    structs, threads = [struct_of(one) for one in held], torch.get_num_threads()
    calls = [(ctypes.byref(one), row.data_ptr(), 1, ctypes.byref(room), out.data_ptr(), threads) for one in structs]
    for _ in range(rounds):
        started = time.perf_counter()
        for call in calls:
            kernels.multiply_rows(*call)
        least = min(least, time.perf_counter() - started)
    return least


def transformers(model: str, dtype: str) -> tuple[dict[str, Any], Answer]:
    from transformers import AutoModelForCausalLM

    decoder = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def answer(prompt: list[int], tokens: int) -> tuple[float, float, list[int]]:
        started = time.perf_counter()
        out = decoder(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        found = [int(out.logits[0, -1].argmax())]
        read = time.perf_counter()
        while len(found) < tokens:
            out = decoder(torch.tensor([found[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            found.append(int(out.logits[0, -1].argmax()))
        return read - started, time.perf_counter() - read, found

    return {}, answer


WHO = {"shoestring": shoestring, "transformers": transformers}


def serve(about: dict[str, Any], answer: Answer, requests: Iterable[str], say: Callable[[str], Any]) -> None:
    """Answer each request, a line, by a line."""
    say(json.dumps(about))
    for line in requests:
        request = json.loads(line)
        read, written, tokens = answer(request["prompt"], request["tokens"])
        say(json.dumps({"read": read, "written": written, "tokens": tokens}))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    who, model, weights, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    about, answer = WHO[who](model, weights)
    serve(about, answer, sys.stdin, lambda line: print(line, file=answers, flush=True))


if __name__ == "__main__":
    main()
