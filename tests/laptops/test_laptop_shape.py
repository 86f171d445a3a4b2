"""A job's shape goes to the process that plans as JSON, and is the same there."""

from __future__ import annotations

import json

from shoestring.laptops.shape import from_json, to_json
from shoestring.nn.quantized.config import PackedConfig
from shoestring.plan.shapes import JobShape, Training
from tests.plan import counted


def test_a_shape_comes_back_as_it_was():
    packed = frozenset({("feed_forward.down", PackedConfig(bits=8)), ("feed_forward.up", PackedConfig())})
    training = Training(False, 4, frozenset({"attention.query"}), packed=packed)
    shape = JobShape(counted.config(64), 4, 100, training, asked=(3, 20, 8), lengths=(0.25, 0.75), alike=True, steps=7)
    again = from_json(json.loads(json.dumps(to_json(shape))))
    assert again == shape and hash(again) == hash(shape)
