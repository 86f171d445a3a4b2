"""Which format each tensor of a GGUF file gets: the mixtures of llama.cpp's own quantizer.

Vectors and the routers of experts stay float32. The head, or the embedding that is also the head, has six or eight bits
where the other matrices have four. Q4_K_M gives value projections and down projections six bits in the first and last
eighth of the layers and in every third between. A row that does not divide into a format's blocks gets a format with
smaller ones, at last float16. Source: llama_tensor_get_type in llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from gguf.constants import GGMLQuantizationType as Kind

from shoestring.export.config import GGUFType

_KINDS: dict[GGUFType, Kind] = {
    "f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_1": Kind.Q4_1,
    "q4_k_m": Kind.Q4_K,
}  # fmt: skip
FILE_TYPES: dict[GGUFType, LlamaFileType] = {
    "f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0, "q4_0": LlamaFileType.MOSTLY_Q4_0, "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}  # fmt: skip
_WITH_SMALLER_BLOCKS = {Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}
_ROLE = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_EIGHT = 8  # experts of Mixtral, whose attention is so small a part of it that llama.cpp gives it more bits


@dataclass(frozen=True)
class Mixture:
    """asked: what the user calls it. tied: the embedding is the head. experts: of each layer, 0 for none."""

    asked: GGUFType
    layers: int
    tied: bool
    experts: int = 0

    def kind(self, name: str, shape: tuple[int, ...]) -> Kind:
        """The format of the tensor of this name in the file."""
        if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
            return Kind.F32
        kind = _KINDS[self.asked]
        if self.asked.startswith("q"):
            kind = self._mixed(name, kind)
        while shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = _WITH_SMALLER_BLOCKS.get(kind, Kind.F16)
        return kind

    def _mixed(self, name: str, kind: Kind) -> Kind:
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return kind if kind == Kind.Q8_0 else Kind.Q6_K
        match = _ROLE.fullmatch(name)
        if match is None or self.asked == "q8_0":
            return kind
        layer, role = int(match[1]), match[2]
        eight, mixed = self.experts == _EIGHT, self.asked == "q4_k_m"
        if role == "attn_v" or role == "attn_k":
            six = mixed and role == "attn_v" and self._more_bits(layer)
            return Kind.Q8_0 if eight else Kind.Q6_K if six else kind
        if role.startswith("ffn_down") and mixed and self._more_bits(layer):
            return Kind.Q6_K
        return Kind.Q5_K if role == "attn_output" and mixed and eight else kind

    def _more_bits(self, layer: int) -> bool:
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
