"""Which memories a config allows, and that a bank made by the decoder fits its layers."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig

SHAPE = {
    "vocabulary": 40, "width": 16, "layers": 3, "context": 64,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 8}, "feed_forward": {"width": 24},
    "memory": {"layers": [1], "top_k": 3, "block": 4, "capacity": 20},
}  # fmt: skip
LATENT = {"kind": "mla", "heads": 2, "latent_rank": 8, "content_width": 4, "rotary_width": 4, "value_width": 4}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": LATENT}, "memory searches keys and values, which attention of kind mla does not keep"),
        ({"memory": {"layers": [3]}}, r"memory.layers \(\[3\]\) must be below 3"),
        ({"sharing": {"unique_layers": 1}}, r"must be below 1, the number of blocks"),
        ({"memory": {"layers": [1, 1]}}, "must be different numbers"),
        ({"memory": {"layers": []}}, "at least 1 item"),
    ],
)
def test_impossible_memories_are_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ModelConfig.model_validate({**SHAPE, **changes})


def test_a_model_without_memory_has_no_bank():
    assert build(ModelConfig.model_validate({**SHAPE, "memory": None}), seed=0).new_memory(2) is None


@pytest.mark.parametrize("block", ["sequential", "reversible"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("sharing", [None, {"unique_layers": 2}], ids=["own", "shared"])
def test_a_bank_gives_the_same_gradients_however_blocks_are_run(block, recompute, sharing):
    config = ModelConfig.model_validate({**SHAPE, "layers": 4, "sharing": sharing, "block": block})
    results = []
    for mode in ("none", recompute):
        decoder = build(config, seed=0, dtype=torch.float64)
        decoder.activation_checkpointing = mode  # type: ignore[assignment]
        bank = decoder.new_memory(2)
        assert bank is not None and bank.slots == (1 if sharing is None else 2)
        tokens = torch.randint(0, 40, (2, 18), generator=torch.Generator().manual_seed(0))
        for start in (0, 9):
            positions = torch.arange(start, start + 9).unsqueeze(0)
            hidden, _ = decoder(tokens[:, start : start + 9], positions_BT=positions, memory=bank)
            hidden.pow(3).sum().backward()
            bank.commit()
        results.append([hidden.detach(), *(p.grad for p in decoder.parameters()), bank.keys, bank.values])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


def test_what_earlier_rows_held_changes_the_output():
    decoder = build(ModelConfig.model_validate(SHAPE), seed=0, dtype=torch.float64)
    tokens = torch.randint(0, 40, (1, 18), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(9, 18).unsqueeze(0)
    with torch.no_grad():
        alone, _ = decoder(tokens[:, 9:], positions_BT=positions)
        bank = decoder.new_memory(1)
        decoder(tokens[:, :9], memory=bank)
        bank.commit()
        continued, _ = decoder(tokens[:, 9:], positions_BT=positions, memory=bank)
    assert not torch.allclose(alone, continued)
