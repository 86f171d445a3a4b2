"""In which portions the output head and its loss are computed. Torch-free: predictions of memory count with these.

A trained head goes by chunks of rows (`nn.head_loss`), a frozen one by blocks of the vocabulary
(`nn.frozen_head_loss`), a comparison of two models by chunks of rows (`nn.base_distance`).
"""

from __future__ import annotations

CHUNK_BYTES = 100_000_000  # of float32 logits: large enough for full matmul speed, small beside the model
BLOCK_BYTES = 32_000_000  # of float32 weights in a block: full matmul speed, small buffers
LARGEST_BLOCK = 8192  # rows
STATES = 2048  # hidden states at once, which bounds the logits of a block; more of them read the head again
COMPARED_BYTES = 25_000_000  # of float32 logits of a comparison; three of that size are held


def chunk_rows(vocabulary: int) -> int:
    """Hidden states whose logits a trained head makes at once."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def block_rows(width: int) -> int:
    """Rows of a frozen head in a block, for hidden states of this width: the same resident and streamed."""
    return max(64, min(LARGEST_BLOCK, BLOCK_BYTES // (4 * width)))


def compared_rows(vocabulary: int) -> int:
    """Hidden states that are compared at once."""
    return max(1, COMPARED_BYTES // (4 * vocabulary))
