"""The yardstick for bits per byte: `xz -9e` on each held-out document separately, as the model reads them.

A compressor that has seen nothing else but the document is what the model has to beat. The sizes are those
of .xz files (container included), as the command line tool writes them.
"""

from __future__ import annotations

import lzma

from shoestring.data.shards import ShardFolder
from shoestring.train.state import HeldOut

_LARGEST = 30_000_000  # bytes of held-out text that are worth the wait; xz -9e does about 3 MB a second


def xz_bytes(shards: ShardFolder, held_out: HeldOut) -> int | None:
    """What `xz -9e` makes of the documents that were measured; None where they were not all, or take too long."""
    every_document = held_out.documents == shards.document_count("validation")
    if not (every_document and held_out.bytes <= _LARGEST and shards.tokenizer.is_byte_level):
        return None
    return xz_bits_per_byte(shards)[2]


def xz_bits_per_byte(shards: ShardFolder, split: str = "validation") -> tuple[float, int, int]:
    """(bits per byte, bytes of text, bytes compressed) over the documents of a split.

    Raises TokenizerError if not byte-level.
    """
    pieces = shards.tokenizer.token_bytes()
    text = compressed = 0
    for document in shards.documents_of(split):
        content = b"".join(pieces[i] for i in document.tokens.tolist())
        text += len(content)
        compressed += len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    return 8 * compressed / max(text, 1), text, compressed
