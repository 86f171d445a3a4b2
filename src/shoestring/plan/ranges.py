"""Which layers lie on which machine: contiguous ranges by rank, as `plan.split` chooses them and `offload.pipeline`
runs them. Torch-free.

A range (first, end) is of positions 0 ... L − 1, its end excluded. The first machine has the embedding too, the last
one the final norm, the head and its loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.core.errors import ConfigError

Range = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """One machine of a row of `stages`."""

    rank: int
    stages: int

    @property
    def is_last(self) -> bool:
        """Whether it has the head and its loss."""
        return self.rank == self.stages - 1

    def under_way(self, microbatches: int) -> int:
        """The most of a step's microbatches that have gone forward through it and not backward yet, one forward, one
        backward (`offload.pipeline.schedule`)."""
        return min(2 * (self.stages - self.rank - 1) + 1, microbatches)


@dataclass(frozen=True)
class Split:
    """ranges: of each rank. microbatches: of an optimizer step, which fill the pipeline one behind the other."""

    ranges: tuple[Range, ...]
    microbatches: int = 1

    def __len__(self) -> int:
        return len(self.ranges)

    def check(self, layers: int, machines: int | None = None) -> None:
        """Raises ConfigError unless the ranges cover these layers, in order and none empty, for so many machines."""
        if machines is not None and len(self.ranges) != machines:
            raise ConfigError(f"a split over {len(self.ranges)} machines, and here are {machines}")
        expected = 0
        for rank, (first, end) in enumerate(self.ranges):
            if first != expected or end <= first:
                raise ConfigError(
                    f"machine {rank} is to hold layers {first} to {end - 1}, and its first one must be {expected}",
                    hint="ranges follow one another, and each holds a layer at least",
                )
            expected = end
        if expected != layers:
            raise ConfigError(f"the split ends behind layer {expected - 1}, and the model has {layers} layers")
        if self.microbatches < 1:
            raise ConfigError("a step has one microbatch at least")


def even_split(layers: int, machines: int, microbatches: int = 1) -> Split:
    """Ranges of equal length, or longer by one for the first machines. Raises ConfigError for more machines than
    layers."""
    if machines > layers:
        raise ConfigError(f"{machines} machines, and the model has {layers} layers: each holds one at least")
    ends = [(rank * layers + machines - 1) // machines for rank in range(machines + 1)]
    return Split(tuple(zip(ends, ends[1:], strict=False)), microbatches)
