"""All kinds of foreign files."""

from __future__ import annotations

import json
from pathlib import Path

from tests.finetuning import tiny
from tests.fuzz import data_kinds, model_kinds, run_kinds
from tests.fuzz.kind import Kind


def make_kinds(root: Path) -> list[Kind]:
    """All kinds, with their sound files under `root`."""
    root.mkdir(parents=True)
    base = tiny.chat_model(root / "base")
    rows = tiny.sums(root / "sums.jsonl")
    generation = {"eos_token_id": [1], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    (base / "generation_config.json").write_text(json.dumps(generation))
    makers = [
        run_kinds.machine, run_kinds.recipe, run_kinds.values, model_kinds.model, model_kinds.shards,
        model_kinds.tokenizer,
        model_kinds.adapter, model_kinds.of_gguf, data_kinds.rows, data_kinds.columns, data_kinds.text,
        data_kinds.template, run_kinds.finetuned, run_kinds.trained, run_kinds.metrics, data_kinds.prepared,
        data_kinds.compressed, model_kinds.quantized, model_kinds.of_gptq, model_kinds.factorized,
        run_kinds.distilled, run_kinds.in_parts,
    ]  # fmt: skip
    return [make(root / make.__name__, base, rows) for make in makers]
