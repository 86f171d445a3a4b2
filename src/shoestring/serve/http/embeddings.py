"""/v1/embeddings: a text's vector, of unit length: the mean of the last hidden states, or that of the last token.

A model that was taught to continue text makes vectors that say what a text is about, if not as well as one that was
taught that. They are computed by the thread that owns the model, some tokens between any two steps of the texts, so
that those who read an answer do not wait for a long input.
"""

from __future__ import annotations

import base64
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import check_prompt
from shoestring.nn.cache import Cache
from shoestring.serve.http.catalog import Served
from shoestring.serve.http.completion_request import EmbeddingRequest
from shoestring.serve.http.errors import blaming
from shoestring.serve.http.front import Front
from shoestring.serve.http.lane import PREFILL_TOKENS


def plan_embeddings(served: Served, body: EmbeddingRequest) -> list[list[int]]:
    """Ids of each input; names of special tokens in it are text. Raises ApiError."""
    language, found = served.language, []
    with blaming("model"):
        if language.decoder.config.input_adapter is not None:
            raise ConfigError("this model takes vectors from another one, and makes none by itself")
    with blaming("input"):
        for given in body.inputs:
            ids = language.encode_prompt(given, "text") if isinstance(given, str) else list(given)
            check_prompt(ids, served.lane.capacity, language.decoder.config.vocabulary)
            found.append(ids)
    return found


async def embed(front: Front, served: Served, body: EmbeddingRequest, inputs: list[list[int]]) -> dict[str, Any]:
    """The answer. Raises ApiError."""
    data, until = [], front.now + front.limits.seconds
    for index, ids in enumerate(inputs):
        vector = await front.compute(served.lane, vector_of(served.language, ids, body.pooling), until)
        shown: Any = vector.tolist()
        if body.encoding_format == "base64":
            shown = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(map(len, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


def vector_of(language: LanguageModel, ids: list[int], pooling: str) -> Generator[None, None, np.ndarray]:
    """float32 [D], of unit length. It yields wherever others may have their turn."""
    cache = language.decoder.new_cache(1, len(ids))
    total_D = torch.zeros(language.decoder.config.width, dtype=torch.float64)
    for start in range(0, len(ids), PREFILL_TOKENS):
        if start:
            yield
        hidden_TD = _read(language, cache, ids[start : start + PREFILL_TOKENS])
        total_D = hidden_TD[-1].double() if pooling == "last" else total_D + hidden_TD.double().sum(0)
    return (total_D / total_D.norm().clamp_min(1e-12)).float().numpy()


@torch.inference_mode()
def _read(language: LanguageModel, cache: Cache, ids: list[int]) -> Tensor:
    """The next tokens' hidden states [T, D]."""
    tokens_BT = torch.tensor([ids], device=language.decoder.embedding.weight.device)
    hidden_BTD, _ = language.decoder(tokens_BT, cache=cache.rows([0], [len(ids)]))
    return hidden_BTD[0].cpu()
