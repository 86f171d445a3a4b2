"""What a server takes that keeps to a budget: a model in memory, slots of its cache for several texts. Torch-free."""

from __future__ import annotations

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.plan.constants import BITS, CHOOSING, SERVING
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.shapes import Machine, Prediction
from shoestring.plan.tape import FLOAT

SLOTS = 16
CONTEXT = 4096  # tokens of a slot, where nobody says more


def predict_serving(
    config: ModelConfig, slots: int, context: int, machine: Machine, compute: str, lanes: int = 1, beside: int = 0,
    cache: float | None = None,
) -> Prediction:  # fmt: skip
    """One text alone, of the greatest length; what the others hold; requests and answers.

    context: tokens of a slot. lanes: models that share the weights, adapters and base, with as many slots each. beside:
    bytes of these adapters. cache: bytes of a token, where a cache was made; else as the config says.
    """
    alone = predict_use(config, Use(1, max(context - 1, 1), 1, compute=compute), machine, compute)
    if cache is None:
        cache = cache_numbers(config) * BITS[compute] / 8
    tensors = [
        *alone.tensors,
        (f"cache of {slots * lanes} slots", int(slots * lanes * context * cache)),
        ("choosing tokens", slots * config.vocabulary * FLOAT * CHOOSING),
    ]
    if beside:
        tensors.append(("adapters", beside))
    beside_tensors = (*alone.beside, ("requests and answers", SERVING))
    return Prediction(tuple(tensors), beside_tensors, 0.0, correction=alone.correction)
