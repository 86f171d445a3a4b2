"""The cases of `benchmarks.gpu`: each makes its model and tokens of random numbers and gives a dict of figures.

Peaks of memory are the allocator's own: torch's on CUDA, ours on a CPU, from behind the loading of the model on.
"""

from __future__ import annotations

import functools
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_parity
from benchmarks.gpu_settings import ALPHA, RANK, Settings, adapted, random_batch, synchronize
from benchmarks.random_models import SHAPES, _tokenizer, large_model
from shoestring.core.speeds import matrix_peak
from shoestring.data.batch import Batch
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.models.adapters import attach, halve_bases
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.nn.lora_config import LoRAConfig
from shoestring.offload.engine import StreamedEngine
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Training
from shoestring.train import fp8
from shoestring.train.engine import LocalEngine
from shoestring.train.metrics import flops_per_token
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.precision import prepared
from shoestring.train.precision_config import PrecisionConfig
from shoestring.train.resident import ResidentEngine

GPU_LIMIT = 4_000_000_000  # bytes, of the streamed 3B shape


def reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        allocator.reset_peaks()


def peak(given: Settings) -> int | None:
    """Bytes of tensors, the most at once; None where nothing counts them."""
    if given.device.type == "cuda":
        return torch.cuda.max_memory_allocated(given.device)
    counts = allocator.counts()
    return None if counts is None else counts.live_peak - given.before


def timed(engine: LocalEngine, batches: list[Batch], given: Settings) -> dict[str, Any]:
    """Optimizer steps for so many seconds; speed, memory, losses."""
    losses: list[float] = []

    def step(number: int) -> None:
        losses.append(engine.forward_backward([batches[number % len(batches)]]).mean)
        engine.optimizer_step(1.0, 1.0)

    warming = time.perf_counter()
    for number in range(given.warmup):
        step(number)
    synchronize(given.device)
    reset_peak(given.device)
    started, steps = time.perf_counter(), 0
    while steps < 1 or time.perf_counter() - started < given.seconds:
        step(steps)
        steps += 1
    synchronize(given.device)
    seconds = (time.perf_counter() - started) / steps
    found = peak(given)
    return {
        "tokens_per_second": batches[0].tokens_BT.numel() / seconds, "steps": steps, "warmup_s": started - warming,
        "first_loss": losses[0], "last_loss": losses[-1], "peak_mb": None if found is None else found / 1e6,
    }  # fmt: skip


def bf16_peak(device: torch.device) -> float:
    """FLOP/s of large products, measured; the twin's, on a CPU, of float32."""
    return matrix_peak("float32" if device.type == "cpu" else "bfloat16", device)


def with_memory(run: Callable[[int], dict[str, Any]], rows: int) -> dict[str, Any]:
    """run(rows), with half as many where the GPU's memory ends, and so on."""
    while True:
        try:
            return {"rows": rows} | run(rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        gc.collect()  # outside the handler, whose traceback holds the step's tensors
        torch.cuda.empty_cache()
        rows //= 2


def predicted_mb(shape: JobShape, spec: EngineSpec, device: torch.device) -> float:
    """Of tensors, as the plan says it."""
    gpu = device.type == "cuda"
    return predict(shape, spec, Machine(0, 1e12, threads=0 if gpu else 1, gpu=gpu)).tensor_bytes / 1e6


def qwen(shape: str) -> ModelConfig:
    width, layers, heads, kv_heads, inner, vocabulary, tied = SHAPES[shape]
    return ModelConfig.model_validate({
        "vocabulary": vocabulary, "width": width, "layers": layers, "context": 2048, "tied_head": tied,
        "attention": {
            "kind": "gqa", "heads": heads, "kv_heads": kv_heads, "head_width": width // heads, "qkv_bias": True,
        },
        "feed_forward": {"kind": "swiglu", "width": inner},
    })  # fmt: skip


# --- cases ----------------------------------------------------------------------------------------------------------


def machine(given: Settings) -> dict[str, Any]:
    device = given.device
    found: dict[str, Any] = {"torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda,
            "bf16_tflops": matrix_peak("bfloat16", device) / 1e12,
        }  # fmt: skip
        try:
            found["fp8_tflops"] = _fp8_peak(device) / 1e12
        except Exception as error:
            found["fp8"] = f"not available: {str(error).splitlines()[0][:120]}"
    return found | {"float32_tflops": matrix_peak("float32", device) / 1e12}


def _fp8_peak(device: torch.device, size: int = 4096) -> float:
    left, right = (torch.ones(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    best = float("inf")
    for _ in range(20):
        synchronize(device)
        started = time.perf_counter()
        torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def elite(given: Settings, precision: dict[str, Any], documents: bool = True) -> dict[str, Any]:
    """Steps of `elite-112m` from random weights, documents packed as its recipe does."""
    fields: dict[str, Any] = {"compute": "bfloat16", **precision}
    if given.tiny and fields.get("fp8"):
        fields["fp8"] = {"emulate": True}
    settled = PrecisionConfig.model_validate(fields)
    if settled.fp8 is not None:
        fp8.check(settled.fp8, given.device)
    config = given.elite

    def run(rows: int) -> dict[str, Any]:
        make = prepared(lambda: build(config, seed=1).to(given.device), settled)
        engine = ResidentEngine(make, torch.bfloat16)
        engine.load()
        engine.begin(next_token, AdamWConfig(learning_rate=8e-4))
        batches = [random_batch(rows, given.length, config.vocabulary, documents, seed) for seed in range(4)]
        return timed(engine, batches, given)

    found = with_memory(run, given.rows)
    shape = JobShape(
        config, found["rows"], given.length, compute="bfloat16", documents=documents, measured=False
    )  # fmt: skip
    share = found["tokens_per_second"] * flops_per_token(config, given.length) / bf16_peak(given.device)
    predicted = predicted_mb(shape, EngineSpec("resident", found["rows"]), given.device)
    return found | {"share_of_bf16_peak": share, "predicted_mb": predicted}


def lora(given: Settings) -> dict[str, Any]:
    """LoRA on all linears of a base of random weights in bfloat16."""
    config = qwen(given.lora)
    length = min(512, given.length)

    def run(rows: int) -> dict[str, Any]:
        def make() -> Decoder:
            decoder = build(config, seed=1)
            attach(decoder, LoRAConfig(rank=RANK, alpha=ALPHA), seed=1)
            halve_bases(decoder)
            return decoder.to(given.device)

        engine = ResidentEngine(make, torch.bfloat16)
        engine.load()
        engine.begin(next_token, AdamWConfig(learning_rate=2e-4))
        return timed(engine, [random_batch(rows, length, config.vocabulary, True, seed) for seed in range(4)], given)

    found = with_memory(run, given.lora_rows)
    training = Training(False, RANK, frozen="bfloat16")
    shape = JobShape(
        config, found["rows"], length, training, compute="bfloat16", documents=True, measured=False
    )  # fmt: skip
    # A frozen weight has no gradient: 4 operations of the 6.
    share = found["tokens_per_second"] * flops_per_token(config, length) * 4 / 6 / bf16_peak(given.device)
    predicted = predicted_mb(shape, EngineSpec("resident", found["rows"]), given.device)
    return found | {"share_of_bf16_peak": share, "predicted_mb": predicted}


def decode(given: Settings) -> dict[str, Any]:
    """Greedy tokens of `elite-112m` in bfloat16, one text and eight at once."""
    decoder = build(given.elite, seed=1).to(given.device, torch.float32 if given.tiny else torch.bfloat16)
    language = LanguageModel(decoder, _tokenizer())
    language.stop_tokens = frozenset()
    found: dict[str, Any] = {}
    for batch in (1, 8):
        prompts = [[3 + (row + place) % 300 for place in range(min(64, given.length // 4))] for row in range(batch)]
        for number in (2, given.new_tokens):  # the first warms up
            started = time.perf_counter()
            done = language.complete_ids(prompts, temperature=0.0, repetition_penalty=1.0, max_tokens=number)
            synchronize(given.device)
            seconds = time.perf_counter() - started
        found[f"tokens_per_second_at_{batch}"] = sum(len(one.tokens) for one in done) / seconds
    return found


def streamed(given: Settings) -> dict[str, Any]:
    """LoRA on a model streamed from disk, inside a cap on the GPU's memory that torch enforces."""
    device = given.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, GPU_LIMIT / total), device)
    if given.tiny:
        with tempfile.TemporaryDirectory() as parent:
            return _streamed(given, large_model(given.streamed, "bfloat16", Path(parent), repeated=True))
    return _streamed(given, large_model(given.streamed, "bfloat16", repeated=True))


def _streamed(given: Settings, folder: Path) -> dict[str, Any]:
    config = qwen(given.streamed)
    engine = StreamedEngine(lambda: adapted(folder, given.device, torch.bfloat16))
    engine.load()
    engine.begin(next_token, AdamWConfig(learning_rate=2e-4))
    rows, length = given.streamed_rows, given.streamed_length
    found = timed(engine, [random_batch(rows, length, 400, True)], given)
    waited = engine.decoder.waited
    engine.close()
    shape = JobShape(
        config, rows, length, Training(False, RANK), "bfloat16", compute="bfloat16", documents=True, measured=False
    )  # fmt: skip
    spec = EngineSpec("streamed", rows, slots=2)
    limit = GPU_LIMIT / 1e6 if given.device.type == "cuda" else None
    return found | {"waited_s": waited, "limit_mb": limit, "predicted_mb": predicted_mb(shape, spec, given.device)}


CASES: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "machine": machine,
    "packed-attention": gpu_parity.packed_attention,
    "parity": gpu_parity.parity,
    "parity-streamed": gpu_parity.parity_streamed,
    "elite-bf16": functools.partial(elite, precision={}),
    "elite-bf16-one-document": functools.partial(elite, precision={}, documents=False),
    "elite-bf16-compiled": functools.partial(elite, precision={"compile": True}),
    "elite-fp8": functools.partial(elite, precision={"fp8": True}),
    "elite-fp8-compiled": functools.partial(elite, precision={"fp8": True, "compile": True}),
    "lora-0.5b": lora,
    "decode": decode,
    "streamed-3b": streamed,
}
