"""Which documents are left out of a corpus. Torch-free, as every config."""

from __future__ import annotations

from pydantic import Field

from shoestring.core.config import Config


class NearDuplicateConfig(Config):
    """Documents that are alike without being equal, by MinHash in buckets, as FineWeb does (arXiv 2406.17557).

    A bucket agrees where all of its MinHashes do; one that agrees with an earlier document's is enough. So what is s
    alike (the share of n-grams that two documents have in common of those that either has) is found with a chance of
    1 − (1 − s^hashes)^buckets: with 14 × 8, 21% at 0.6, 56% at 0.7, 92% at 0.8, 99.96% at 0.9.
    """

    buckets: int = Field(14, ge=1, le=256, description="groups of MinHashes; more of them find more")
    hashes: int = Field(8, ge=1, le=64, description="MinHashes in a bucket, which must all agree; more find less")
    words: int = Field(5, ge=1, le=64, description="words in an n-gram; shorter documents have no near-duplicates")
    seed: int = Field(1, ge=0, description="of the MinHashes")

    def chance(self, alike: float) -> float:
        """That a document is found whose n-grams are `alike` (Jaccard, 0 to 1) to those of one that was kept."""
        return 1 - (1 - alike**self.hashes) ** self.buckets

    @property
    def threshold(self) -> float:
        """Where that chance rises fastest, about: (1 / buckets)^(1 / hashes)."""
        return (1 / self.buckets) ** (1 / self.hashes)


class QualityConfig(Config):
    """What is left out, each kind with a count. The first of several equal or similar documents stays."""

    exact_duplicates: bool = Field(True, description="leave out documents equal to an earlier one, byte for byte")
    # One: a document without a visible character can teach nothing, whatever the corpus is. Anything above is a
    # judgement of quality (an answer "7", a line of a dialogue), which the filters below make where they are asked to.
    shortest: int = Field(
        1, ge=0, description="leave out documents with fewer characters than this, white space not counted"
    )
    near_duplicates: bool | NearDuplicateConfig = Field(
        False, description="leave out documents much like an earlier one: true, or the settings of MinHash"
    )
    gopher_quality: bool = Field(False, description="leave out what breaks Gopher's rules of quality, for English")
    gopher_repetition: bool = Field(False, description="leave out what repeats itself, by Gopher's rules")
    fineweb: bool = Field(False, description="leave out what breaks FineWeb's own rules: lists, lines cut short")

    @property
    def minhash(self) -> NearDuplicateConfig | None:
        """The settings of MinHash where near-duplicates are looked for."""
        if isinstance(self.near_duplicates, NearDuplicateConfig):
            return self.near_duplicates
        return NearDuplicateConfig() if self.near_duplicates else None

    @property
    def filters(self) -> bool:
        """Whether any rule looks at words."""
        return self.gopher_quality or self.gopher_repetition or self.fineweb
