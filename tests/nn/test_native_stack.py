"""Whole native passes against the stack that they replace: prompts, single tokens, many texts, every plain kind."""

import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.kernels.blocks import block_kernels
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoding_weights import to_blocks
from shoestring.nn.native_stack import NativeStack
from shoestring.nn.quantized.blocks import BlockLinear

pytestmark = pytest.mark.skipif(block_kernels() is None, reason="no compiler")
LLAMA = {
    "width": 64, "layers": 3, "context": 128, "vocabulary": 100, "tied_head": True,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 16},
    "feed_forward": {"kind": "swiglu", "width": 96},
}  # fmt: skip
KINDS = {
    "llama": {},
    "qwen2": {"attention": {**LLAMA["attention"], "qkv_bias": True}},
    "qwen3": {"attention": {**LLAMA["attention"], "head_width": 32, "qk_norm": True}, "tied_head": False},
}


def decoder_of(kind, weights="int4"):
    made = build(ModelConfig.model_validate({**LLAMA, **KINDS[kind]}), seed=3)
    for name, parameter in made.named_parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.data += 0.2 * torch.randn(len(parameter), generator=torch.Generator().manual_seed(len(name)))
    return to_blocks(made.eval(), weights)


@torch.inference_mode()
def both(decoder, passes):
    """Hidden states of some passes (tokens, slots, counts), by the native stack and by its twin."""
    native, found = decoder._stack, []
    assert isinstance(native, NativeStack)
    for stack in (native, native._stack):
        decoder._stack = stack
        cache = decoder.new_cache(4, 64)
        states = []
        for tokens, slots, counts in passes:
            hidden, _ = decoder(torch.tensor([tokens]), cache=cache.rows(slots, counts))
            states.append(hidden)
        found.append((states, cache))
    decoder._stack = native
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_passes_are_those_of_the_stack(kind, weights):
    tokens = torch.randint(0, 100, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    passes = [
        (tokens[:17], [1], [17]), (tokens[17:18], [1], [1]), (tokens[:9], [3, 0], [5, 4]),
        (tokens[20:23], [0, 1, 3], [1, 1, 1]), (tokens[5:16], [1, 2], [1, 10]),
    ]  # fmt: skip
    (native, cache), (twin, held) = both(decoder_of(kind, weights), passes)
    for a, b in zip(native, twin, strict=True):
        assert torch.isfinite(a).all()
        assert (a - b).norm() <= 2e-3 * b.norm(), "a code may round the other way; no more than that"
    assert cache.lengths == held.lengths
    for mine, theirs in zip(cache.keys, held.keys, strict=True):
        assert torch.allclose(mine[1, :, :20], theirs[1, :, :20], atol=2e-2)


def test_a_rows_states_do_not_depend_on_its_neighbours():
    decoder = decoder_of("llama")
    tokens = torch.randint(0, 100, (12,)).tolist()
    with torch.inference_mode():
        alone = decoder.new_cache(4, 64)
        first, _ = decoder(torch.tensor([tokens]), cache=alone.rows([2], [12]))
        beside = decoder.new_cache(4, 64)
        second, _ = decoder(torch.tensor([tokens + tokens[:5]]), cache=beside.rows([2, 0], [12, 5]))
    assert torch.equal(first[0], second[0, :12])


def test_threads_do_not_change_a_bit():
    decoder, tokens = decoder_of("qwen2"), list(range(30))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                cache = decoder.new_cache(1, 64)
                found.append(decoder(torch.tensor([tokens]), cache=cache.rows([0], [30]))[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_other_kinds_keep_their_stack_and_get_blocks_all_the_same():
    shape = {**LLAMA, "attention": {**LLAMA["attention"], "window": 8}}
    decoder = to_blocks(build(ModelConfig.model_validate(shape), seed=1).eval(), "int8")
    assert not isinstance(decoder._stack, NativeStack)
    assert any(isinstance(module, BlockLinear) for module in decoder.modules())
    with torch.inference_mode():
        hidden, _ = decoder(torch.arange(10).unsqueeze(0), cache=decoder.new_cache(1, 32))
    assert torch.isfinite(hidden).all()


def test_what_has_no_dense_matrices_is_refused():
    decoder = decoder_of("llama")
    with pytest.raises(ConfigError, match="no dense matrices"):
        to_blocks(decoder, "int4")
