"""Every measured constant and margin of the planner, each with the measurement that it came from. Torch-free."""

from __future__ import annotations

# Bits of a stored weight, scales included (`nn.quantized`).
BITS: dict[str, float] = {
    "float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0, "int4": 5.0, "nf4": 4.25,
}  # fmt: skip

# Share of a budget that a prediction may fill: the rest is its error.
SPARE = 0.97

# Of the matrix peak: what products of a step reach, and attention, whose exponentials are no products.
PRODUCTS = 0.82
ATTENTION = 0.6
# Times that each byte of a tensor that is made passes memory: it is written, and read by what comes next.
PASSES = 2.0
# Seconds that an operation takes before it computes, in Python and torch, for each tensor that it makes.
CALL = 1e-5
# The same of a step that is trained: autograd and autocast take longer for each operation, and what that one made is in
# the processor's cache by then. Fitted to 20 steps of 0.25 to 5 s (`benchmarks.prediction`, 2 cores of Zen 4), all of
# which they give within 19%.
TRAINED_PASSES = 0.4
TRAINED_CALL = 7e-5
# Seconds of a token that are neither its products nor its cache: choosing it, and telling it.
TOKEN = 1e-4
# Seconds of a layer and token in Python, where weights are not in few bits; and times those where layers are streamed.
LAYER = 6e-4
STREAMED_LAYER = 2.0
# Bytes per second that a file's content is copied at by a thread beside the one that computes, on the same core: 258 MB
# took 28 to 49 ms of a Zen 4's.
COPIED = 6.5e9
# Bytes that moving a weight passes through memory, by optimizer: weight, gradient and moments, read and written, with
# the norm of all gradients and their scaling; times 0.6, since they pass faster than what is copied (AdamW: 13 steps).
MOVED = {"adamw": 24.0, "lion": 19.0, "adafactor": 36.0, "muon": 22.0}
MOVED_IN_EIGHT_BITS = 17.0

# What a process takes beside tensors, once the libraries are loaded (`train.first_use`), from before a model is opened
# to its peak: Python's objects and what threads and files keep. Peak resident set less the allocator's peak, less the
# resident set before: of generation (7 to 15 MB, of prompts of 2,048 tokens 7 to 20), perplexity (18 to 32 MB), and
# training (in float32 11 to 30 MB, in bfloat16 2 to 18 MB beside KERNEL); `benchmarks.prediction`. MKL keeps a buffer
# for each size class of products that it has met.
USE = 14_000_000
LARGE_PASS = 14_000_000  # more, for prompts of more than so many tokens
LARGE_PASS_TOKENS = 1024
SCORING = 22_000_000  # more
TRAINING = 15_000_000  # more, where products are of float32

# What oneDNN keeps for every further number of tokens that it has met, where it multiplies float32. Of bfloat16 and
# float16 it compiles a kernel for each size of a product, and never lets go of it: products of up to 2,000 numbers of
# rows kept 0.58 to 0.72 MB each, and runs with 22 to 84 products 20 to 69 MB (Zen 4: AVX-512 with bfloat16).
LENGTH = 13_000_000
KERNEL = 750_000

# Tokens computed at once that are fast on a CPU.
MICROBATCH_TOKENS = 512

# Of the bandwidth of memory that writing tokens reaches: of weights in few bits, by a kernel of ours
# (`benchmarks.decode`, 72 to 113%, medians 78 to 94%), and of others, by torch's products of one row
# (`benchmarks.prediction`, 37 to 50%).
DECODING = 0.8
DENSE_DECODING = 0.42
# Times what copying takes, that a layer takes which is read from disk for a single token and made float32.
FETCHED = 3.0

# What a server takes beside the model: bodies of requests and answers, connections, Python's objects.
SERVING = 48_000_000

# Copies of a row of logits that choosing a token makes, at most.
CHOOSING = 4

# The same as USE, of quantizing to nearest, and with calibration text, whose seconds go by in many more operations,
# from when the text has been read. Measured as it is: 8 to 22 MB, and 15 to 23 MB (`benchmarks.prediction`),
# with a 3B's widths 30 MB.
ROUNDING = 22_000_000
QUANTIZING = 30_000_000
