"""The plain data of planning: the shape of a job, how an engine would run it, the machine, a prediction. Torch-free.

Whoever plans fills these in (`pretraining`, `finetuning`, `offload.load`); `plan.predict` and `plan.choose` read them.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, field, replace
from typing import Literal

from shoestring.core.units import counted
from shoestring.models.config import ModelConfig
from shoestring.nn.config import Recompute
from shoestring.nn.quantized.config import PackedConfig
from shoestring.plan.ranges import Stage

EngineName = Literal["resident", "checkpointed", "streamed"]
# How weights are kept: as they stand in the model's files (source; packed: in few bits), or in one of these formats.
WeightFormat = Literal["source", "float32", "bfloat16", "int8", "int4", "nf4", "packed"]
Packed = frozenset[tuple[str, PackedConfig]]  # linears that a model's files have in few bits, by name in a block
Line = tuple[str, int]  # what it is, bytes


@dataclass(frozen=True)
class Training:
    """What is trained: everything, or adapters of this rank on linears of these names in a block (None: all).

    frozen: how the blocks' other matrices are kept, but for `packed` ones. integers: products of int8 ones are of
    integers.
    """

    full: bool = True
    rank: int = 0
    adapted: frozenset[str] | None = None
    dora: bool = False
    dropout: bool = False
    frozen: WeightFormat = "float32"
    integers: bool = False
    packed: Packed = frozenset()


@dataclass(frozen=True)
class Moving:
    """How weights are moved, as a recipe's `optimizer` has it. eight_bits: both moments of AdamW.

    iterations: of Newton-Schulz. in_backward: each as soon as its gradient is there, which is freed then.
    """

    kind: Literal["adamw", "muon", "adafactor", "lion"] = "adamw"
    eight_bits: bool = False
    iterations: int = 5
    in_backward: bool = False


@dataclass(frozen=True)
class JobShape:
    """One optimizer step of one process: rows × length tokens, padded.

    source: the dtype of the model's files. ignored: whether some labels do not count, so that hidden states of those
    that do are copied; as if all did. compute: what matmuls run in. documents: whether rows hold several, or end early.
    compared: how many tokens' predictions are compared with the base's in some steps, whose hidden states there are
    kept up to `kept` bytes. measured: whether there is a held-out pass. asked: questions that are answered before and
    after, their longest and an answer's tokens. lengths: which share of the rows has each length, the shortest first;
    alike: whether rows that are computed at once are of like lengths; steps: of the run, 0 where that is not known.
    moving: the optimizer.
    """

    config: ModelConfig
    rows: int
    length: int
    training: Training = Training()
    source: str = "float32"
    ignored: bool = False
    compute: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    documents: bool = False
    compared: int = 0
    kept: int = 0
    measured: bool = True
    asked: tuple[int, int, int] = (0, 0, 0)
    lengths: tuple[float, ...] = (1.0,)
    alike: bool = False
    steps: int = 0
    moving: Moving = Moving()

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class EngineSpec:
    """How an engine runs a job. microbatch: rows computed at once. recompute: what going backward computes again.
    shards: among how many processes weights, gradients and moments are divided.

    Streamed: slots layers in memory at a time, kept on disk as `weights`; spilled: inputs of layers wait there too.
    stage: where the layers are those of one machine of several, which takes one microbatch after another; keeps: layers
    of them that keep what they computed until it goes backward.
    """

    engine: EngineName
    microbatch: int
    recompute: Recompute = "selective"
    slots: int = 0
    weights: WeightFormat = "source"
    spilled: bool = False
    shards: int = 1
    stage: Stage | None = None
    keeps: int = 0


KEPT = "what it keeps beside tensors"  # the line of a process that is a constant


@dataclass(frozen=True)
class Correction:
    """What a machine's own runs say of predictions for one job and engine.

    beside: times the constant of what a process keeps beside tensors; seconds: times those of a step. Each with the
    runs that it stands on, 1.0 and 0 where there were too few.
    """

    job: str
    engine: str
    beside: float = 1.0
    beside_runs: int = 0
    seconds: float = 1.0
    seconds_runs: int = 0

    @property
    def runs(self) -> int:
        return max(self.beside_runs, self.seconds_runs)

    def __str__(self) -> str:
        if not self.runs:
            return "time corrected as that of other engines, by runs on this machine"
        return f"corrected by {counted(self.runs, 'run')} on this machine"


@dataclass(frozen=True)
class Machine:
    """process: bytes that this process has beside tensors, libraries loaded. flops: of matmuls in the job's format, per
    second.

    read_speed: of the disk with the model, bytes per second. int8_gain: of int8 matmuls over float32 ones. total:
    bytes of memory that there are. threads: that compute. onednn: whether that library multiplies large matrices.
    bandwidth: of reading memory, bytes per second. gpu: whether these are a GPU's, with the model in its memory.
    corrections: of the job that is planned (`plan.calibration`).
    """

    process: int
    flops: float
    read_speed: float = 1e9
    int8_gain: float = 1.0
    total: int = 0
    threads: int = 1
    onednn: bool = False
    bandwidth: float = 1e10
    gpu: bool = False
    corrections: tuple[Correction, ...] = ()

    def correction(self, engine: str) -> Correction | None:
        """Of an engine whose time no run has told: by as much as that of the others, beside which it is compared."""
        own = next((one for one in self.corrections if one.engine == engine), None)
        known = [one.seconds for one in self.corrections if one.seconds_runs]
        if not known or (own is not None and own.seconds_runs):
            return own
        return replace(own or Correction(self.corrections[0].job, engine), seconds=statistics.median(known))


@dataclass(frozen=True)
class Prediction:
    """tensors: lines of the most that lies in tensors at once; beside: of the process around them. seconds: a step.

    time: what those seconds are for. tokens: of a step, padded. correction: what has been made of all this by runs on
    this machine, already in every figure.
    """

    tensors: tuple[Line, ...]
    beside: tuple[Line, ...]
    seconds: float
    time: tuple[tuple[str, float], ...] = ()
    tokens: int = 0
    correction: Correction | None = None

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
    in sentences. shards, stage: as `EngineSpec` has them, which are not left open.
    """

    engines: tuple[EngineName, ...]
    usual: int
    microbatch: int | None = None
    recompute: Recompute = "selective"
    weights: WeightFormat = "source"
    slots: int | None = None
    spilled: bool | None = None
    advice: tuple[str, ...] = field(default=())
    shards: int = 1
    stage: Stage | None = None
