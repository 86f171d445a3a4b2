"""Quantization by others' libraries, as a worker of `benchmarks.compress`: GPTQ and AWQ by llm-compressor, learned
rounding by auto-round. It imports nothing of ours: whichever interpreter has the libraries may run it.

    PYTHON benchmarks/compress_peer.py '{"method": "gptq", "model": FOLDER, "out": FOLDER, "ids": FILE, "steps": 100}'

ids: a JSON list of lists of token ids, the same that ours calibrates with. 4 bits in groups of 32, symmetric. Prints
the library's version and its seconds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# How ranges are found: GPTQ's by squared error, which serves it better; AWQ's as it does unasked, as the other takes
# its search for scales many times longer.
OBSERVERS = {"gptq": "mse", "awq": "minmax"}


def by_llm_compressor(model: Any, method: str, rows: list[list[int]]) -> None:
    """In place. method: gptq, or awq, which rounds to nearest after its scaling."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda *_, **__: None  # of 0.14, which fails where there is no GPU to pin it for
    data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=32, observer=OBSERVERS[method]
    )
    linears = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}
    recipe = (
        [GPTQModifier(**linears, ignore=["lm_head"])]
        if method == "gptq"
        else [AWQModifier(duo_scaling="both"), QuantizationModifier(**linears, ignore=["lm_head"])]
    )
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows), pad_to_max_length=False, shuffle_calibration_samples=False,
    )  # fmt: skip


def by_auto_round(model: Any, tokenizer: Any, rows: list[list[int]], steps: int, out: Path) -> None:
    """Into the folder `out`."""
    import torch
    from auto_round import AutoRound

    made = AutoRound(
        model, tokenizer, bits=4, group_size=32, sym=True, iters=steps, dataset=[torch.tensor([ids]) for ids in rows],
        seqlen=max(map(len, rows)), nsamples=len(rows), batch_size=8, device_map="cpu",
    )  # fmt: skip
    made.quantize_and_save(str(out), format="auto_gptq")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is not an answer
    asked = json.loads(sys.argv[1])

    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = json.loads(Path(asked["ids"]).read_text())
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32")
    started = time.perf_counter()
    library = "auto-round" if asked["method"] == "learned" else "llmcompressor"
    if library == "auto-round":
        tokenizer = AutoTokenizer.from_pretrained(asked["model"])
        by_auto_round(model, tokenizer, rows, asked["steps"], Path(asked["out"]))
    else:
        by_llm_compressor(model, asked["method"], rows)
    seconds = time.perf_counter() - started
    if library == "llmcompressor":
        model.save_pretrained(asked["out"], save_compressed=True)
    answer = {"version": importlib.metadata.version(library), "seconds": seconds}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
