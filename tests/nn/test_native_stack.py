"""Whole native passes against the stack that they replace: prompts, single tokens, many texts, every plain kind."""

import copy
import functools
import itertools

import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.kernels.blocks import quantize
from shoestring.kernels.decode import decode_kernels
from shoestring.models.adapters import adapted_linears, attach, merge, switch
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoding_weights import kept_as
from shoestring.nn.int8_cache import Int8KVCache
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.native_stack import NativeStack, native_stack
from shoestring.nn.quantized.decoding import DecodingLinear
from shoestring.nn.stack import SequentialStack

pytestmark = pytest.mark.skipif(decode_kernels() is None, reason="no compiler")
LLAMA = {
    "width": 64, "layers": 3, "context": 128, "vocabulary": 100, "tied_head": True,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 16},
    "feed_forward": {"kind": "swiglu", "width": 96},
}  # fmt: skip
KINDS = {
    "llama": {},
    "qwen2": {"attention": {**LLAMA["attention"], "qkv_bias": True}},
    "qwen3": {"attention": {**LLAMA["attention"], "head_width": 40, "qk_norm": True}, "width": 160, "tied_head": False},
    "shared": {"sharing": {"unique_layers": 2, "order": "cycle"}},
}
WEIGHTS = ["int4", "int8", "bf16", "float32"]


def decoder_of(kind="llama", weights="int4"):
    made = build(ModelConfig.model_validate({**LLAMA, **KINDS[kind]}), seed=3)
    for name, parameter in made.named_parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.data += 0.2 * torch.randn(len(parameter), generator=torch.Generator().manual_seed(len(name)))
        else:
            parameter.data *= 3
    return kept_as(made.eval(), weights)


def stacks_of(decoder):
    assert isinstance(decoder._stack, NativeStack)
    return decoder._stack, decoder._stack._stack


@torch.inference_mode()
def run(decoder, stack, passes, capacity=64, new_cache=None):
    """Hidden states of some passes (tokens, slots, counts) by a stack, and the cache."""
    before, decoder._stack = decoder._stack, stack
    cache, states = (new_cache or decoder.new_cache)(4, capacity), []
    for tokens, slots, counts in passes:
        states.append(decoder(torch.tensor([tokens]), cache=cache.rows(slots, counts))[0])
    decoder._stack = before
    return states, cache


def made_by_kernel(monkeypatch):
    """A list that grows with every native call."""
    calls, kernels = [], decode_kernels()
    inner = kernels.decode_layers

    class Counting:
        multiply_rows, unpack_columns = kernels.multiply_rows, kernels.unpack_columns

        def decode_layers(self, *given):
            calls.append(1)
            return inner(*given)

    monkeypatch.setattr("shoestring.nn.native_stack.decode_kernels", Counting)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_passes_are_those_of_the_stack(kind, weights):
    tokens = torch.randint(0, 100, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    passes = [
        (tokens[:15], [1], [15]), (tokens[17:18], [1], [1]), (tokens[:9], [3, 0], [5, 4]),
        (tokens[20:23], [0, 1, 3], [1, 1, 1]), (tokens[5:16], [1, 2], [1, 10]),
    ]  # fmt: skip
    decoder = decoder_of(kind, weights)
    (native, cache), (twin, held) = (run(decoder, stack, passes) for stack in stacks_of(decoder))
    near = 1e-5 if weights in ("float32", "bf16") else 1e-2  # a code of an activation may round the other way
    for a, b in zip(native, twin, strict=True):
        assert torch.isfinite(a).all() and (a - b).norm() <= near * b.norm()
    assert cache.lengths == held.lengths
    for mine, theirs in zip(cache.keys + cache.values, held.keys + held.values, strict=True):
        assert (mine[1, :, :18] - theirs[1, :, :18]).norm() <= near * theirs[1, :, :18].norm()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_of_one_call_are_those_of_the_parts(weights, monkeypatch):
    calls, tokens = made_by_kernel(monkeypatch), list(range(30, 44))
    decoder = decoder_of("llama", weights)
    passes = [(tokens[:9], [1], [9], [8]), (tokens[:5], [3, 0], [1, 4], [4, 0, 2]), (tokens[:1], [1], [1], [0])]
    found = []
    for stack in stacks_of(decoder):
        decoder._stack = stack
        with torch.inference_mode():
            cache = decoder.new_cache(4, 64)
            found.append([
                decoder.next_logits(torch.tensor([some]), places, cache.rows(slots, counts))
                for some, slots, counts, places in passes
            ])  # fmt: skip
        assert cache.lengths == [4, 10, 0, 1]
    assert len(calls) == len(passes)
    near = 1e-5 if weights in ("float32", "bf16") else 1e-2  # a code of an activation may round the other way
    for native, parts in zip(*found, strict=True):
        assert native.shape == parts.shape and (native - parts).norm() <= near * parts.norm()


def test_another_norm_or_head_is_seen(monkeypatch):
    calls = made_by_kernel(monkeypatch)
    decoder, places = decoder_of("llama", "int8"), [0]

    def logits():
        with torch.inference_mode():
            return decoder.next_logits(torch.tensor([[5]]), places, decoder.new_cache(1, 8).rows([0], [1]))

    before = logits()
    decoder.norm = copy.deepcopy(decoder.norm)
    decoder.norm.weight.data *= 2
    assert (logits() - 2 * before).norm() <= 2e-2 * before.norm() and len(calls) == 1
    decoder.blocks[1].attention_norm = copy.deepcopy(decoder.blocks[1].attention_norm)
    decoder.blocks[1].attention_norm.weight.data.zero_()
    assert (logits() - 2 * before).norm() > 2e-2 * before.norm() and len(calls) == 1


def test_a_cache_in_int8_is_that_of_the_stack():
    decoder, tokens = decoder_of("qwen3", "float32"), list(range(9))
    passes = [(tokens, [1], [9]), (tokens[:5], [3, 0], [1, 4]), (tokens[:3], [0, 1, 3], [1, 1, 1])]
    make = functools.partial(Int8KVCache, 3, kv_heads=2, head_width=40)
    (native, cache), (twin, held) = (run(decoder, stack, passes, 64, make) for stack in stacks_of(decoder))
    for a, b in zip(native, twin, strict=True):
        assert (a - b).norm() <= 3e-3 * b.norm()  # a code may round the other way
    for mine, theirs in zip(cache.keys + cache.values, held.keys + held.values, strict=True):
        assert (mine[1, :, :10].int() - theirs[1, :, :10].int()).abs().max() <= 1
    exact, _ = run(decoder, decoder._stack, passes)
    assert 0 < (native[2] - exact[2]).norm() < 0.03 * exact[2].norm()


def test_long_prompts_go_through_the_kernel_where_weights_are_in_blocks(monkeypatch):
    calls = made_by_kernel(monkeypatch)
    tokens = list(range(50))
    for weights, expected in (("int8", 2), ("float32", 1)):  # 50 rows of floats are torch's work, one is the kernel's
        decoder = decoder_of(weights=weights)
        run(decoder, decoder._stack, [(tokens, [0], [50]), (tokens[:1], [0], [1])])
        assert len(calls) == expected
        calls.clear()


def test_rows_of_a_batch_with_padding_are_those_of_the_stack():
    decoder = decoder_of("qwen2", "int8")
    tokens, segments = torch.randint(0, 100, (3, 6)), torch.zeros(3, 6, dtype=torch.long)
    segments[1, 4:] = segments[2, 1:] = -1
    found = []
    for stack in stacks_of(decoder):
        decoder._stack = stack
        with torch.inference_mode():
            cache = decoder.new_cache(3, 16)
            decoder(tokens, segments_BT=segments, cache=cache)
            found.append(decoder(tokens[:, :1], cache=cache)[0])
        assert cache.lengths == [7, 5, 2]
    assert (found[0] - found[1]).norm() <= 1e-2 * found[1].norm()


@pytest.mark.parametrize("weights", ["int4", "float32"])
def test_a_rows_states_do_not_depend_on_its_neighbours(weights):
    decoder = decoder_of("llama", weights)
    tokens = torch.randint(0, 100, (12,)).tolist()
    (alone,), _ = run(decoder, decoder._stack, [(tokens[:10], [2], [10])])
    (beside,), _ = run(decoder, decoder._stack, [(tokens[:10] + tokens[:5], [2, 0], [10, 5])])
    assert torch.equal(alone[0], beside[0, :10])


def test_threads_do_not_change_a_bit():
    decoder, before, found = decoder_of("qwen2"), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            (state,), _ = run(decoder, decoder._stack, [(list(range(30)), [0], [30])])
            found.append(state)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_matrices_of_a_layer_may_be_in_several_formats():
    decoder = decoder_of("llama", "float32")
    for block, bits in zip(decoder.blocks, itertools.cycle((4, 8)), strict=False):
        attention = block.attention
        attention.value = DecodingLinear(quantize(attention.value.weight, bits), attention.value.in_features)
    decoder._stack = native_stack_of_plain(decoder)
    (native, _), (twin, _) = (run(decoder, stack, [([1, 2, 3], [0], [3])]) for stack in stacks_of(decoder))
    assert (native[0] - twin[0]).norm() <= 1e-2 * twin[0].norm()


def native_stack_of_plain(decoder):
    decoder._stack = SequentialStack(decoder._stack.order)
    return native_stack(decoder)


@pytest.mark.parametrize("weights", ["int8", "float32"])
def test_adapters_at_work_go_through_the_stack(weights, monkeypatch):
    calls = made_by_kernel(monkeypatch)
    decoder, passes = decoder_of("llama", weights), [([1, 2, 3], [0], [3])]
    before, _ = run(decoder, decoder._stack, passes)
    attach(decoder, LoRAConfig(rank=2))
    with torch.no_grad():
        for linear in adapted_linears(decoder).values():
            linear.adapters["default"].lora_B.normal_()
    assert len(calls) == 1
    adapted, _ = run(decoder, decoder._stack, passes)
    twin, _ = run(decoder, decoder._stack._stack, passes)
    assert len(calls) == 1 and torch.equal(adapted[0], twin[0]) and not torch.allclose(adapted[0], before[0])
    switch(decoder, None)
    resting, _ = run(decoder, decoder._stack, passes)
    assert len(calls) == 2 and torch.equal(resting[0], before[0])
    switch(decoder, "default")
    merged, _ = run(merge(decoder), decoder._stack, passes)
    assert len(calls) == 2 and (merged[0] - adapted[0]).norm() < 0.05 * adapted[0].norm()


def test_weights_that_are_elsewhere_go_through_the_stack(monkeypatch):
    calls = made_by_kernel(monkeypatch)
    decoder, passes = decoder_of("llama", "float32"), [([1, 2, 3], [0], [3])]
    with torch.no_grad():
        decoder.blocks[0].attention.query.weight.mul_(1.5)  # in place: it is what is read
    (native, _), (twin, _) = (run(decoder, stack, passes) for stack in stacks_of(decoder))
    assert torch.allclose(native[0], twin[0], atol=1e-5) and len(calls) == 1
    weight = decoder.blocks[1].feed_forward.up.weight
    weight.data = weight.data.clone()
    moved, _ = run(decoder, decoder._stack, passes)
    assert torch.equal(moved[0], twin[0]) and len(calls) == 1


def test_a_copy_has_a_stack_of_its_own():
    decoder = decoder_of("llama", "int8")
    other = copy.deepcopy(decoder)
    assert type(other._stack) is SequentialStack
    passes = [([1, 2], [0], [2])]
    (native, _), (copied, _) = run(decoder, decoder._stack, passes), run(other, other._stack, passes)
    assert (native[0] - copied[0]).norm() <= 1e-2 * copied[0].norm()


@pytest.mark.parametrize("attention", [
    {**LLAMA["attention"], "window": 8},
    {"kind": "mla", "heads": 4, "latent_rank": 16, "content_width": 8, "rotary_width": 8, "value_width": 8},
])  # fmt: skip
@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_other_kinds_keep_their_stack_and_get_their_weights_all_the_same(attention, weights):
    made = build(ModelConfig.model_validate({**LLAMA, "attention": attention}), seed=1).eval()
    tokens = torch.arange(10).unsqueeze(0)
    with torch.inference_mode():
        exact, _ = made(tokens, cache=made.new_cache(1, 32))
        decoder = kept_as(made, weights)
        found, _ = decoder(tokens, cache=decoder.new_cache(1, 32))
    assert type(decoder._stack) is SequentialStack
    assert any(isinstance(module, DecodingLinear) for module in decoder.modules())
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


def test_what_has_no_dense_matrices_is_refused():
    with pytest.raises(ConfigError, match="dense"):
        kept_as(decoder_of("llama"), "int4")
