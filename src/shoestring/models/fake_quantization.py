"""Have all linears of a decoder's blocks compute as they will when they are quantized, while their weights are trained.

Those of `quantize`, adapted ones and frozen ones too, so that what is measured on the way is the model that is kept.
Embedding, head and norms stay as they are, as there.
"""

from __future__ import annotations

from shoestring.core.errors import ConfigError
from shoestring.models.decoder import Decoder
from shoestring.models.families.common import dense_parts
from shoestring.nn.quantized.config import FakeQuantizedConfig, PackedConfig
from shoestring.nn.replace import replace_linears


def fake_quantize_blocks(decoder: Decoder, config: PackedConfig) -> list[str]:
    """In place, adapters attached before; -> the linears' names. Raises ConfigError for models that `quantize` does
    not take, and for what `nn.quantized.fake` refuses."""
    if dense_parts(decoder.config) is None:
        raise ConfigError(
            "quantize: only models with grouped-query attention, SwiGLU and rotary positions in every layer can be"
            " quantized afterwards",
            hint="leave out quantize",
        )
    wanted = FakeQuantizedConfig(grid=config)
    return replace_linears(decoder, wanted, lambda name, _: name.startswith("blocks.") and not name.endswith(".base"))
