"""The plain data of planning: the shape of a job, how an engine would run it, the machine, a prediction. Torch-free.

Whoever plans fills these in (`pretraining`, `finetuning`, `offload.load`); `plan.predict` and `plan.choose` read them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

from shoestring.models.config import ModelConfig
from shoestring.nn.config import Recompute

EngineName = Literal["resident", "checkpointed", "streamed"]
# How weights are kept: as they stand in the model's files (source), or in one of these formats.
WeightFormat = Literal["source", "float32", "bfloat16", "int8", "int4", "nf4"]
Line = tuple[str, int]  # what it is, bytes


@dataclass(frozen=True)
class JobShape:
    """One optimizer step of one process: rows × length tokens, padded.

    trained: numbers that are trained; full: they are the whole model. adapter_rank: the ranks of a block's adapters
    added up, which is what they keep for each token. frozen: how the blocks' frozen weights are kept in memory, None
    where nothing is frozen. source: the dtype of the model's files. lengths: how many lengths of rows there are.
    labels: at most so many of the tokens count, None for all. compute: what matmuls run in. compared: how many tokens'
    predictions are compared with the base's in some steps.
    """

    config: ModelConfig
    rows: int
    length: int
    trained: int
    full: bool = True
    adapter_rank: int = 0
    dora: bool = False
    frozen: WeightFormat | None = None
    source: str = "float32"
    lengths: int = 1
    labels: int | None = None
    compute: Literal["float32", "bfloat16", "int8"] = "float32"
    compared: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class EngineSpec:
    """How an engine runs a job. microbatch: rows computed at once. recompute: what going backward computes again.

    Streamed: slots layers in memory at a time, kept on disk as `weights`; spilled: inputs of layers wait there too.
    """

    engine: EngineName
    microbatch: int
    recompute: Recompute = "selective"
    slots: int = 0
    weights: WeightFormat = "source"
    spilled: bool = False


@dataclass(frozen=True)
class Machine:
    """process: bytes that this process has beside tensors. flops: of matmuls in the job's format, per second.

    read_speed: of the disk with the model, bytes per second. int8_gain: of int8 matmuls over float32 ones. total:
    bytes of memory that there are.
    """

    process: int
    flops: float
    read_speed: float = 1e9
    int8_gain: float = 1.0
    total: int = 0


@dataclass(frozen=True)
class Prediction:
    """tensors: lines of the most that lies in tensors at once; beside: of the process around them. seconds: a step."""

    tensors: tuple[Line, ...]
    beside: tuple[Line, ...]
    seconds: float

    @functools.cached_property
    def tensor_bytes(self) -> int:
        return sum(size for _, size in self.tensors)

    @functools.cached_property
    def total(self) -> int:
        """Bytes of the whole process."""
        return self.tensor_bytes + sum(size for _, size in self.beside)

    @property
    def lines(self) -> list[Line]:
        return [*self.beside, *self.tensors]


@dataclass(frozen=True)
class Options:
    """What a job leaves open. engines: in the order of preference. microbatch: rows at once, None: up to `usual` rows.

    recompute: of the resident engine. slots, spilled: None leaves them open. advice: what else would take less memory,
    in sentences.
    """

    engines: tuple[EngineName, ...]
    usual: int
    microbatch: int | None = None
    recompute: Recompute = "selective"
    weights: WeightFormat = "source"
    slots: int | None = None
    spilled: bool | None = None
    advice: tuple[str, ...] = field(default=())
