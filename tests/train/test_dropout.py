"""Masks of dropout belong to a place (step, rank, microbatch, layer): no two share one, however blocks are run."""

from __future__ import annotations

import pytest
import torch

from shoestring.core.seeds import seed_everything
from shoestring.finetuning.preserve import Preserving
from shoestring.models.adapters import attach
from shoestring.nn import lora
from shoestring.nn.lora_config import LoRAConfig
from shoestring.train import parallel
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.train import tiny

KINDS = {
    "sequential": {},
    "reversible": {"block": "reversible"},
    "value residual": {"value_residual": True},
    "shared": {"sharing": {"unique_layers": 1}},
}
LINEARS = 7  # of a block


def adapted(**changes):
    decoder = tiny.model(**changes)
    attach(decoder, LoRAConfig(rank=2, dropout=0.5), seed=1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith(".lora_B"):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
    return decoder.train()


@pytest.fixture
def masks(monkeypatch) -> list[bytes]:
    """Every mask that is drawn, in order."""
    drawn: list[bytes] = []
    dropout = lora.F.dropout

    def record(x, share):
        kept = dropout(torch.ones_like(x), share)
        drawn.append(bytes((kept[..., :16] > 0).flatten().tolist()))
        return x * kept

    monkeypatch.setattr(lora.F, "dropout", record)
    return drawn


def step(decoder, masks: list[bytes], rank: int = 0, monkeypatch=None) -> list[bytes]:
    """The masks of one optimizer step of two microbatches."""
    if monkeypatch is not None:
        monkeypatch.setattr(parallel, "rank", lambda: rank)
    masks.clear()
    ResidentEngine.around(decoder, next_token).forward_backward([tiny.batch(2), tiny.batch(2, seed=1)])
    return list(masks)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_place_has_the_masks_of_another_and_a_second_run_has_those_of_the_first(
    kind, recompute, masks, monkeypatch
) -> None:
    decoder = adapted(**KINDS[kind])
    decoder.activation_checkpointing = recompute
    seed_everything(5)
    steps = [step(decoder, masks), step(decoder, masks)]
    seed_everything(5)
    steps.append(step(decoder, masks, 1, monkeypatch))
    places = 2 * 2 * LINEARS  # of two microbatches, two layers
    again = kind == "reversible" or recompute == "full"
    for drawn in steps:
        assert len(drawn) == places * (1 + again) and len(set(drawn)) == places
    assert not set(steps[0]) & set(steps[1]), "the second step drew masks of the first"
    assert not set(steps[0]) & set(steps[2]), "the second rank drew masks of the first"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [True, False])
def test_what_a_seed_draws_does_not_depend_on_what_was_drawn_before(kind, graph) -> None:
    decoder, tokens = adapted(**KINDS[kind]), tiny.batch(2).tokens_BT
    found = []
    with torch.set_grad_enabled(graph):
        for before, seed in ((1, 7), (2, 7), (2, 8)):
            torch.manual_seed(before)
            found.append(decoder(tokens, seed=seed)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_a_penalty_of_another_rank_has_other_masks(masks, monkeypatch) -> None:
    decoder = adapted()
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        seed_everything(5)
        masks.clear()
        [penalty] = Preserving(next_token, decoder, iter([tiny.batch(2)])).penalties(0)
        penalty.value.backward()
        drawn.append(set(masks))
    assert len(drawn[0]) == 2 * LINEARS and not drawn[0] & drawn[1]
