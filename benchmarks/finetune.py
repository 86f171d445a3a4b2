"""LoRA on SmolLM2-135M: Shoestring beside peft on transformers, LoRA r=8 on all linears, 2 × 256 tokens, float32.

    python -m benchmarks.finetune [--quick] [--method lora|dora|nf4|int8]

Both load the same folder, start from the same adapter and read the same batches of held-out library source, with the
same AdamW and clipping, in processes that take turns. The limit is arithmetic: 4 operations per weight and token (a
frozen weight has no gradient) over this machine's measured matrix peak. Methods other than lora change what Shoestring
does (peft does LoRA, or DoRA): they show what they cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.measure import alternate
from benchmarks.peer import peft_update, report, save_batches, timed

ROWS, TOKENS, RANK, ALPHA = 2, 256, 8, 16
LEARNING_RATE = 2e-4
METHODS = ("lora", "dora", "nf4", "int4", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps: coarse, under a minute")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round, after two to warm up")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments.folder, arguments.method)))
        return
    rounds, steps = (1, 2) if arguments.quick else (arguments.rounds, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), arguments.model, arguments.method, steps + 2)
        common = ["--folder", folder, "--method", arguments.method]
        ours, theirs = alternate(
            "benchmarks.finetune", [["--worker", who, *common] for who in ("shoestring", "peft")], rounds
        )
    _report(ours, theirs, arguments.method)


def _prepare(folder: Path, model: str, method: str, steps: int) -> None:
    """The base's place, the adapter that both start from, and the batches."""
    from shoestring.data.config import DataConfig
    from shoestring.data.loader import PackedLoader
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.adapters import attach
    from shoestring.models.folder import load_model
    from shoestring.models.peft_folder import save_adapter
    from shoestring.models.resolve import find_model
    from shoestring.nn.lora_config import LoRAConfig
    from shoestring.train.dataset import open_dataset

    base = find_model(model).absolute()
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=RANK, alpha=ALPHA, dora=method == "dora"), seed=1)
    save_adapter(decoder, folder / "adapter", base)
    shards = open_dataset(DataConfig(source="stdlib", separate_documents=False), Tokenizer.load(base))
    loader = PackedLoader(shards, "validation", TOKENS, ROWS, seed=1, separate_documents=False)
    save_batches(folder, [next(loader) for _ in range(steps)])


def _shoestring(folder: Path, method: str) -> dict:
    import torch

    from shoestring.core.allocator import SHORT_LIVED, map_large_tensors
    from shoestring.core.machine import matrix_peak, peak_rss_bytes
    from shoestring.core.matmul import TABLE, served_by
    from shoestring.data.batch import Batch
    from shoestring.models.adapters import quantize_blocks
    from shoestring.models.folder import load_model
    from shoestring.models.peft_folder import find_base, load_adapter
    from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config
    from shoestring.train.config import AdamWConfig
    from shoestring.train.metrics import flops_per_token
    from shoestring.train.objective import next_token
    from shoestring.train.optimizer import build_optimizer
    from shoestring.train.step import ResidentStep

    map_large_tensors(SHORT_LIVED)
    model = load_model(find_base(folder / "adapter"))
    if method in ("nf4", "int4", "int8"):
        quantize_blocks(model, {"nf4": NF4Config(), "int4": Int4Config(), "int8": Int8Config()}[method])
    load_adapter(model, folder / "adapter")
    model.train()
    optimizer = build_optimizer(AdamWConfig(learning_rate=LEARNING_RATE, weight_decay=0.0), model)
    trained = [p for p in model.parameters() if p.requires_grad]
    step = ResidentStep(model, next_token)
    positions_BT, segments_BT = torch.arange(TOKENS).expand(ROWS, -1), torch.zeros(ROWS, TOKENS, dtype=torch.int64)

    def update(tokens_BT, labels_BT) -> float:
        loss = step([Batch(tokens_BT, labels_BT, positions_BT, segments_BT)])
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.mean

    return {
        **timed(update, folder),
        "peak": peak_rss_bytes(),
        "trained": sum(p.numel() for p in trained),
        "parameters": model.config.parameter_count(),
        "flops_per_token": flops_per_token(model.config, TOKENS) * 4 / 6,
        "matrix_peak": matrix_peak("float32", refresh=True),
        "products": served_by(TABLE.choices()["choices"]),
    }


def _peft(folder: Path, method: str) -> dict:
    import peft
    import torch

    from shoestring.core.machine import peak_rss_bytes

    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter", is_trainable=True, dtype=torch.float32)
    model.train()
    return {**timed(peft_update(model, LEARNING_RATE), folder), "peak": peak_rss_bytes()}


WORKERS = {"shoestring": _shoestring, "peft": _peft}


def _report(ours: list[dict], theirs: list[dict], method: str) -> None:
    first = ours[0]
    title = f"{first['parameters']:,} parameters, {first['trained']:,} trained, {ROWS} × {TOKENS} tokens, float32"
    floor = "limit", f"{4 * first['parameters'] / 1e6:,.0f} (weights)"
    report(title, (f"shoestring, {method}", "peft"), ours, theirs, ROWS * TOKENS, 2, floor)


if __name__ == "__main__":
    main()
