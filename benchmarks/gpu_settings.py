"""What a case of `benchmarks.gpu` is given: a device and sizes that suit it; and the random tokens that cases share."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.random_models import SHAPES
from shoestring.core.device import resolve_device
from shoestring.data.batch import Batch
from shoestring.kernels import allocator
from shoestring.models.adapters import attach
from shoestring.models.config import ModelConfig
from shoestring.nn.lora_config import LoRAConfig
from shoestring.offload.model import StreamedDecoder, open_streamed
from shoestring.pretraining.config import load_pretrain_recipe

RANK, ALPHA = 8, 16
SHAPES.setdefault("tiny-streamed", (64, 3, 4, 2, 128, 512, True))


@dataclass(frozen=True)
class Settings:
    """device, and the sizes that suit it. rows: tried first, halved where memory ends. seconds: timed of each speed.

    before: bytes of tensors that are none of the case's.
    """

    device: torch.device
    elite: ModelConfig
    rows: int
    length: int
    lora: str
    lora_rows: int
    streamed: str
    streamed_rows: int
    streamed_length: int
    seconds: float
    warmup: int
    new_tokens: int
    before: int = 0

    @property
    def tiny(self) -> bool:
        return self.device.type == "cpu"


def settings(device: str) -> Settings:
    """Raises ConfigError for a device that is not there."""
    where = resolve_device(device)
    if where.type == "cpu":
        elite = load_pretrain_recipe("elite-112m-smoke").model
        allocator.install()
        gc.collect()
        return Settings(where, elite, 2, 64, "tiny-streamed", 2, "tiny-streamed", 2, 32, 0.0, 1, 4, allocator.live())
    elite = load_pretrain_recipe("elite-112m").model
    return Settings(where, elite, 16, 2048, "qwen2.5-0.5b", 8, "qwen2.5-3b", 4, 256, 6.0, 3, 128)


def random_batch(rows: int, length: int, vocabulary: int, documents: bool, seed: int = 0) -> Batch:
    """Random tokens on the CPU, as a stream gives them; documents: of 600 tokens on average, or a fifth of a row."""
    random = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(vocabulary, (rows, length + 1), generator=random)
    positions_BT = torch.arange(length).expand(rows, -1).contiguous()
    segments_BT = torch.zeros(rows, length, dtype=torch.int64)
    if documents:
        begins_BT = torch.rand(rows, length, generator=random) < max(1 / 600, 5 / length)
        begins_BT[:, 0] = True
        segments_BT = begins_BT.cumsum(1) - 1
        positions_BT = positions_BT - torch.where(begins_BT, positions_BT, 0).cummax(1).values
    return Batch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), positions_BT, segments_BT)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def adapted(folder: Path, device: torch.device, dtype: torch.dtype) -> StreamedDecoder:
    """A streamed model with a fresh adapter on all linears."""
    decoder = open_streamed(folder, device=device, dtype=dtype)
    attach(decoder, LoRAConfig(rank=RANK, alpha=ALPHA), seed=1)
    return decoder
