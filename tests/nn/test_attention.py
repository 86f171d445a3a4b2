"""Attention against its definition with every score held, in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.core import torch_features
from shoestring.data.batch import Batch, layout_of
from shoestring.nn.attention import packed
from shoestring.nn.attention.core import attend, attend_plain
from shoestring.nn.attention.packed import Packed
from shoestring.nn.context import PADDING, Visibility, make_context

BATCH, TOKENS, HEADS, KV_HEADS, WIDTH = 2, 9, 4, 2, 8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(queries: int = TOKENS, keys: int = TOKENS, kv_heads: int = KV_HEADS) -> list[torch.Tensor]:
    """Laid out as the projections give them: tokens before heads."""
    shapes = [(BATCH, queries, HEADS, WIDTH), *[(BATCH, keys, kv_heads, WIDTH)] * 2]
    return [random(*shape, seed=i).transpose(1, 2) for i, shape in enumerate(shapes)]


def results(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return [output, *torch.autograd.grad((output * random(*output.shape, seed=9)).sum(), leaves)]


def assert_attends(seen: Visibility, mask_B1TS: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    fast = results(lambda q, k, v: attend(q, k, v, seen, 0.3), *inputs)
    plain = results(lambda q, k, v: attend_plain(q, k, v, mask_B1TS, 0.3), *inputs)
    for one, other in zip(fast, plain, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_causal_attention_is_its_definition(kv_heads):
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    assert_attends(Visibility(causal=True), mask, qkv(kv_heads=kv_heads))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_one_query_over_all_keys_is_its_definition(kv_heads):
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    assert_attends(Visibility(causal=False), mask, qkv(queries=1, kv_heads=kv_heads))


def test_masked_attention_is_its_definition():
    mask = torch.rand(BATCH, 1, 5, TOKENS, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 0] = True
    assert_attends(Visibility(causal=False, mask_B1TS=mask), mask, qkv(queries=5))


@pytest.mark.parametrize(
    "rows",
    [
        [[0] * 9, [0] * 9],
        [[0, 0, 0, 1, 1, 2, 2, 2, 2], [5] * 9],
        [[3, 1, 1, 1, 2, 2, 2, 7, 7], [0] * 4 + [PADDING] * 5],
    ],
)
def test_packed_documents_are_causal_attention_under_a_block_mask(rows):
    segments = torch.tensor(rows)
    seen = make_context(torch.zeros(BATCH, TOKENS, dtype=torch.long), None, segments_BT=segments).visibility
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    assert_attends(seen, mask, qkv())


def test_a_segment_number_that_returns_opens_a_new_document():
    """Neighbouring spans are documents: the loader may number them as it likes."""
    segments = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0]] * BATCH)
    visibility = make_context(segments, None, segments_BT=segments).visibility
    assert visibility.documents is not None
    assert [span for span in visibility.documents if span[0] == 0] == [(0, 0, 2), (0, 2, 4), (0, 4, 9)]


def test_output_is_a_view_away_from_tokens_by_width():
    q, k, v = qkv()
    for seen in (
        Visibility(causal=True),
        Visibility(causal=True, documents=((0, 0, 9), (1, 0, 4), (1, 4, 9))),
    ):
        out = attend(q, k, v, seen, 0.3).transpose(1, 2)
        assert out.reshape(BATCH, TOKENS, HEADS * WIDTH).data_ptr() == out.data_ptr()


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention as it is defined, on the CPU, where its compiled kernels cannot go backward."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(packed, "kernel", lambda: flex_attention.flex_attention)
    monkeypatch.setattr(flex_attention, "_warn_once", lambda *_: None, raising=False)


def several_blocks(window: int | None) -> Packed:
    """Three blocks of queries, the last not full; a document is longer than a block, others shorter, one a token."""
    segments = torch.tensor([[0] * 150 + [1] * 30 + [2] + [3] * 139, [0] * 290 + [1] * 30])
    found = Packed.of(segments)
    return found if window is None else found.within(window)


@pytest.mark.parametrize("window", [None, 40, 300])
def test_documents_in_one_kernel_are_their_definition(window, uncompiled):
    documents = several_blocks(window)
    q, k, v = (random(2, heads, 320, 16, seed=heads).float() for heads in (4, 2, 2))
    fast = documents.attend(q, k, v, 0.3)
    assert_close(fast, attend_plain(q, k, v, documents.mask_B1TS(), 0.3))


@pytest.mark.parametrize("window", [None, 40, 300])
def test_the_blocks_of_documents_are_those_that_the_mask_has(window):
    """A kernel reads `mask_mod` in the blocks that are seen in part, all of those seen wholly, and no other."""
    documents = several_blocks(window)
    blocks, mask = documents.block_mask(), documents.mask_B1TS()
    tokens = torch.arange(320)
    exact = blocks.mask_mod(torch.arange(2)[:, None, None], 0, tokens[:, None], tokens)
    assert torch.equal(exact, mask[:, 0])
    squares = torch.nn.functional.pad(mask[:, 0], (0, 64, 0, 64)).unflatten(2, (3, 128)).unflatten(1, (3, 128))
    whole = squares.sum((2, 4)) == 128 * torch.tensor([128, 128, 64]).view(3, 1)
    whole &= torch.arange(3) != 2  # the last block of keys is not full
    found = [
        torch.zeros(2, 3, 3).scatter_(2, numbers[:, 0].long(), (torch.arange(3) < counts[:, 0, :, None]).float())
        for counts, numbers in (
            (blocks.kv_num_blocks, blocks.kv_indices), (blocks.full_kv_num_blocks, blocks.full_kv_indices)
        )
    ]  # fmt: skip
    assert torch.equal(found[1].bool() & ~whole, torch.zeros(2, 3, 3, dtype=torch.bool)), "whole blocks are whole"
    assert torch.equal(found[0] + found[1], squares.any(4).any(2).float()), "every block that is seen is there, once"
    assert bool(found[1].any()) == (window != 40)


def test_heads_and_formats_that_the_kernel_does_not_take_go_through_a_mask(monkeypatch):
    monkeypatch.setattr(packed, "kernel", lambda: pytest.fail("it would be refused"))
    segments = torch.tensor([[3, 1, 1, 1, 2, 2, 2, 7, 7], [0] * 4 + [PADDING] * 5])
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    documents = Packed.of(segments)
    fast = results(lambda q, k, v: documents.attend(q, k, v, 0.3), *qkv())
    for one, other in zip(fast, results(lambda q, k, v: attend_plain(q, k, v, mask, 0.3), *qkv()), strict=True):
        assert_close(one, other)


def test_a_gpu_gets_packed_documents_in_one_kernel_and_without_one_a_mask(monkeypatch):
    """The meta device stands for a GPU."""
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5] * 9])
    layout = layout_of(Batch(segments, segments, segments, segments))
    tokens = segments.to("meta")
    for has_kernel in (True, False):
        monkeypatch.setattr(torch_features, "flex_attention", lambda device, has_kernel=has_kernel: has_kernel)
        seen = make_context(tokens, None, segments_BT=tokens, layout=layout).visibility
        assert (seen.packed is not None, seen.mask_B1TS is not None) == (has_kernel, not has_kernel)
        assert seen.documents == ((0, 0, 3), (0, 3, 5), (0, 5, 9), (1, 0, 9))
        made = make_context(tokens, None, segments_BT=tokens, layout=layout, window=4).made
        assert [*made] == ([("window", 4)] if has_kernel else []), "before layers run, which may be compiled"


def test_on_a_gpu_no_call_has_both_a_mask_and_grouped_heads(monkeypatch):
    """Which torch's fast kernels do not take there. The meta device stands for a GPU."""
    calls = []

    def record(q, k, v, attn_mask=None, enable_gqa=False, **rest):
        calls.append((k.shape[1], v.shape[1], attn_mask is not None, enable_gqa))
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    q, k, v = (x.to("meta") for x in qkv())
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")
    attend(q, k, v, Visibility(causal=True, mask_B1TS=mask, documents=((0, 0, 4), (0, 4, 9))), 0.3)
    attend(q, k, v, Visibility(causal=True), 0.3)
    assert calls == [(HEADS, HEADS, True, False), (KV_HEADS, KV_HEADS, False, True)]
