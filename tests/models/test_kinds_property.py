"""Random valid configs over all kinds, built tiny: everything that must hold of any decoder holds of each.

Seeds are fixed, so a failure names the config that shows it: `draw_config(seed)`. Weights are scaled up, or every
output would be nearly the same; computation is in float64, so that a fast path may differ in the last bits alone.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch.testing import assert_close

from shoestring.data.batch import Batch
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.models.kinds import CONTEXT, VOCABULARY, draw_config

IN_CI = 96
FEW, MANY = range(IN_CI), range(IN_CI, IN_CI + 5000, 50)
TOKENS = 9


def model(seed: int) -> Decoder:
    decoder = build(draw_config(seed), seed=seed, dtype=torch.float64).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim > 1 and not name.startswith(("embedding", "head")):
                parameter.normal_(0, 0.3, generator=noise)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=noise)
            else:
                parameter.mul_(10 if parameter.ndim > 1 else 1)
    return decoder


def tokens(rows: int, count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(seed))


def external(decoder: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor | None:
    """For a model that takes them, a vector for each token, which has seen nothing but the token."""
    adapter = decoder.config.input_adapter
    if adapter is None:
        return None
    noise = torch.Generator().manual_seed(0)
    return torch.randn(VOCABULARY, adapter.external_width, generator=noise, dtype=torch.float64)[tokens_BT]


@torch.no_grad()
def hidden(decoder: Decoder, tokens_BT: torch.Tensor, **given) -> torch.Tensor:
    return decoder(tokens_BT, external_BTE=external(decoder, tokens_BT), **given)[0]


def check_count(decoder: Decoder) -> None:
    parts = decoder.config.parameters()
    assert sum(parts.values()) == decoder.parameter_count() == decoder.config.parameter_count()


def make_batch(decoder: Decoder, tokens_BT: torch.Tensor, dtype: torch.dtype) -> Batch:
    rows, count = tokens_BT.shape
    positions = torch.arange(count - 1).expand(rows, count - 1)
    inputs = tokens_BT[:, :-1]
    vectors = external(decoder, inputs)
    vectors = None if vectors is None else vectors.to(dtype)
    return Batch(inputs, tokens_BT[:, 1:], positions, torch.zeros_like(positions), vectors)


def check_loss_and_gradients(decoder: Decoder, tokens_BT: torch.Tensor) -> None:
    batch = make_batch(decoder, tokens_BT, torch.float64)
    for recompute in ("none", "selective", "full"):
        decoder.activation_checkpointing = recompute  # type: ignore[assignment]
        decoder.zero_grad()
        loss = ResidentEngine.around(decoder, next_token).forward_backward([batch])
        assert torch.isfinite(loss.sum) and loss.mean > 0
        gradients = {name: p.grad for name, p in decoder.named_parameters() if p.requires_grad}
        assert all(g is not None and torch.isfinite(g).all() for g in gradients.values()), [
            name for name, g in gradients.items() if g is None or not torch.isfinite(g).all()
        ]
        if recompute == "none":
            kept = gradients
        for name, gradient in gradients.items():
            assert_close(gradient, kept[name], msg=lambda text, where=(recompute, name): f"{where}: {text}")


def check_causality(decoder: Decoder, tokens_BT: torch.Tensor, place: int) -> None:
    changed = tokens_BT.clone()
    changed[:, place] = (changed[:, place] + 1) % VOCABULARY
    before, after = hidden(decoder, tokens_BT), hidden(decoder, changed)
    assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-12)
    assert ((before - after)[:, place].abs().amax(-1) > 1e-9).all(), "the token must matter to itself"


def check_cache(decoder: Decoder, tokens_BT: torch.Tensor, seed: int) -> None:
    """A prompt, appends of one and several tokens, a cut and a swap of rows, against the whole sequence."""
    whole = hidden(decoder, tokens_BT)
    cache = decoder.new_cache(len(tokens_BT), CONTEXT)
    cuts = [0, 1 + seed % 4, 2 + seed % 4, 3 + seed % 4, TOKENS]
    for start, end in zip(cuts[:-1], cuts[1:], strict=True):
        assert_close(hidden(decoder, tokens_BT[:, start:end], cache=cache), whole[:, start:end])
    assert cache.lengths == [TOKENS] * len(tokens_BT)
    shorter = cache.truncatable([TOKENS - 2, TOKENS - 1])
    cache.truncate(shorter)
    cache.reorder([1, 0])
    for row, length in ((0, shorter[1]), (1, shorter[0])):
        assert cache.lengths[row] == length
    following = torch.stack([tokens_BT[1 - row, length] for row, length in enumerate(cache.lengths)])
    after = hidden(decoder, following.unsqueeze(1), cache=cache)[:, 0]
    assert_close(after, torch.stack([whole[1, shorter[1]], whole[0, shorter[0]]]))


def check_slots(decoder: Decoder, tokens_BT: torch.Tensor, seed: int) -> None:
    """Passes over some of four slots, each with so many tokens, against the whole sequence; the others stay as they
    are, though fresh memory reads as NaN."""
    rng, whole = random.Random(seed), hidden(decoder, tokens_BT)
    cache = decoder.new_cache(4, CONTEXT)
    tensors = [tensor for group in cache.tensors.values() for tensor in group] + getattr(cache, "recent", [])
    for tensor in tensors:
        tensor.fill_(float("nan"))
    row_of = dict(zip(rng.sample(range(4), 2), range(2), strict=True))
    while min(cache.lengths[slot] for slot in row_of) < TOKENS:
        slots = [slot for slot in rng.sample(list(row_of), rng.choice([1, 2])) if cache.lengths[slot] < TOKENS]
        counts = [rng.randint(1, min(3, TOKENS - cache.lengths[slot])) for slot in slots]
        if not slots:
            continue
        spans = [(row_of[slot], cache.lengths[slot], count) for slot, count in zip(slots, counts, strict=True)]
        packed = torch.cat([tokens_BT[row, start : start + count] for row, start, count in spans]).unsqueeze(0)
        expected = torch.cat([whole[row, start : start + count] for row, start, count in spans])
        others = [slot for slot in range(4) if slot not in slots]
        before = [tensor[others].clone() for tensor in tensors]
        assert_close(hidden(decoder, packed, cache=cache.rows(slots, counts))[0], expected)
        for tensor, kept in zip(tensors, before, strict=True):
            assert_close(tensor[others], kept, rtol=0, atol=0, equal_nan=True)


def check_packing(decoder: Decoder, tokens_BT: torch.Tensor, seed: int) -> None:
    cut = 1 + seed % (TOKENS - 2)
    segments = torch.tensor([[0] * cut + [1] * (TOKENS - cut)] * len(tokens_BT))
    positions = torch.cat([torch.arange(cut), torch.arange(TOKENS - cut)]).expand_as(segments)
    packed = hidden(decoder, tokens_BT, positions_BT=positions, segments_BT=segments)
    assert_close(packed[:, :cut], hidden(decoder, tokens_BT[:, :cut]))
    assert_close(packed[:, cut:], hidden(decoder, tokens_BT[:, cut:]))


def check_saving(decoder: Decoder, tokens_BT: torch.Tensor, folder) -> None:
    save_model(decoder, folder)
    loaded = load_model(folder, dtype=torch.float64).eval()
    assert loaded.config.parameter_count() == decoder.config.parameter_count()
    for one, other in zip(hidden(decoder, tokens_BT), hidden(loaded, tokens_BT), strict=True):
        assert torch.equal(decoder.head(one), loaded.head(other))


def check_autocast(seed: int, tokens_BT: torch.Tensor) -> None:
    """In bfloat16 with weights in float32, as a run trains."""
    decoder = build(draw_config(seed), seed=seed)
    batch = make_batch(decoder, tokens_BT, torch.float32)
    exact = ResidentEngine.around(decoder, next_token).forward_backward([batch]).mean
    decoder.zero_grad()
    rounded = ResidentEngine.around(decoder, next_token, torch.bfloat16).forward_backward([batch]).mean
    assert rounded == pytest.approx(exact, rel=0.02)
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def assert_properties(seed: int, folder) -> None:
    decoder = model(seed)
    tokens_BT = tokens(2, TOKENS, seed)
    check_count(decoder)
    check_causality(decoder, tokens_BT, 2 + seed % (TOKENS - 3))
    check_cache(decoder, tokens_BT, seed)
    check_slots(decoder, tokens_BT, seed)
    check_packing(decoder, tokens_BT, seed)
    check_saving(decoder, tokens_BT, folder / "model")
    check_loss_and_gradients(decoder, tokens_BT)
    check_autocast(seed, tokens_BT)


@pytest.mark.parametrize("seed", FEW)
def test_what_must_hold_of_any_decoder_holds_of_a_random_one(seed, tmp_path):
    assert_properties(seed, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("start", MANY)
def test_what_must_hold_of_any_decoder_holds_of_thousands(start, tmp_path):
    for seed in range(start, start + 50):
        assert_properties(seed, tmp_path / str(seed))


def test_every_kind_is_drawn():
    """Or the properties above would hold of nothing."""
    found = [draw_config(seed) for seed in FEW]
    for part, kinds in {
        "attention": {"gqa", "mla", "mtla"},
        "feed_forward": {"swiglu", "gelu", "relu2", "moe"},
        "position": {"rope", "learned", "rope_learned", "none"},
        "linear": {"dense", "low_rank"},
    }.items():
        assert {getattr(config, part).kind for config in found} == kinds
    assert {config.block for config in found} == {"sequential", "reversible"}
    assert {config.block for config in found if config.memory} == {"sequential", "reversible"}
    assert {config.sharing.order for config in found if config.sharing} == {"cycle", "repeat"}
    assert {config.value_residual for config in found} == {True, False}
    assert {config.attention.window for config in found if config.attention.kind == "gqa"} == {None, 3}
