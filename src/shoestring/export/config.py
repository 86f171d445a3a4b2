"""What a model can be exported as, and in which number formats. Torch-free."""

from __future__ import annotations

from typing import Literal, get_args

Target = Literal["gguf", "onnx", "web"]
GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k_m"]
ONNXType = Literal["fp32", "int8", "int4"]
ExportType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k_m", "fp32", "int8", "int4"]
GGUF_TYPES: tuple[str, ...] = get_args(GGUFType)
ONNX_TYPES: tuple[str, ...] = get_args(ONNXType)
ADAPTER_TYPES = ("f32", "f16", "bf16")
"""Of a GGUF LoRA: its matrices are so small that fewer bits save nothing."""
