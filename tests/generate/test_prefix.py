"""What a conversation keeps from turn to turn, with caches that merge tokens and caches that do not."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.generate.prefix import PrefixCache
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn.attention.config import MTLAConfig
from shoestring.nn.config import GQAConfig
from shoestring.nn.feed_forward_config import SwiGLUConfig

ATTENTION = {
    "gqa": GQAConfig(heads=2, kv_heads=1, head_width=8),
    "gqa, window": GQAConfig(heads=2, kv_heads=1, head_width=8, window=3),
    "mtla": MTLAConfig(
        heads=2, latent_rank=8, content_width=4, rotary_width=4, value_width=4, stride=4, rollback=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("shared", [0, 1, 5, 6, 7, 13, 14])
def test_an_edited_conversation_is_read_as_if_it_were_new(kind, shared):
    decoder = build(
        ModelConfig(
            vocabulary=31, width=16, layers=2, context=64, attention=ATTENTION[kind],
            feed_forward=SwiGLUConfig(width=16), initializer_range=0.5,
        ),
        seed=0,
    )  # fmt: skip
    prefix = PrefixCache(decoder)
    first = list(range(1, 16))
    second = first[:shared] + [20, 21, 22]
    with torch.no_grad():
        for prompt in (first, second):
            cache = prefix.prepare(prompt, new_tokens=4)
            (held,) = cache.lengths
            assert held <= shared
            hidden = decoder(torch.tensor([prompt[held:]]), cache=cache)[0]
            prefix.remember(prompt)
            assert_close(hidden[0, -1], decoder(torch.tensor([prompt]))[0][0, -1])
    assert held > shared - 4 and (kind == "mtla" or held == shared)
