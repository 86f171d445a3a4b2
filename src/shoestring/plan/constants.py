"""Every measured constant and margin of the planner, each with the measurement that it came from. Torch-free."""

from __future__ import annotations

# Bits of a stored weight, scales included (`nn.quantized`).
BITS: dict[str, float] = {
    "float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0, "int4": 5.0, "nf4": 4.25,
}  # fmt: skip

# Share of a budget that a prediction may fill: the rest is its error.
SPARE = 0.97

# Of the matrix peak: what products of a step reach, and attention, whose exponentials are no products.
PRODUCTS = 0.85
ATTENTION = 0.6
# Times that each byte of a tensor that is made passes memory: it is written, and read by what comes next.
PASSES = 2.0
# Seconds that an operation takes before it computes, in Python and torch: those of a step, and those of a native pass.
CALL = 1e-5
# Seconds of a token that are neither its products nor its cache: choosing it, and telling it.
TOKEN = 3e-4
# Bytes per second that a file's content is copied at by a thread beside the one that computes, on the same core: 258 MB
# took 28 to 49 ms of a Zen 4's.
COPIED = 6.5e9
# Bytes that moving a weight passes through memory, by optimizer: weight, gradient and moments, read and written; with
# the norm of all gradients and their scaling (12).
MOVED = {"adamw": 40.0, "lion": 32.0, "adafactor": 60.0, "muon": 36.0}
MOVED_IN_EIGHT_BITS = 28.0

# What a process takes beside tensors, once the libraries are loaded (`train.first_use`), from before a model is opened
# to its peak: Python's objects and what threads and files keep. Peak resident set less the allocator's peak, less the
# resident set before: of generation (7 to 11 MB, of prompts of 2,048 tokens 20), perplexity (20 MB), training (11 to
# 30 MB); `benchmarks.prediction`. MKL keeps a buffer for each size class of products that it has met.
USE = 8_000_000
LARGE_PASS = 16_000_000  # more, for scoring, and for prompts of more than so many tokens
LARGE_PASS_TOKENS = 1024
TRAINING = 17_000_000  # more

# What oneDNN keeps for every further number of tokens that it has met: of float32 where it multiplies that, and of
# bfloat16, for which it makes a kernel for each size of a product. A kernel, and how many it keeps: a product of up to
# 1,400 numbers of rows kept 0.5 to 0.7 MB for each of the first 1,000 (Zen 4: AVX-512 with bfloat16). Each expert of a
# mixture brings numbers of rows of its own.
LENGTH = 13_000_000
LENGTH_IN_BFLOAT16 = 7_000_000  # three lengths of a fine-tuning and of a distillation kept 8 to 20 MB
KERNEL = 620_000
KERNELS = 1000

# Tokens computed at once that are fast on a CPU.
MICROBATCH_TOKENS = 512

# Of the bandwidth of memory that writing tokens reaches: `benchmarks.decode`, 72 to 113%, medians 78 to 94%.
DECODING = 0.8

# What a server takes beside the model: bodies of requests and answers, connections, Python's objects.
SERVING = 48_000_000

# Copies of a row of logits that choosing a token makes, at most.
CHOOSING = 4

# The same as USE, of quantizing to nearest, and with calibration text, whose seconds go by in many more operations.
# Measured as it is: 15 to 17 MB, and 29 to 39 MB (`benchmarks.prediction`).
ROUNDING = 17_000_000
QUANTIZING = 33_000_000
