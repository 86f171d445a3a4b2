"""/v1/embeddings: a text's vector, of unit length: the mean of the last hidden states, or that of the last token.

A model that was taught to continue text makes vectors that say what a text is about, if not as well as one that was
taught that. They are computed by the thread that owns the model, an input between any two steps of the texts.
"""

from __future__ import annotations

import base64
import functools
from typing import Any

import numpy as np
import torch

from shoestring.core.errors import ConfigError
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import check_prompt
from shoestring.serve.http.catalog import Served
from shoestring.serve.http.completion_request import EmbeddingRequest
from shoestring.serve.http.errors import blaming
from shoestring.serve.http.front import Front


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
    data = []
    for index, ids in enumerate(inputs):
        compute = functools.partial(vector_of, served.language, ids, body.pooling)
        vector = await front.compute(served.lane, compute)
        shown: Any = vector.tolist()
        if body.encoding_format == "base64":
            shown = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(map(len, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


@torch.inference_mode()
def vector_of(language: LanguageModel, ids: list[int], pooling: str) -> np.ndarray:
    """float32 [D], of unit length."""
    tokens_BT = torch.tensor([ids], device=language.decoder.embedding.weight.device)
    hidden_BTD, _ = language.decoder(tokens_BT)
    hidden_TD = hidden_BTD[0].float()
    vector_D = hidden_TD[-1] if pooling == "last" else hidden_TD.mean(0)
    return (vector_D / vector_D.norm().clamp_min(1e-12)).cpu().numpy()
