"""`python -m shoestring.laptops.describe`: what this machine can do, measured, for a plan over several machines."""

from __future__ import annotations

import platform
import statistics
import time
from typing import Any

from shoestring.laptops.answering import answer

# A small step that is timed beside its prediction: portions as they pass from machine to machine, layers in int8.
_TIMED = {
    "vocabulary": 8192, "width": 768, "layers": 2, "context": 128,
    "attention": {"heads": 12, "kv_heads": 4, "head_width": 64}, "feed_forward": {"width": 3072},
}  # fmt: skip
_RANK = 8
_TIMES = 7


def described(_: dict[str, Any]) -> dict[str, Any]:
    """Bytes, operations per second. process: of a worker beside tensors, checkpointing: more where torch's is used.
    pace: seconds of a small step, times those that are predicted for it."""
    import importlib

    import torch

    from shoestring.core.machine import cpu_count, cpu_model, rss_bytes, total_memory_bytes
    from shoestring.core.speeds import matrix_peak
    from shoestring.kernels import allocator
    from shoestring.train.first_use import first_use
    from shoestring.train.planning import int8_gain, memory_speed, multiplies_by_onednn

    allocator.install()
    flops = {form: matrix_peak(form, "cpu") for form in ("float32", "bfloat16")}
    bandwidth = memory_speed()
    first_use()
    process, onednn = rss_bytes() - allocator.kept(), multiplies_by_onednn()
    found = {
        "system": platform.system(),
        "processor": cpu_model(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": total_memory_bytes(),
        "process": process,
        "flops": flops,
        "bandwidth": bandwidth,
        "int8_gain": int8_gain(),
        "onednn": onednn,
        "pace": paced(flops["float32"], bandwidth, onednn),
    }
    before = rss_bytes() - allocator.kept()
    importlib.import_module("torch._dynamo")
    return {**found, "checkpointing": max(rss_bytes() - allocator.kept() - before, 1)}


def paced(flops: float, bandwidth: float, onednn: bool) -> float:
    """The median of some small steps, forward and backward beside frozen layers in int8, over the prediction."""
    import torch

    from shoestring.data.batch import Batch
    from shoestring.models.adapters import attach
    from shoestring.models.builder import build
    from shoestring.models.config import ModelConfig
    from shoestring.nn.lora_config import LoRAConfig
    from shoestring.nn.quantized.config import Int8Config
    from shoestring.nn.replace import replace_linears
    from shoestring.plan.predict import predict
    from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Training
    from shoestring.plan.speed import MOVING
    from shoestring.train.objective import next_token
    from shoestring.train.resident import ResidentEngine

    config = ModelConfig.model_validate(_TIMED)

    def model() -> Any:
        decoder = build(config, seed=0).requires_grad_(False)
        for block in decoder.blocks:
            replace_linears(block, Int8Config(), lambda *_: True)
        attach(decoder, LoRAConfig(rank=_RANK), 0)
        return decoder

    engine = ResidentEngine(model)
    engine.load()
    engine.objective = next_token
    length = config.context
    tokens_BT = torch.arange(length).unsqueeze(0)
    batch = Batch(tokens_BT, tokens_BT + 1, tokens_BT, torch.zeros_like(tokens_BT))
    taken = []
    for _ in range(_TIMES + 2):  # the first choose libraries and touch pages
        started = time.perf_counter()
        engine.forward_backward([batch])
        taken.append(time.perf_counter() - started)
    shape = JobShape(config, 1, length, Training(False, _RANK, frozen="int8"), measured=False)
    machine = Machine(0, flops, threads=torch.get_num_threads(), onednn=onednn, bandwidth=bandwidth)
    predicted = dict(predict(shape, EngineSpec("resident", 1), machine).time)
    return statistics.median(taken[2:]) / sum(seconds for name, seconds in predicted.items() if name != MOVING)


if __name__ == "__main__":
    answer(described)
