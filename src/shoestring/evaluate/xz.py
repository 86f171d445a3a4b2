"""The yardstick for bits per byte: `xz -9e` on each held-out document separately, as the model reads them.

A compressor that has seen nothing else but the document is what the model has to beat. The sizes are those
of .xz files (container included), as the command line tool writes them.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable

from shoestring.data.corpus import Corpus, Prepared
from shoestring.data.shards import ShardDocument, ShardFolder
from shoestring.data.tokenizer import Tokenizer
from shoestring.train.state import HeldOut

_LARGEST = 30_000_000  # bytes of held-out text that are worth the wait; xz -9e does about 3 MB a second


def xz_bytes(corpus: Corpus, held_out: HeldOut) -> int | None:
    """What `xz -9e` makes of the documents that were measured; None where they were not all, or take too long."""
    every_document = isinstance(corpus, Prepared) and held_out.documents == corpus.document_count("validation")
    if not (every_document and held_out.bytes <= _LARGEST and corpus.tokenizer.is_byte_level):
        return None
    return _compressed(corpus.held_out_documents(), corpus.tokenizer)[1]


def xz_bits_per_byte(shards: ShardFolder, split: str = "validation") -> tuple[float, int, int]:
    """(bits per byte, bytes of text, bytes compressed) over the documents of a split.

    Raises TokenizerError if not byte-level.
    """
    text, compressed = _compressed(shards.documents_of(split), shards.tokenizer)
    return 8 * compressed / max(text, 1), text, compressed


def _compressed(documents: Iterable[ShardDocument], tokenizer: Tokenizer) -> tuple[int, int]:
    """Bytes of text, and of what is left of it."""
    pieces = tokenizer.token_bytes()
    text = compressed = 0
    for document in documents:
        content = b"".join(pieces[i] for i in document.tokens.tolist())
        text += len(content)
        compressed += len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    return text, compressed
