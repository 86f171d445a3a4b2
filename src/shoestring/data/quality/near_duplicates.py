"""Documents that are alike without being equal: MinHash signatures in buckets, one pass, in the order of the source.

A document is left out where one of its buckets agrees with that of an earlier document that was kept. FineWeb does the
same for each dump, but keeps a random one of those that belong together, for which all must be read first.

The MinHashes are rensa's (the extra `data`): its R-MinHash hashes each n-gram to 64 bits and keeps the upper 32 of
a·h + b. Of a bucket only a key of 64 bits is held, so that a document takes 8 bytes for each, and the table's slack,
and ten million of them 2 GB with 14. What is stored for going on is those keys.
"""

from __future__ import annotations

import struct

import numpy as np

from shoestring.core.extras import need
from shoestring.data.quality.config import NearDuplicateConfig
from shoestring.data.quality.duplicates import Seen, bytes_hash
from shoestring.data.quality.words import plain_words

_PROBE = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all"


def need_rensa() -> None:
    """Raises ConfigError where the library is not installed."""
    need("rensa", "near_duplicates", "data")


def bucket_keys(text: str, config: NearDuplicateConfig) -> np.ndarray:
    """uint64 [buckets]; zeros for a document of fewer than `config.words` words, which is like no other."""
    import rensa

    words = plain_words(text)
    if len(words) < config.words:
        return np.zeros(config.buckets, np.uint64)
    grams = list(map(" ".join, zip(*(words[n:] for n in range(config.words)), strict=False)))
    sketch = rensa.RMinHash(num_perm=config.buckets * config.hashes, seed=config.seed)
    sketch.update(grams)
    hashes = sketch.digest()
    size, packed = 4 * config.hashes, struct.pack(f"<{len(hashes)}I", *hashes)
    parts = (packed[n * size : (n + 1) * size] for n in range(config.buckets))
    keys = [bytes_hash(n.to_bytes(2, "little") + part) for n, part in enumerate(parts)]
    return np.array(keys, np.uint64)


def probe(config: NearDuplicateConfig) -> str:
    """A word for how keys are made: another one for other settings, or a library that hashes otherwise."""
    return f"{bytes_hash(bucket_keys(_PROBE * 9, config).tobytes()):016x}"


class NearDuplicates:
    """The keys of the documents that were kept. Raises ConfigError where the library is not installed."""

    def __init__(self, config: NearDuplicateConfig) -> None:
        need_rensa()
        self.config = config
        self._seen = Seen()

    def like(self, keys: np.ndarray) -> bool:
        """Whether one that was kept agrees in a bucket. keys: of `bucket_keys`."""
        return any(key in self._seen for key in keys.tolist() if key)

    def keep(self, keys: np.ndarray) -> None:
        for key in keys.tolist():
            if key:
                self._seen.add(key)

    def update(self, keys: np.ndarray) -> None:
        """Keep uint64 [...]: the keys of any number of documents."""
        self._seen.update(keys[keys != 0])

    def dump(self) -> np.ndarray:
        """uint64 [n]: what `update` takes."""
        return self._seen.dump()
