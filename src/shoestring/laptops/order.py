"""What one machine is told to do: plain data, from the first machine's plan to each machine's worker. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.core.units import format_bytes
from shoestring.laptops.config import MOST_MACHINES
from shoestring.laptops.pieces import RemoteFile, is_below, read_files
from shoestring.laptops.wire import LinkError
from shoestring.plan.ranges import Split

ASKED = ("generate", "perplexity", "evaluate")  # of a model as it is, without a recipe
VERBS = ("finetune", "pretrain", *ASKED)
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Order:
    """number: counts the starts of a run; what belongs to another one is out of date. out: the run's folder, below that
    of the files. names: of each machine, in the order of the layers. memory: bytes of this one, None: no limit. peak,
    seconds: as predicted for this machine and a step. digests: SHA-256 of the whole weight files that the parts are of.
    settings: of the recipe, given to a run that goes on. request: of a verb without a recipe."""

    number: int
    verb: str
    rank: int
    split: Split
    layers: int
    names: tuple[str, ...]
    memory: int | None
    peak: int
    seconds: float
    out: str
    files: tuple[RemoteFile, ...] = ()
    digests: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> int:
        return len(self.split)

    def to_json(self) -> dict[str, Any]:
        values = {**asdict(self), "files": [file.to_json() for file in self.files], "digests": dict(self.digests)}
        values["settings"] = dict(self.settings)
        return {**values, "split": {"ranges": self.split.ranges, "microbatches": self.split.microbatches}}

    @classmethod
    def of(cls, value: Any) -> Order:
        """From the first machine. Raises LinkError."""
        try:
            split = Split(
                tuple((int(first), int(end)) for first, end in value["split"]["ranges"]),
                int(value["split"]["microbatches"]),
            )
            memory = value["memory"]
            found = cls(
                int(value["number"]), str(value["verb"]), int(value["rank"]), split, int(value["layers"]),
                tuple(map(str, value["names"])), None if memory is None else int(memory), int(value["peak"]),
                float(value["seconds"]), str(value["out"]), tuple(read_files(value["files"])),
                _pairs(value["digests"]), _pairs(value["settings"]), dict(value["request"]),
            )  # fmt: skip
            if not 0 < found.layers <= _MOST_LAYERS or not 0 <= found.rank < len(split) <= MOST_MACHINES:
                raise ValueError
            if found.verb not in VERBS or len(found.names) != len(split) or not is_below(found.out):
                raise ValueError
            split.check(found.layers, len(split))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError):
            raise LinkError("the first machine does not say clearly what is to be done") from None
        return found

    def told(self) -> list[str]:
        """Lines for the person whose machine it is, before anything starts."""
        first, end = self.split.ranges[self.rank]
        ends = ["the embedding"] * (self.rank == 0) + ["the head and its loss"] * (self.rank == self.world - 1)
        holds = f"layers {first} to {end - 1} of {self.layers}" + "".join(f", {part}" for part in ends)
        others = ", ".join(name for i, name in enumerate(self.names) if i != self.rank)
        limit = "" if self.memory is None else f" of {format_bytes(self.memory)}"
        return [
            f"does      {self.verb}: {holds}, with {others}",
            f"memory    {format_bytes(self.peak)} predicted{limit}",
            f"speed     about {self.seconds:.2g} s a step, in portions: {self.split.microbatches}",
        ]


def _pairs(values: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), str(text)) for name, text in values.items())
