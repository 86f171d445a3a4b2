"""Every measured constant and margin of the planner, each with the measurement that it came from. Torch-free."""

from __future__ import annotations

FLOAT = 4  # bytes

# Bits of a stored weight, scales included (`nn.quantized`).
BITS: dict[str, float] = {
    "float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0, "int4": 5.0, "nf4": 4.25,
}  # fmt: skip

# Share of a budget that a prediction may fill: the rest is its error.
SPARE = 0.97

# Of the matrix peak that a step reaches, for the estimate of its speed.
EFFICIENCY = 0.7

# Code and tables of the matrix libraries, loaded with the first matmuls, and what torch's optimizers import.
LIBRARIES = 119_000_000

# What oneDNN keeps for every further number of tokens that it has met.
LENGTH = 13_000_000

# Tokens computed at once that are fast on a CPU.
MICROBATCH_TOKENS = 512
