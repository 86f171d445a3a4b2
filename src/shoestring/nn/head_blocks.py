"""In which portions the output head and its loss are computed. Torch-free: predictions of memory count with these.

A trained head goes by chunks of rows (`nn.head_loss`), a frozen one by blocks of the vocabulary
(`nn.frozen_head_loss`), a comparison of two models by chunks of rows (`nn.base_distance`).
"""

from __future__ import annotations

CHUNK_BYTES = 210_000_000  # of float32 logits: large enough for full matmul speed, small beside the model
BLOCK_BYTES = 32_000_000  # of float32 weights in a block: full matmul speed, small buffers
LARGEST_BLOCK = 8192  # rows
STATES = 2048  # hidden states at once, which bounds the logits of a block; more of them read the head again
_LINE = 16  # numbers of float32 in a line of a processor's cache
COMPARED_BYTES = 25_000_000  # of float32 logits of a comparison; three of that size are held


def chunk_rows(vocabulary: int) -> int:
    """Hidden states whose logits a trained head makes at once, at most."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def even_rows(count: int, most: int) -> int:
    """Of a chunk, where `count` rows go in as few chunks as can be: a short last one would multiply slowly."""
    chunks = max(1, -(-count // most))
    return max(1, -(-count // chunks))


def row_stride(vocabulary: int) -> int:
    """Numbers from one row of float32 logits to the next.

    Rows that are a multiple of 1 kB apart begin in the same few sets of a cache, where packing their columns for a
    product evicts what it has just read: a fifth of the product's time on a Zen 3.
    """
    stride = -(-vocabulary // _LINE) * _LINE
    return stride + _LINE if stride % (16 * _LINE) == 0 else stride


def block_rows(width: int) -> int:
    """Rows of a frozen head in a block, for hidden states of this width: the same resident and streamed."""
    return max(64, min(LARGEST_BLOCK, BLOCK_BYTES // (4 * width)))


def compared_rows(vocabulary: int) -> int:
    """Hidden states that are compared at once."""
    return max(1, COMPARED_BYTES // (4 * vocabulary))
