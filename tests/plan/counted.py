"""What a step's tensors take, counted by the allocator and predicted by the plan, of one tiny model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shoestring.data.batch import Batch
from shoestring.kernels import allocator
from shoestring.models.adapters import attach, halve_bases, quantize_blocks
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import save_model
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Prediction, Training
from shoestring.train.engine import LocalEngine
from shoestring.train.objective import Objective, next_token
from shoestring.train.optimizer_config import AdamWConfig, OptimizerConfig

SCALARS = 2500  # bytes of numbers that stand alone (losses, step counts, wavelengths of positions), left out
RANK = 4
_FORMATS = {"int8": Int8Config(), "int4": Int4Config(), "nf4": NF4Config()}


def config(width: int, vocabulary: int = 200, layers: int = 3, **changes) -> ModelConfig:
    return ModelConfig.model_validate({
        "vocabulary": vocabulary, "width": width, "layers": layers, "context": 512,
        "attention": {"heads": 4, "kv_heads": 2, "head_width": width // 4}, "feed_forward": {"width": 3 * width // 2},
        **changes,
    })  # fmt: skip


def batches(count: int, rows: int, length: int, vocabulary: int, documents: bool = False) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        tokens_BT = torch.randint(0, vocabulary, (rows, length + 1), generator=random)
        positions_BT = torch.arange(length).expand(rows, length).contiguous()
        segments_BT = torch.zeros(rows, length, dtype=torch.int64)
        if documents:
            segments_BT[:, length // 2 :] = 1
            positions_BT[:, length // 2 :] -= length // 2
        found.append(Batch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), positions_BT, segments_BT))
    return found


def model(shape: ModelConfig, training: Training) -> Decoder:
    """As `training` has it."""
    made = build(shape, seed=1)
    if training.full:
        return made
    if training.frozen in _FORMATS:
        quantize_blocks(made, _FORMATS[training.frozen])
    adapt(made, training)
    if training.frozen == "bfloat16":
        halve_bases(made)
    return made


def adapt(decoder: Decoder, training: Training) -> None:
    modules = None if training.adapted is None else sorted(name.rpartition(".")[2] for name in training.adapted)
    attach(decoder, LoRAConfig(rank=RANK, dora=training.dora, dropout=0.1 * training.dropout), modules=modules)


def counted(
    make: Callable[[], LocalEngine], parts: list[Batch], steps: int = 2, optimizer: OptimizerConfig | None = None
) -> int:
    """The most that tensors took in a few optimizer steps, the model's loading aside; nothing before counts."""
    optimizer = optimizer or AdamWConfig()
    with _alone() as before:
        engine = make()
        engine.load()
        engine.begin(objective(engine), optimizer)
        allocator.reset_peaks()
        for _ in range(steps):
            engine.forward_backward(parts)
            engine.optimizer_step(None if optimizer.in_backward else 1.0, 1.0)
        peak = allocator.counts().live_peak - before
        engine.close()
    return peak


def objective(engine: LocalEngine) -> Objective:
    return next_token


def predicted(shape: JobShape, spec: EngineSpec) -> Prediction:
    return predict(shape, spec, Machine(process=0, flops=1e9, threads=torch.get_num_threads()))


@contextmanager
def _alone() -> Iterator[int]:
    """Bytes live now, with what earlier tests left in cycles gone."""
    gc.collect()
    yield allocator.counts().live


def folder(shape: ModelConfig, place: Path, dtype: torch.dtype) -> Path:
    """Its files, in this dtype."""
    save_model(build(shape, seed=1).to(dtype), place)
    return place
