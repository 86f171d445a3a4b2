"""LoRA on SmolLM2-135M: Shoestring beside peft on transformers, LoRA r=8 on all linears, 2 × 256 tokens.

    python -m benchmarks.finetune [--quick] [--method lora|dora|nf4|int8]

Both load the same folder, start from the same adapter and read the same batches of held-out library source, with the
same AdamW and clipping, in processes that take turns; peft in float32 and in the fastest format that it has here. The
limit is arithmetic: 4 operations per weight and token (a frozen weight has no gradient) over this machine's measured
matrix peak. Methods other than lora change what Shoestring does (peft does LoRA, or DoRA): they show what they cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.peer import compare, format_peak, loss_ratio, our_update, peft_update, report, save_batches, timed

ROWS, TOKENS, RANK, ALPHA = 2, 256, 8, 16
LEARNING_RATE = 2e-4
WARMUP = 2
METHODS = ("lora", "dora", "nf4", "int4", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps: coarse, a few minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round, after two to warm up")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--loss-steps", type=int, default=100, help="steps to compare formats by their loss")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--format", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments)))
        return
    rounds, steps = (1, 2) if arguments.quick else (arguments.rounds, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        batches = max(steps, arguments.loss_steps) + WARMUP
        parameters, trained = _prepare(Path(folder), arguments.model, arguments.method, batches)
        common = ["--folder", folder, "--method", arguments.method, "--steps", str(steps)]
        ours, peer = (["--worker", who, *common] for who in ("shoestring", "peft"))
        results = compare("benchmarks.finetune", ours, peer, ["--steps", "1"], rounds, WARMUP)

        def ratio(name: str) -> float:
            return loss_ratio("benchmarks.finetune", ours, name, arguments.loss_steps)

        title = f"{parameters:,} parameters, {trained:,} trained, {ROWS} × {TOKENS} tokens"
        floor = "limit", f"{4 * parameters / 1e6:,.0f} (weights)"
        report(title, (f"shoestring, {arguments.method}", "peft"), results, ROWS * TOKENS, WARMUP, floor, ratio)


def _prepare(folder: Path, model: str, method: str, steps: int) -> tuple[int, int]:
    """The base's place, the adapter that both start from, the batches; -> numbers of weights, and of trained ones."""
    from shoestring.data.config import DataConfig
    from shoestring.data.loader import PackedLoader
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.adapters import attach
    from shoestring.models.folder import load_model
    from shoestring.models.peft_folder import save_adapter
    from shoestring.models.resolve import find_model
    from shoestring.nn.lora_config import LoRAConfig
    from shoestring.pretraining.dataset import open_dataset

    base = find_model(model).absolute()
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=RANK, alpha=ALPHA, dora=method == "dora"), seed=1)
    save_adapter(decoder, folder / "adapter", base)
    shards = open_dataset(DataConfig(source="stdlib", separate_documents=False), Tokenizer.load(base))
    loader = PackedLoader(shards, "validation", TOKENS, ROWS, seed=1, separate_documents=False)
    save_batches(folder, [next(loader) for _ in range(steps)])
    return decoder.config.parameter_count(), sum(p.numel() for p in decoder.parameters() if p.requires_grad)


def _shoestring(arguments: argparse.Namespace) -> dict:
    import torch

    from shoestring.core.device import resolve_dtype
    from shoestring.core.machine import peak_rss_bytes
    from shoestring.core.matmul import TABLE, served_by
    from shoestring.core.speeds import matrix_peak
    from shoestring.kernels import allocator
    from shoestring.models.adapters import halve_bases, quantize_blocks
    from shoestring.models.decoder import Decoder
    from shoestring.models.folder import load_model
    from shoestring.models.peft_folder import find_base, load_adapter
    from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config
    from shoestring.train.metrics import flops_per_token
    from shoestring.train.objective import next_token
    from shoestring.train.optimizer_config import AdamWConfig
    from shoestring.train.resident import ResidentEngine

    allocator.install()
    method, adapter = arguments.method, arguments.folder / "adapter"
    quantized = {"nf4": NF4Config(), "int4": Int4Config(), "int8": Int8Config()}

    integers = arguments.format == "int8"

    def make() -> Decoder:
        rounded = Int8Config(compute="int8") if integers and method == "lora" else None  # the head too
        model = load_model(find_base(adapter), "cpu", torch.float32, rounded)
        if method in quantized:
            quantize_blocks(model, quantized[method])
        load_adapter(model, adapter)
        if arguments.format == "bfloat16" and method == "lora":
            halve_bases(model)
        return model

    engine = ResidentEngine(make, resolve_dtype("float32" if integers else arguments.format))
    config = engine.load().config
    engine.begin(next_token, AdamWConfig(learning_rate=LEARNING_RATE, weight_decay=0.0))
    return {
        **timed(our_update(engine, TOKENS, ROWS), arguments.folder, arguments.steps + WARMUP),
        "peak": peak_rss_bytes(),
        "flops_per_token": flops_per_token(config, TOKENS) * 4 / 6,
        "matrix_peak": matrix_peak("float32", refresh=True),
        "format_peak": format_peak(arguments.format, False),
        "products": served_by(TABLE.choices()["choices"]),
    }


def _peft(arguments: argparse.Namespace) -> dict:
    import peft
    import torch

    from shoestring.core.machine import peak_rss_bytes

    adapter = arguments.folder / "adapter"
    model = peft.AutoPeftModelForCausalLM.from_pretrained(adapter, is_trainable=True, dtype=torch.float32).train()
    update = peft_update(model, LEARNING_RATE, arguments.format)
    return {**timed(update, arguments.folder, arguments.steps + WARMUP), "peak": peak_rss_bytes()}


WORKERS = {"shoestring": _shoestring, "peft": _peft}


if __name__ == "__main__":
    main()
