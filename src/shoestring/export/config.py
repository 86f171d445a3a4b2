"""What a model can be exported as, and in which number formats. Torch-free."""

from __future__ import annotations

from typing import Literal, get_args

Target = Literal["gguf"]
GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k_m"]
GGUF_TYPES: tuple[str, ...] = get_args(GGUFType)
ADAPTER_TYPES = ("f32", "f16", "bf16")
"""Of a GGUF LoRA: its matrices are so small that fewer bits save nothing."""
