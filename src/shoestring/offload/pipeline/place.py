"""Which part of a model this process holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoestring.core.errors import ConfigError
from shoestring.models.config import ModelConfig
from shoestring.nn.config import block_order
from shoestring.plan.ranges import Range, Split
from shoestring.train import parallel


@dataclass(frozen=True)
class Place:
    """Stage `rank`, which holds the layers at positions first ... end − 1 of the model. ranges: of all stages."""

    rank: int
    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, split: Split, rank: int) -> Place:
        return cls(rank, split.ranges)

    @property
    def stages(self) -> int:
        return len(self.ranges)

    @property
    def first(self) -> int:
        return self.ranges[self.rank][0]

    @property
    def end(self) -> int:
        return self.ranges[self.rank][1]

    @property
    def is_first(self) -> bool:
        """Whether tokens enter here: it has the embedding."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here: it has the final norm and the head."""
        return self.rank == self.last

    @property
    def last(self) -> int:
        """The rank of the last stage."""
        return len(self.ranges) - 1

    def blocks(self, order: tuple[int, ...]) -> list[int]:
        """The blocks that stand at its positions, each once. order: of the whole model."""
        return sorted(set(order[self.first : self.end]))

    def holds(self, config: ModelConfig, trained: bool) -> Callable[[str], bool]:
        """Whether a parameter of the model lies here, by its name. trained: whether a tied matrix is, which then lies
        on the last alone."""
        order = block_order(config.layers, config.sharing)
        names = {f"blocks.{index}." for index in self.blocks(order)}
        if self.is_last:
            names |= {"norm.", "head."} | ({"embedding."} if config.tied_head else set())
        if self.is_first:
            names |= {"mix.", "inputs."}
            names |= set() if config.tied_head and trained and self.stages > 1 else {"embedding."}
        return lambda name: name.startswith(tuple(names))

    def holders(self, order: tuple[int, ...]) -> dict[int, list[int]]:
        """The blocks that several stages hold, and which; the first of them owns it."""
        every: dict[int, list[int]] = {}
        for rank in range(self.stages):
            for index in Place(rank, self.ranges).blocks(order):
                every.setdefault(index, []).append(rank)
        return {index: ranks for index, ranks in every.items() if len(ranks) > 1}


def place_of(ranges: tuple[Range, ...] | None, config: ModelConfig) -> Place | None:
    """This process's, of these ranges by rank; None where every process has the whole model. Raises ConfigError where
    they do not fit the model or the number of processes."""
    if ranges is None:
        return None
    split = Split(ranges)
    split.check(config.layers, parallel.world_size())
    check_exchange()
    return Place.of(split, parallel.rank())


def check_exchange() -> None:
    """Raises ConfigError where processes exchange tensors in a way that parts of a model do not."""
    if parallel.is_parallel() and parallel.exchange_device().type != "cpu":
        raise ConfigError(
            "parts of one model pass tensors over gloo, and these processes were started to use NCCL",
            hint="hide the GPUs (CUDA_VISIBLE_DEVICES=), or begin torch.distributed with gloo yourself",
        )
