"""Config of the memory bank. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config


class MemoryBankConfig(Config):
    """Top-k search in past keys and values (arXiv 2203.08913), built by `nn.memory.attention` and `nn.memory.bank`."""

    layers: tuple[int, ...] = Field(min_length=1, description="blocks that search the memory, counted from 0")
    top_k: int = Field(32, gt=0, description="entries that each query of each head finds")
    block: int = Field(
        512, gt=0, description="W: a token at position t searches what lies before floor(t/W)·W, one search a block"
    )
    capacity: int = Field(65_536, gt=0, description="newest entries kept of a document, or of the persistent store")
    scope: Literal["document", "persistent"] = Field(
        "document", description="document: a token finds its own document alone; persistent: also all that was stored"
    )
    store: Literal["ram", "file"] = Field("ram", description="file: memory-mapped, for stores larger than memory")
    exact_entries: int = Field(
        1_048_576, gt=0, description="up to so many entries are searched exactly; beyond, faiss-cpu searches"
    )

    @model_validator(mode="after")
    def _layers(self) -> MemoryBankConfig:
        if min(self.layers) < 0 or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers ({list(self.layers)}) must be different numbers from 0 on")
        return self

    def parameters(self, heads: int) -> int:
        """One gate for each head of each block that searches."""
        return heads * len(self.layers)
