"""llm-compressor's GPTQ, as a worker of `benchmarks.compress`. It imports nothing of ours: whichever interpreter has
llmcompressor may run it.

    PYTHON benchmarks/compress_peer.py '{"model": FOLDER, "out": FOLDER, "ids": FILE, "group": 32, "symmetric": true}'

ids: a JSON list of lists of token ids, the same that ours calibrates with. Prints its version and seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is not an answer
    asked = json.loads(sys.argv[1])

    import llmcompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    rows = json.loads(Path(asked["ids"]).read_text())
    data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=asked["symmetric"], strategy="group", group_size=asked["group"],
        observer=asked.get("observer", "minmax"),
    )  # fmt: skip
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"]
    )
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32")
    started = time.perf_counter()
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows), pad_to_max_length=False, shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    model.save_pretrained(asked["out"], save_compressed=True)
    print(json.dumps({"version": llmcompressor.__version__, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
