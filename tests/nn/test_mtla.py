"""Temporal latent attention in float64: the paper's token-by-token form as the oracle, the parallel form, the cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.attention.mla import MultiHeadLatentAttention
from shoestring.nn.attention.mtla import TemporalLatentAttention, merge_chunks, merge_chunks_plain
from shoestring.nn.attention.temporal import attend_chunks, attend_chunks_in_blocks, attend_chunks_plain
from shoestring.nn.config import RopeConfig
from shoestring.nn.context import PADDING, make_context
from shoestring.nn.rope import RotaryEmbedding
from shoestring.nn.temporal_cache import TemporalCache

WIDTH = 24
SIZES = {"heads": 3, "latent_rank": 16, "content_width": 8, "rotary_width": 4, "value_width": 6}
OPTIONS = {"rotary_scale": True, "part_norms": True, "query_rank": 12, "bias": True}
ROTARY = RotaryEmbedding(RopeConfig(theta=100.0), 4)
every_stride = pytest.mark.parametrize("stride", [1, 2, 3, 4])


def attention(stride: int, options: bool = False, rollback: int = 4) -> TemporalLatentAttention:
    config = MTLAConfig(**SIZES, stride=stride, rollback=rollback, **(OPTIONS if options else {}))
    return filled(TemporalLatentAttention(config, WIDTH, 1e-5))


def filled(module):
    generator = torch.Generator().manual_seed(0)
    module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(("norm" in name or "scale" in name) + 0.4 * drawn)
    return module


def inputs(batch: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context_of(x_BTD: torch.Tensor, cache=None, rows=None, positions=None):
    segments = None if rows is None else torch.tensor(rows)
    return make_context(x_BTD[..., 0].long(), ROTARY, positions, segments, cache)


def new_cache(module: TemporalLatentAttention, batch: int, capacity: int, rollback: int = 4) -> TemporalCache:
    """Unwritten memory reads as NaN."""
    cache = TemporalCache(
        1, batch, capacity, module.rank, module.rank + module.rotary, module.stride, rollback, dtype=torch.float64
    )
    for tensor in cache.columns + cache.recent:
        tensor.fill_(float("nan"))
    return cache


def feed(module, cache, x_BTD: torch.Tensor, counts: list[int] | None = None) -> torch.Tensor:
    rows = None
    if counts is not None:
        rows = [[0] * count + [PADDING] * (x_BTD.shape[1] - count) for count in counts]
    context = context_of(x_BTD, cache, rows)
    y = module(x_BTD, context, cache.layer(0))
    cache.advance(context.counts)
    return y


def whole(module, x_BTD: torch.Tensor) -> torch.Tensor:
    return module(x_BTD, context_of(x_BTD))


def oracle(module: TemporalLatentAttention, x_TD: torch.Tensor) -> torch.Tensor:
    """The incremental form of the paper with a Python list as the cache, one token and one head at a time."""
    context = context_of(x_TD[None])
    contents, rotaries = (part[0] for part in module.queries(x_TD[None], context))
    latents, keys = (part[0] for part in module.latents(x_TD[None], context))
    up = module.expand.weight.view(module.heads, module.content + module.value, module.rank)
    slots: list[list[torch.Tensor]] = []
    outputs = []
    for i in range(len(x_TD)):
        chunk = torch.tensor([i // module.stride], dtype=torch.float64)
        table = torch.zeros(module.rank, dtype=torch.float64)
        for j in range(0, module.rank, 2):
            angle = float(chunk) / 10_000 ** (j / module.rank)
            table[j], table[j + 1] = math.sin(angle), math.cos(angle)
        weight = torch.sigmoid(module.chunk_gate(table) @ module.latent_gate(latents[i]))
        if i % module.stride == 0:
            slots.append([weight * latents[i], keys[i]])
        else:
            slots[-1] = [slots[-1][0] + weight * latents[i], keys[i]]
        heads = []
        for h in range(module.heads):
            uk, uv = up[h, : module.content], up[h, module.content :]
            scores = torch.stack([contents[h, i] @ (uk @ c) + rotaries[h, i] @ k for c, k in slots])
            shares = (scores * (module.content + module.rotary) ** -0.5).softmax(0)
            heads.append(sum(share * (uv @ c) for share, (c, _) in zip(shares, slots, strict=True)))
        outputs.append(torch.cat(heads))
    return module.output(torch.stack(outputs))


def gradients(y: torch.Tensor, of: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    return torch.autograd.grad((y * weights).sum(), of)


# Parallel, incremental, literal


@every_stride
@pytest.mark.parametrize("options", [False, True])
def test_the_parallel_form_is_the_papers_incremental_form_forward_and_backward(stride, options):
    """11 tokens: the last chunk is unfinished for every stride but 1."""
    module, x = attention(stride, options), inputs(1, 11).requires_grad_()
    wanted = [x, *module.parameters()]
    y, expected = whole(module, x), oracle(module, x[0])[None]
    assert_close(y, expected)
    for one, other in zip(gradients(y, wanted), gradients(expected, wanted), strict=True):
        assert_close(one, other)


@every_stride
@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("prefill", [1, 2, 3, 7, 8])
def test_cached_decoding_equals_the_parallel_form_after_any_prefill(stride, options, prefill):
    module, x = attention(stride, options), inputs(2, 13)
    expected, cache = whole(module, x), new_cache(module, 2, 13)
    assert_close(feed(module, cache, x[:, :prefill]), expected[:, :prefill])
    for i in range(prefill, 13):
        assert_close(feed(module, cache, x[:, i : i + 1]), expected[:, i : i + 1])
    assert cache.columns[0].isfinite().all()


@every_stride
@pytest.mark.parametrize("steps", [[5, 2, 6], [1, 3, 3, 6], [4, 4, 5]])
def test_several_tokens_are_appended_to_a_cache_that_holds_some(stride, steps):
    module, x = attention(stride), inputs(2, 13)
    expected, cache = whole(module, x), new_cache(module, 2, 13)
    start = 0
    for step in steps:
        assert_close(feed(module, cache, x[:, start : start + step]), expected[:, start : start + step])
        start += step


@every_stride
@pytest.mark.parametrize("counts", [[5, 2, 1], [3, 4, 8], [6, 6, 3]])
def test_ragged_rows_keep_their_own_chunks(stride, counts):
    module, x = attention(stride), inputs(3, 16)
    expected, cache = whole(module, x), new_cache(module, 3, 16)
    y = feed(module, cache, x[:, : max(counts)], counts)
    for step, more in [(1, [1, 1, 1]), (3, [3, 1, 2]), (1, [1, 1, 1]), (2, [2, 2, 2]), (1, [1, 1, 1])]:
        for row, count in enumerate(counts):
            start = cache.lengths[row] - count
            assert_close(y[row, :count], expected[row, start : start + count])
        new = torch.zeros(3, step, WIDTH, dtype=torch.float64)
        for row, (length, count) in enumerate(zip(cache.lengths, more, strict=True)):
            new[row, :count] = x[row, length : length + count]
        y, counts = feed(module, cache, new, more), more
    assert y.isfinite().all()


def test_a_row_may_add_nothing_in_a_pass():
    module, x = attention(2), inputs(2, 6)
    cache = new_cache(module, 2, 8)
    feed(module, cache, x[:, :3], [3, 0])
    y = feed(module, cache, x[:, 3:4], [1, 0])
    assert cache.lengths == [4, 0] and y.isfinite().all()
    assert_close(y[0], whole(module, x)[0, 3:4])


@every_stride
def test_absorbed_equals_expanded_over_a_cache(stride, monkeypatch):
    module, x = attention(stride), inputs(2, 9)
    expected = whole(module, x)
    for form in ("absorbed", "naive"):
        cache = new_cache(module, 2, 9)
        monkeypatch.setattr(module, "cached", getattr(module, form))
        feed(module, cache, x[:, :4])
        assert_close(feed(module, cache, x[:, 4:8]), expected[:, 4:8])
        assert_close(feed(module, cache, x[:, 8:]), expected[:, 8:])


@every_stride
@pytest.mark.parametrize("rows", [None, [[0] * 3 + [1] * 4 + [2] * 4, [0] * 8 + [PADDING] * 3]])
def test_cumulative_sums_are_the_literal_chunk_matrix_forward_and_backward(stride, rows):
    module, x = attention(stride), inputs(2, 11)
    chunks = module.chunks(x, context_of(x, rows=rows), None)
    weighted = inputs(2, 11, seed=4).requires_grad_()
    fast, plain = merge_chunks(weighted, chunks, stride), merge_chunks_plain(weighted, chunks.spans, stride)
    assert_close(fast, plain)
    assert_close(gradients(fast, [weighted]), gradients(plain, [weighted]))


@every_stride
@pytest.mark.parametrize("value_width", [4, 8, 10])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_by_phases_is_the_literal_mask_forward_and_backward(stride, value_width, packed):
    shapes = [(2, 11, 3, 8), (2, 11, 3, 8), (2, 11, 3, value_width)]
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).transpose(1, 2) for s in shapes]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    first, second = slice(0, 1), slice(1, 2)
    spans = [(slice(0, 2), 0, 11)]
    if packed:
        spans = [(first, 0, 1), (first, 1, 6), (first, 6, 11), (second, 0, 8), (second, 8, 11)]
    plain = attend_chunks_plain(*leaves, spans, stride, 0.3)
    expected = gradients(plain, leaves)
    for fast in (
        attend_chunks(*leaves, spans, stride, 0.3),
        attend_chunks_in_blocks(*leaves, spans, stride, 0.3, block=4),
    ):
        assert_close(fast, plain)
        for one, other in zip(gradients(fast, leaves), expected, strict=True):
            assert_close(one, other)
        assert fast.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("value_width", [8, 6])
def test_attention_by_phases_in_bfloat16_is_the_literal_mask_of_its_numbers(value_width):
    """Within what rounding results to bfloat16 changes: phases are computed in float32."""
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randn(2, 3, 21, width, generator=generator).bfloat16() for width in (8, 8, value_width)]
    spans = [(slice(0, 1), 0, 21), (slice(1, 2), 0, 9), (slice(1, 2), 9, 21)]
    leaves = [half.clone().requires_grad_() for half in halves]
    exact = [half.double().requires_grad_() for half in halves]
    fast, plain = attend_chunks(*leaves, spans, 2, 0.3), attend_chunks_plain(*exact, spans, 2, 0.3)
    assert fast.dtype == torch.bfloat16
    assert_close(fast.double(), plain, rtol=0.02, atol=0.02)
    back = torch.randn(fast.shape, generator=generator).bfloat16()
    found, expected = torch.autograd.grad(fast, leaves, back), torch.autograd.grad(plain, exact, back.double())
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, rtol=0.03, atol=0.05)


def test_training_holds_nothing_of_tokens_squared():
    """What is kept for the backward pass doubles with the tokens; the literal form's quadruples."""

    def kept(tokens: int, form) -> int:
        leaves = [torch.randn(1, 1, tokens, 4, requires_grad=True) for _ in range(3)]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()), lambda _: None):
            form(*leaves, [(slice(0, 1), 0, tokens)], 2, 0.5)
        return sum(sizes)

    assert kept(512, attend_chunks) == 2 * kept(256, attend_chunks)
    assert kept(512, attend_chunks_plain) > 3.5 * kept(256, attend_chunks_plain)


# What the form must and must not depend on


@every_stride
def test_later_tokens_do_not_change_earlier_rows(stride):
    module, x = attention(stride), inputs(1, 11)
    before = whole(module, x)
    for m in range(10):
        changed = x.clone()
        changed[:, m + 1 :] = inputs(1, 10 - m, seed=m + 50)
        after = whole(module, changed)
        assert_close(after[:, : m + 1], before[:, : m + 1], rtol=0, atol=0)
        assert (after[:, m + 1 :] - before[:, m + 1 :]).abs().max() > 1e-3


def test_a_token_sees_its_own_unfinished_chunk():
    """With chunk ends alone under a causal mask, token 5 of stride 4 would not see token 4, nor itself."""
    module, x = attention(4), inputs(1, 6)
    before = whole(module, x)[0, 5]
    changed = x.clone()
    changed[:, 4] = inputs(1, 1, seed=9)[:, 0]
    assert (whole(module, changed)[0, 5] - before).abs().max() > 1e-3


@every_stride
def test_packed_documents_restart_their_chunks(stride):
    module, x = attention(stride), inputs(2, 11)
    rows = [[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2], [0] * 5 + [PADDING] * 6]
    spans = [(0, 0, 3), (0, 3, 8), (0, 8, 11), (1, 0, 5), (1, 5, 11)]
    positions = torch.empty(2, 11, dtype=torch.int64)
    for row, start, end in spans:
        positions[row, start:end] = torch.arange(end - start)
    packed = module(x, context_of(x, rows=rows, positions=positions))
    for row, start, end in spans:
        assert_close(packed[row, start:end], whole(module, x[row : row + 1, start:end])[0])


@every_stride
def test_padding_on_the_right_changes_nothing(stride):
    module, x = attention(stride), inputs(2, 9)
    y = module(x, context_of(x, rows=[[0] * 9, [0] * 4 + [PADDING] * 5]))
    assert_close(y[1, :4], whole(module, x[1:, :4])[0])


@every_stride
def test_padding_on_the_left_does_not_move_chunk_borders_and_is_refused_by_caches(stride):
    module, x = attention(stride), inputs(1, 9)
    rows = [[PADDING] * 3 + [0] * 6]
    y = module(x, context_of(x, rows=rows, positions=torch.tensor([[0, 1, 2, *range(6)]])))
    assert_close(y[:, 3:], whole(module, x[:, 3:]))
    with pytest.raises(ValueError, match="padding must stand on the right"):
        context_of(x, new_cache(module, 1, 9), rows)


def test_with_weights_of_one_and_stride_one_it_is_mla():
    module, x = attention(1), inputs(2, 9)
    mla = filled(MultiHeadLatentAttention(MLAConfig(**SIZES), WIDTH, 1e-5))
    mla.load_state_dict(module.state_dict(), strict=False)
    assert (whole(module, x) - whole(mla, x)).abs().max() > 1e-3  # sigmoid weights do matter
    with torch.no_grad():
        module.chunk_gate.weight.zero_()
        module.latent_gate.weight.zero_()
        module.chunk_gate.bias.fill_(10.0)  # ⟨·,·⟩ = 400: the sigmoid is 1
        module.latent_gate.bias.fill_(10.0)
    assert_close(whole(module, x), whole(mla, x))


def test_the_options_change_the_result_and_start_as_nothing_where_they_can():
    x = inputs(1, 7)
    plain = attention(2)
    for option in ("rotary_scale", "part_norms"):
        module = TemporalLatentAttention(MTLAConfig(**SIZES, stride=2, **{option: True}), WIDTH, 1e-5).double()
        assert not module.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
        changed = (whole(module, x) - whole(plain, x)).abs().max()
        assert (changed == 0) == (option == "rotary_scale")
        if option == "rotary_scale":
            module.rotary_scale.weight.data.fill_(2.0)
            assert (whole(module, x) - whole(plain, x)).abs().max() > 1e-3


def test_the_rotary_factor_survives_a_fresh_start():
    module = TemporalLatentAttention(MTLAConfig(**SIZES, rotary_scale=True), WIDTH, 1e-5)
    module.rotary_scale.weight.data.zero_()
    with torch.no_grad():
        module.rotary_scale.initialize(torch.Generator(), 0.02)
    assert module.rotary_scale.weight.item() == 1


@pytest.mark.parametrize("options", [False, True])
def test_parameters_are_counted(options):
    module = attention(2, options)
    config = MTLAConfig(**SIZES, stride=2, **(OPTIONS if options else {}))
    assert config.parameters(WIDTH) == sum(p.numel() for p in module.parameters())


def test_half_precision_agrees_with_full_to_its_own_precision():
    module, x = attention(2), inputs(1, 600)
    expected = whole(module, x)
    module.to(torch.bfloat16)
    y = whole(module, x.bfloat16())
    assert (y.double() - expected).norm() < 0.03 * expected.norm()
