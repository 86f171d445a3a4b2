"""The keys and values of one conversation, kept from turn to turn.

The next prompt is compared token by token with what the cache was computed from: the common start is kept,
the rest is forgotten and read again. So a conversation that only grew costs its new tokens, and an edited
one is still exact.
"""

from __future__ import annotations

from shoestring.models.decoder import Decoder
from shoestring.nn.cache import Cache

_FIRST_CAPACITY = 1024


class PrefixCache:
    """One row. `tokens` are what the cache holds the keys and values of."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.tokens: list[int] = []
        self._cache: Cache | None = None

    def prepare(self, prompt: list[int], new_tokens: int) -> Cache:
        """The cache cut to the start it shares with `prompt`, never all of it, with room for what comes."""
        shared = 0
        for held, wanted in zip(self.tokens, prompt[:-1], strict=False):
            if held != wanted:
                break
            shared += 1
        needed = min(len(prompt) + new_tokens, self.decoder.config.context)
        if self._cache is None:
            self._cache = self.decoder.new_cache(
                1, min(max(needed, _FIRST_CAPACITY), self.decoder.config.context)
            )
        # A cache that merges tokens can only be cut at some places.
        (shared,) = self._cache.truncatable([shared])
        self._cache.truncate([shared])
        self.tokens = self.tokens[:shared]
        if self._cache.capacity < needed:
            larger = self.decoder.new_cache(
                1, min(max(needed, 2 * self._cache.capacity), self.decoder.config.context)
            )
            larger.restore(self._cache.state())
            self._cache = larger
        return self._cache

    def remember(self, tokens: list[int]) -> None:
        """Say what was fed since `prepare`: prompt and new tokens; the last may not have been read."""
        assert self._cache is not None
        self.tokens = tokens[: self._cache.lengths[0]]

    def clear(self) -> None:
        self.tokens, self._cache = [], None
