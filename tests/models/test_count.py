"""Counts from the config against what torch allocates, keeps for the backward pass, and counts as operations."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.models import count
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn import recompute as recompute_module
from shoestring.nn.attention.temporal import stride_mask

TOKENS = 32
LATENT = {"heads": 4, "latent_rank": 24, "content_width": 16, "rotary_width": 8, "value_width": 16}
KINDS = {
    "gqa": {},
    "qk norm": {"attention": {"heads": 4, "kv_heads": 2, "head_width": 16, "qk_norm": True}},
    "mla": {"attention": {"kind": "mla", **LATENT}},
    "mla of one width": {"attention": {"kind": "mla", **LATENT, "value_width": 24, "query_rank": 12}},
    "mla with wide values": {"attention": {"kind": "mla", **LATENT, "value_width": 32}},
    "mtla": {"attention": {"kind": "mtla", **LATENT}},
    "mtla with options": {
        "attention": {"kind": "mtla", **LATENT, "stride": 4, "rotary_scale": True, "part_norms": True}
    },
    "gelu": {"feed_forward": {"kind": "gelu", "width": 80}},
    "relu2": {"feed_forward": {"kind": "relu2", "width": 80}},
    "moe": {"feed_forward": {"kind": "moe", "width": 80, "experts": 4, "shared_width": 40}},
    "low rank": {"linear": {"kind": "low_rank", "rank": 8}},
    "convolution": {"embedding_convolution": 4},
    "value residual": {"value_residual": True},
    "bottlenecks": {"bottleneck": {"width": 10}},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def config(layers: int = 2, **changes) -> ModelConfig:
    return ModelConfig.model_validate({
        "vocabulary": 64, "width": 48, "layers": layers, "context": 64,
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 16}, "feed_forward": {"width": 80}, **changes,
    })  # fmt: skip


def tokens() -> torch.Tensor:
    return torch.randint(0, 64, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@every_kind
def test_operations_of_matrices_are_those_that_torch_counts(kind):
    shape = config(**KINDS[kind])
    model = build(shape, seed=0)
    with FlopCounterMode(display=False) as counter:
        hidden, aux = model(tokens())
        (model.head(hidden).sum() + sum(aux.values())).backward()
    counted = {str(name): value for name, value in counter.get_flop_counts()["Global"].items()}
    matrices = sum(value for name, value in counted.items() if "attention" not in name) / TOKENS
    ours = count.operations(shape, TOKENS)
    # A gate's constant inputs need no gradient, so a part in a hundred is counted too much.
    assert 3 * (ours.matrices + ours.head) == pytest.approx(matrices, rel=0.01)


def test_full_recomputation_and_reversible_blocks_cost_one_more_forward_pass_of_the_blocks():
    def counted(recompute: str) -> float:
        model = build(config(layers=3), seed=0)
        model.activation_checkpointing = recompute
        with FlopCounterMode(display=False) as counter:
            model.head(model(tokens())[0]).sum().backward()
        values = {str(name): value for name, value in counter.get_flop_counts()["Global"].items()}
        return sum(value for name, value in values.items() if "attention" not in name) / TOKENS

    kept = counted("selective")
    ours = count.operations(config(layers=3), TOKENS, "full")
    last_product = 3 * 2 * 48 * 80
    assert counted("full") - kept == pytest.approx(ours.again - ours.attention - last_product)
    # torch's counter cannot follow a backward pass inside another, so reversible runs are counted in calls.
    model, calls = build(config(layers=3, block="reversible"), seed=0), []
    for block in model.blocks:
        for part in (block.attention.query, block.attention.output, block.feed_forward.up, block.feed_forward.down):
            part.register_forward_hook(lambda *_: calls.append(1))
    model(tokens())[0].sum().backward()
    assert len(calls) == 2 * 3 * 4
    assert count.operations(config(layers=3, block="reversible"), TOKENS).again == ours.again


@pytest.mark.parametrize("tokens", [1, 7, 32])
def test_pairs_of_attention_are_those_of_its_mask(tokens):
    causal, strided = config().attention, config(**KINDS["mtla with options"]).attention
    assert count.keys_per_query(causal, tokens) * tokens == torch.ones(tokens, tokens).tril().sum()
    assert count.keys_per_query(strided, tokens) * tokens == pytest.approx(
        (stride_mask(tokens, 4) & torch.ones(tokens, tokens, dtype=torch.bool).tril()).sum().item(), rel=0.2
    )


@every_kind
def test_cache_numbers_are_what_a_cache_allocates(kind):
    shape = config(**KINDS[kind], sharing={"unique_layers": 1})
    check_cache_numbers(shape)


def test_layers_that_search_a_memory_cache_their_keys_twice():
    check_cache_numbers(config(layers=3, memory={"layers": [1]}))
    check_cache_numbers(config(layers=5, memory={"layers": [1]}, sharing={"unique_layers": 2}))


def check_cache_numbers(shape: ModelConfig) -> None:
    cache = build(shape, seed=0).new_cache(1, 16)
    assert count.cache_numbers(shape) * 4 == cache.bytes_per_token()
    held = sum(tensor.nbytes for group in cache.tensors.values() for tensor in group)
    assert held == cache.bytes_per_token() * 16


@contextlib.contextmanager
def keeping(kept: dict[int, int], monkeypatch):
    """Collects the storages that autograd keeps, those behind selective recomputation as well."""
    held = []
    hooks = torch.autograd.graph.saved_tensors_hooks

    def add(tensor: torch.Tensor) -> None:
        held.append(tensor)  # or its address could serve another one
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    class Watching(hooks):
        def __init__(self, pack, unpack):
            def watched(tensor):
                packed = pack(tensor)
                for part in [packed] if isinstance(packed, torch.Tensor) else packed[0].inputs:
                    add(part)
                return packed

            super().__init__(watched, unpack)

    monkeypatch.setattr(recompute_module.torch.autograd.graph, "saved_tensors_hooks", Watching)
    with Watching(lambda tensor: tensor, lambda tensor: tensor):
        yield


def kept_numbers(shape: ModelConfig, recompute: str, monkeypatch) -> float:
    model = build(shape, seed=0)
    model.activation_checkpointing = recompute
    kept: dict[int, int] = {}
    with monkeypatch.context() as patch, keeping(kept, patch):
        hidden, aux = model(tokens())
    assert hidden.requires_grad
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in kept.items() if place not in weights) / 4 / TOKENS


@every_kind
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_activations_are_what_autograd_keeps(kind, recompute, monkeypatch):
    """One layer's, as the difference of two depths."""
    two, three = (kept_numbers(config(layers, **KINDS[kind]), recompute, monkeypatch) for layers in (2, 3))
    ours = [count.activations(config(layers, **KINDS[kind]), recompute) for layers in (2, 3)]
    assert ours[1].layers - ours[0].layers == pytest.approx(three - two, rel=0.02)


def test_a_layer_that_searches_keeps_what_it_found(monkeypatch):
    searching = config(memory={"layers": [1], "top_k": 5, "block": 1})
    kept = [kept_numbers(shape, "none", monkeypatch) for shape in (searching, config())]
    ours = [count.activations(shape, "none").total for shape in (searching, config())]
    assert ours[0] - ours[1] == pytest.approx(kept[0] - kept[1], rel=0.03)
    assert count.operations(searching, TOKENS).attention > count.operations(config(), TOKENS).attention


def test_reversible_blocks_keep_two_streams_at_any_depth(monkeypatch):
    shape = config(6, block="reversible")
    kept = kept_numbers(shape, "selective", monkeypatch)
    assert count.activations(shape).layers == 2 * 48
    rotary_and_outside = kept - 2 * 48
    assert rotary_and_outside == pytest.approx(count.activations(shape).outside, abs=48 + 32)
