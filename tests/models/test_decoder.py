"""The decoder: what a token may depend on, packed = separate, cached = uncached, checkpointed = kept."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close

from shoestring.models.builder import build, build_block
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.nn.cache import KVCache
from tests.models.test_count import KINDS
from tests.models.test_count import config as count_config

VARIANTS = {
    "llama": {},
    "biases": {"qkv_bias": True, "output_bias": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_width": 12},
}


def config(tied: bool = True, layers: int = 2, width: int = 32, **attention) -> ModelConfig:
    shape = {"heads": 4, "kv_heads": 2, "head_width": 8, **attention}
    return ModelConfig.model_validate({
        "vocabulary": 61, "width": width, "layers": layers, "context": 64, "attention": shape,
        "feed_forward": {"width": 48, "bias": attention.get("output_bias", False)}, "tied_head": tied,
    })  # fmt: skip


def model(variant: str = "llama", **options) -> Decoder:
    """Weights ten times larger than fresh ones, or every output would be nearly the same."""
    decoder = build(config(**{**VARIANTS[variant], **options}), seed=0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
            elif not name.endswith("norm.weight"):
                parameter.mul_(10)
    return decoder


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (rows, count), generator=torch.Generator().manual_seed(seed))


every_variant = pytest.mark.parametrize("variant", VARIANTS)


# What a token depends on


@every_variant
def test_a_token_changes_its_own_and_later_outputs_alone(variant):
    decoder, tokens_BT = model(variant), tokens(1, 12)
    changed = tokens_BT.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 61
    with torch.no_grad():
        before, after = decoder(tokens_BT)[0][0], decoder(changed)[0][0]
    assert torch.equal(before[:5], after[:5])
    assert ((before[5:] - after[5:]).abs().amax(-1) > 1e-3).all()


@every_variant
def test_packed_documents_compute_what_each_computes_alone(variant):
    decoder, sizes = model(variant), [5, 1, 6]
    tokens_BT = tokens(1, sum(sizes))
    positions = torch.cat([torch.arange(size) for size in sizes]).unsqueeze(0)
    segments = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)]).unsqueeze(0)
    packed = decoder(tokens_BT, positions, segments)[0]
    (packed**2).sum().backward()
    gradients = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    alone = torch.cat([decoder(part)[0] for part in tokens_BT.split(sizes, dim=1)], dim=1)
    (alone**2).sum().backward()
    assert_close(packed, alone)
    for name, parameter in decoder.named_parameters():
        assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_documents_packed_without_segments_see_each_other():
    decoder, tokens_BT = model(), tokens(1, 8)
    with torch.no_grad():
        whole = decoder(tokens_BT)[0][:, 4:]
        alone = decoder(tokens_BT[:, 4:])[0]
    assert (whole - alone).abs().max() > 1e-2


# The cache


def filled(decoder: Decoder, tokens_BT: torch.Tensor, counts: list[int], capacity: int = 20):
    """A cache that holds the first counts[b] tokens of row b; unwritten memory reads as NaN."""
    cache = decoder.new_cache(len(counts), capacity)
    for tensor in cache.keys + cache.values:
        tensor.fill_(float("nan"))
    return append(decoder, tokens_BT, counts, cache), cache


def append(decoder: Decoder, tokens_BT: torch.Tensor, counts: list[int], cache: KVCache) -> torch.Tensor:
    longest = max(counts)
    segments = torch.tensor([[0] * count + [-1] * (longest - count) for count in counts])
    with torch.no_grad():
        return decoder(tokens_BT[:, :longest], segments_BT=segments, cache=cache)[0]


def uncached(decoder: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder(tokens_BT)[0]


@every_variant
def test_ragged_rows_decoded_step_by_step_equal_each_row_alone(variant):
    decoder, tokens_BT, counts = model(variant), tokens(3, 14), [7, 2, 4]
    hidden, cache = filled(decoder, tokens_BT, counts)
    whole = uncached(decoder, tokens_BT)
    for row, count in enumerate(counts):
        assert_close(hidden[row, :count], whole[row, :count])
    for step in range(5):
        following = torch.stack([tokens_BT[row, count + step] for row, count in enumerate(counts)])
        with torch.no_grad():
            hidden = decoder(following.unsqueeze(1), cache=cache)[0]
        for row, count in enumerate(counts):
            assert_close(hidden[row, 0], whole[row, count + step])
    assert cache.lengths == [12, 7, 9]


@pytest.mark.parametrize("counts", [[4, 4], [6, 1]])
def test_several_tokens_appended_at_once_equal_the_whole_sequence(counts):
    decoder, tokens_BT = model(), tokens(2, 14)
    _, cache = filled(decoder, tokens_BT, counts)
    following = torch.stack([tokens_BT[row, count : count + 5] for row, count in enumerate(counts)])
    hidden = append(decoder, following, [5, 3], cache)
    whole = uncached(decoder, tokens_BT)
    assert_close(hidden[0], whole[0, counts[0] : counts[0] + 5])
    assert_close(hidden[1, :3], whole[1, counts[1] : counts[1] + 3])
    assert cache.lengths == [counts[0] + 5, counts[1] + 3]


def next_hidden(decoder: Decoder, cache: KVCache, following: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return decoder(torch.tensor(following).unsqueeze(1), cache=cache)[0][:, 0]


def test_a_truncated_cache_continues_as_if_the_tokens_had_never_been():
    decoder, tokens_BT = model(), tokens(2, 14)
    _, cache = filled(decoder, tokens_BT, [9, 6])
    cache.truncate([3, 6])
    hidden = next_hidden(decoder, cache, [11, 12])
    for row, length in enumerate([3, 6]):
        alone = torch.cat([tokens_BT[row, :length], torch.tensor([11 + row])]).unsqueeze(0)
        assert_close(hidden[row], uncached(decoder, alone)[0, -1])


@pytest.mark.parametrize("rows", [[1, 0], [1, 1, 0], [1]])
def test_a_reordered_cache_continues_the_rows_it_copied(rows):
    decoder, tokens_BT, counts = model(), tokens(2, 14), [8, 3]
    _, cache = filled(decoder, tokens_BT, counts)
    cache.reorder(rows)
    assert cache.lengths == [counts[row] for row in rows]
    hidden = next_hidden(decoder, cache, [5] * len(rows))
    for place, row in enumerate(rows):
        alone = torch.cat([tokens_BT[row, : counts[row]], torch.tensor([5])]).unsqueeze(0)
        assert_close(hidden[place], uncached(decoder, alone)[0, -1])


def test_a_saved_cache_continues_where_it_was():
    decoder, tokens_BT = model(), tokens(2, 14)
    _, cache = filled(decoder, tokens_BT, [8, 3])
    state = {name: tensor.clone() for name, tensor in cache.state().items()}
    expected = next_hidden(decoder, cache, [5, 6])
    other = decoder.new_cache(2, 30)
    for tensor in other.keys + other.values:
        tensor.fill_(float("nan"))
    other.restore(state)
    assert other.lengths == [8, 3]
    assert_close(next_hidden(decoder, other, [5, 6]), expected)


def test_a_cache_that_is_full_refuses_and_stays_as_it_was():
    decoder, tokens_BT = model(), tokens(2, 14)
    _, cache = filled(decoder, tokens_BT, [10, 3], capacity=10)
    with pytest.raises(ValueError, match="capacity"):
        decoder(tokens_BT[:, :1], cache=cache)
    assert cache.lengths == [10, 3]
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate([11, 3])


def test_a_cache_counts_its_bytes():
    cache = build(config(), seed=0).new_cache(1, 8)
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert cache.bytes_per_token() * 8 == held


# Checkpointing


def gradients(decoder: Decoder, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    (decoder.head(decoder(tokens_BT)[0]) ** 2).sum().backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters()}


@every_variant
def test_checkpointed_blocks_give_the_same_gradients(variant):
    decoder, tokens_BT = model(variant), tokens(2, 9)
    kept = gradients(decoder, tokens_BT)
    decoder.activation_checkpointing = "full"
    for name, gradient in gradients(decoder, tokens_BT).items():
        assert_close(gradient, kept[name], rtol=0, atol=0)


def test_checkpointing_works_with_a_frozen_embedding():
    decoder, tokens_BT = model(), tokens(2, 9)
    decoder.requires_grad_(False)
    weight = decoder.blocks[0].attention.query.weight.requires_grad_()
    decoder.activation_checkpointing = "full"
    (decoder(tokens_BT)[0] ** 2).sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0


def kept_inside(decoder: Decoder, modules: list[torch.nn.Module]) -> list[bool]:
    """For each module's input, whether its memory is still held after the forward pass."""
    memory: list[StorageWeakRef] = []
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs: memory.append(StorageWeakRef(inputs[0].untyped_storage()))
        )
        for module in modules
    ]
    hidden = decoder(tokens(2, 9))[0]
    for handle in handles:
        handle.remove()
    kept = [not storage.expired() for storage in memory]
    hidden.sum().backward()
    return kept


def test_normed_inputs_and_gated_products_are_not_kept():
    decoder = model()
    block = decoder.blocks[0]
    assert (
        kept_inside(decoder, [block.attention.query, block.feed_forward.gate, block.feed_forward.down])
        == [False] * 3
    )
    assert kept_inside(decoder, [block.attention.output]) == [True]  # the control: nobody recomputes this one


def test_checkpointed_blocks_keep_their_input_alone():
    decoder = model()
    decoder.activation_checkpointing = "full"
    block = decoder.blocks[1]
    inside = [block.attention.query, block.attention.output, block.feed_forward_norm, block.feed_forward.down]
    assert kept_inside(decoder, [block, *inside]) == [True, *[False] * 4]


# Building


@every_variant
@pytest.mark.parametrize("tied", [True, False])
def test_the_predicted_number_of_parameters_is_what_is_built(variant, tied):
    shape = config(tied, **VARIANTS[variant])
    decoder = build(shape, device="meta")
    assert decoder.parameter_count() == shape.parameter_count()
    parts = shape.parameters()
    assert parts["embedding"] == decoder.embedding.weight.numel()
    assert parts["norms"] == sum(
        p.numel()
        for name, p in decoder.named_parameters()
        if name.endswith("norm.weight") and "key_norm" not in name and "query_norm" not in name
    )


def test_the_published_size_of_elite_112m():
    shape = ModelConfig.model_validate({
        "vocabulary": 49152, "width": 768, "layers": 12, "context": 2048,
        "attention": {"heads": 12, "kv_heads": 3, "head_width": 64}, "feed_forward": {"width": 2048},
    })  # fmt: skip
    assert shape.parameter_count() == 112_085_760
    assert build(shape, device="meta").parameter_count() == 112_085_760


def test_fresh_weights_have_the_configured_spread():
    shape = config(layers=3, width=128, qkv_bias=True)
    decoder = build(shape, seed=0)
    narrow = shape.initializer_range / math.sqrt(2 * shape.layers)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            expected = narrow if "output" in name or "down" in name else shape.initializer_range
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name


def test_the_seed_decides_the_weights():
    one, same, other = (build(config(), seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (a.dim() == 1)  # norms are ones


def test_one_block_can_be_built_on_meta_filled_and_run_alone():
    decoder = model()
    with torch.device("meta"):
        block = build_block(decoder.config)
    block.load_state_dict(decoder.blocks[0].state_dict(), assign=True)
    inputs = []
    decoder.blocks[0].register_forward_hook(lambda _, given, output: inputs.append((given, output)))
    with torch.no_grad():
        decoder(tokens(1, 6))
        (x_BTD, context, cache), (expected, _) = inputs[0]
        assert torch.equal(block(x_BTD, context, cache)[0], expected)


@pytest.mark.parametrize("kind", [*KINDS, "own head"])
def test_building_does_without_torchs_symbolic_shapes(kind, monkeypatch):
    """`empty_like` on the meta device wants them, and they import sympy: half a second in each process."""
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    build(count_config(**{**KINDS, "own head": {"tied_head": False}}[kind]), seed=0)
    with pytest.raises(ImportError), torch.device("meta"):
        torch.empty_like(torch.empty(2))
