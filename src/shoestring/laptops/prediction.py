"""What a machine's part of a model takes, from `plan.predict`: a model of its layers alone, with both ends, of which
it has one at most. Torch-free.

A stage keeps the activations of as many microbatches as are under way in it (`offload.pipeline.schedule`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shoestring.models.count import operations
from shoestring.nn.config import GQAConfig, Recompute, block_order
from shoestring.plan.choose import fitting
from shoestring.plan.predict import predict
from shoestring.plan.ranges import Stage
from shoestring.plan.shapes import EngineName, EngineSpec, JobShape, Machine, Options, WeightFormat
from shoestring.plan.split import Peak, Seconds, Work
from shoestring.plan.tape import FLOAT

EFFICIENCY = 0.7  # of the matrix peak that writing texts reaches, all that is no product included
_KEPT = "kept activations"


def work_of(shape: JobShape) -> Work:
    """Operations as `plan.speed` counts them. What passes between machines is hidden states in float32."""
    config = shape.config
    values = config.attention.kv_heads * config.attention.head_width if isinstance(config.attention, GQAConfig) else 0
    streams = 2 if config.block == "reversible" else 1
    cost = operations(config, shape.length)
    return Work(
        config.layers, shape.rows, shape.length, (cost.matrices + cost.attention) / config.layers,
        FLOAT * (streams * config.width + values * config.value_residual), last=cost.head,
    )  # fmt: skip


class Figures:
    """What each machine's part takes, as `plan.predict` has it, by its place among `machines`. memory: bytes of each at
    most. A streamed part keeps as many layers, and of as many what they computed, as its memory has room for.

    Seconds: with what the machine took for a small step beside what is predicted for that (`describe`).
    """

    def __init__(
        self, shape: JobShape, machines: Sequence[dict[str, Any]], memory: Sequence[int | None], engine: EngineName,
        weights: WeightFormat, slots: int | None = None,
    ):  # fmt: skip
        self.shape, self.memory, self.engine = shape, memory, engine
        self._paces = [machine["pace"] for machine in machines]
        self._machines = [machine_of(machine, shape, engine) for machine in machines]
        self._options = Options((engine,), 1, weights=weights, slots=slots)
        self._found: dict[tuple[int, ...], tuple[int, float]] = {}

    def over(self, chosen: Sequence[int]) -> tuple[Peak, Seconds]:
        """Where machines of these places follow one another."""

        def peak(index: int, count: int, layers: int, rows: int, microbatches: int) -> int:
            return self._of(chosen[index], Stage(index, count), layers, rows, microbatches)[0]

        def seconds(index: int, count: int, layers: int, rows: int, microbatches: int) -> float:
            return self._of(chosen[index], Stage(index, count), layers, rows, microbatches)[1]

        return peak, seconds

    def _of(self, place: int, stage: Stage, layers: int, rows: int, microbatches: int) -> tuple[int, float]:
        alike = Stage(0, stage.stages - stage.rank)  # those before it do not matter
        asked = (place, alike.stages, layers, rows, microbatches)
        if asked not in self._found:
            self._found[asked] = self._predicted(place, alike, layers, rows, microbatches)
        return self._found[asked]

    def _predicted(self, place: int, stage: Stage, layers: int, rows: int, microbatches: int) -> tuple[int, float]:
        part, machine = _part(self.shape, layers), self._machines[place]
        if self.engine == "streamed":
            found = fitting(part, machine, self.memory[place], replace(self._options, microbatch=rows, stage=stage))
            size = found.total
        else:
            recompute: Recompute = "full" if self.engine == "checkpointed" else "selective"
            found = predict(part, EngineSpec(self.engine, rows, recompute, stage=stage), machine)
            kept = sum(bytes for name, bytes in found.tensors if name == _KEPT)
            size = found.total + (stage.under_way(microbatches) - 1) * kept
        return size, self._paces[place] * found.seconds / microbatches


def _part(shape: JobShape, layers: int) -> JobShape:
    """As `offload.pipeline.planned.config_of_part` has it, which each machine keeps to."""
    config = shape.config
    update: dict[str, Any] = {"layers": layers}
    if config.sharing is not None:
        blocks = len(set(block_order(config.layers, config.sharing)[:layers]))
        update["sharing"] = config.sharing.model_copy(update={"unique_layers": blocks})
    return replace(shape, config=config.model_copy(update=update))


def machine_of(described: dict[str, Any], shape: JobShape | None = None, engine: EngineName = "streamed") -> Machine:
    """As the plan has it. shape: of the job, in whose number format products are; None: without a speed."""
    half = shape is not None and shape.compute in ("bfloat16", "float16")
    return Machine(
        process=int(described["process"] + (described["checkpointing"] if engine == "checkpointed" else 0)),
        flops=1.0 if shape is None else float(described["flops"]["bfloat16" if half else "float32"]),
        int8_gain=float(described["int8_gain"]), total=int(described["memory"]), threads=int(described["threads"]),
        onednn=bool(described.get("onednn")), bandwidth=float(described["bandwidth"]),
    )  # fmt: skip
