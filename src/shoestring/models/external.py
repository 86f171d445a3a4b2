"""The source of external embeddings that a model's input adapter names: encoder, tokenizer and alignment together.

Training and decoding both open it here, so that a token gets the same vector in both.
"""

from __future__ import annotations

import numpy as np

from shoestring.core.errors import ConfigError
from shoestring.data.external import External, SpanVectors
from shoestring.data.external_config import SpanEmbeddingsConfig
from shoestring.data.external_tokens import TokenVectors
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.config import ModelConfig
from shoestring.models.encoder import load_causal_encoder, load_encoder
from shoestring.models.resolve import Say, find_model


def open_external(config: ModelConfig, tokenizer: Tokenizer, say: Say | None = None) -> External | None:
    """What `config.input_adapter.source` names; None where the model has no adapter, or its caller gives vectors.

    tokenizer: the model's own. say: told in a sentence what is being waited for. Raises ModelFileError and
    NetworkError when the encoder cannot be had, ConfigError when its vectors have another width.
    """
    adapter = config.input_adapter
    if adapter is None or adapter.source is None:
        return None
    source, folder = adapter.source, find_model(adapter.source.encoder, say=say, encoder=True)
    if isinstance(source, SpanEmbeddingsConfig):
        encoder = load_encoder(folder)

        def encode(texts: list[str]) -> np.ndarray:
            return encoder.encode(texts).numpy()

        external: External = SpanVectors(tokenizer, encode, encoder.width, source.span, encoder.fingerprint)
    else:
        causal = load_causal_encoder(folder)
        external = TokenVectors(tokenizer, causal.encode, causal.width)
    if external.width != adapter.external_width:
        raise ConfigError(
            f"{source.encoder} gives vectors of width {external.width}, the input adapter takes"
            f" {adapter.external_width}",
            hint=f"set model.input_adapter.external_width to {external.width}",
        )
    return external
