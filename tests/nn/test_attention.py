"""Attention against its definition with every score held, in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.nn.attention.core import attend, attend_plain
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
    context = make_context(torch.zeros(BATCH, TOKENS, dtype=torch.long), None, segments_BT=segments)
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    assert_attends(context.visibility, mask, qkv())


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
