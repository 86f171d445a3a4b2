"""Latent attention against transformers' DeepSeek-V3, against a literal loop, and its cached forms against none."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from shoestring.nn.attention.config import MLAConfig
from shoestring.nn.attention.core import attend, attend_plain
from shoestring.nn.attention.mla import MultiHeadLatentAttention
from shoestring.nn.config import RopeConfig, YarnScaling
from shoestring.nn.context import PADDING, make_context
from shoestring.nn.latent_cache import LatentCache
from shoestring.nn.rope import RotaryEmbedding

WIDTH = 24
SIZES = {"heads": 3, "latent_rank": 16, "content_width": 8, "rotary_width": 4, "value_width": 6}
VARIANTS = {
    "plain": {},
    "query latent, biases": {"query_rank": 12, "bias": True},
    "interleaved, mscale": {"rope_interleave": True, "mscale": 1.2},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
ROTARY = RotaryEmbedding(RopeConfig(theta=100.0), 4)


def attention(variant: str = "plain", dtype: torch.dtype = torch.float64) -> MultiHeadLatentAttention:
    torch.manual_seed(0)
    module = MultiHeadLatentAttention(MLAConfig(**SIZES, **VARIANTS[variant]), WIDTH, 1e-5).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(("norm" in name) + 0.4 * torch.randn(parameter.shape))
    return module


def inputs(batch: int, tokens: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def context_of(x_BTD: torch.Tensor, rows=None, cache=None):
    segments = None if rows is None else torch.tensor(rows)
    return make_context(x_BTD[..., 0].long(), ROTARY, segments_BT=segments, cache=cache)


def literal(module: MultiHeadLatentAttention, x_BTD: torch.Tensor) -> torch.Tensor:
    """The definition, head by head with every score held."""
    context = context_of(x_BTD)
    content, rotary = module.queries(x_BTD, context)
    latent, key = module.latents(x_BTD, context)
    up = module.expand.weight.view(module.heads, module.content + module.value, module.rank)
    seen = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).tril()
    heads = []
    for h in range(module.heads):
        uk, uv = up[h, : module.content], up[h, module.content :]
        scores = content[:, h] @ (latent @ uk.t()).transpose(1, 2) + rotary[:, h] @ key.transpose(1, 2)
        shares = (scores * module.scale).masked_fill(~seen, float("-inf")).softmax(-1)
        heads.append(shares @ (latent @ uv.t()))
    return module.output(torch.cat(heads, dim=-1))


def with_gradients(module: torch.nn.Module, function, *arguments: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in arguments]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    wanted = [*leaves, *module.parameters()]
    return [y, *torch.autograd.grad((y * weights).sum(), wanted)]


@every_variant
def test_latent_attention_is_its_definition_forward_and_backward(variant):
    module, x = attention(variant), inputs(2, 9)
    fast = with_gradients(module, lambda x: module(x, context_of(x)), x)
    for one, other in zip(fast, with_gradients(module, lambda x: literal(module, x), x), strict=True):
        assert_close(one, other)


@every_variant
def test_absorbed_equals_expanded_forward_and_backward(variant):
    module, x = attention(variant), inputs(2, 7)
    context = context_of(x)

    def result(form):
        def run(x):
            columns = torch.cat(module.latents(x, context), dim=-1)
            return form(*module.queries(x, context), columns, context.visibility)

        return run

    module.output.requires_grad_(False)
    parameters = [p for name, p in module.named_parameters() if not name.startswith("output")]
    results = []
    for form in (module.naive, module.absorbed):
        leaf = x.detach().requires_grad_()
        y = result(form)(leaf)
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *parameters])])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_one_query_shares_its_heads_among_threads(threads, monkeypatch):
    module, x = attention(), inputs(1, 9)
    expected = module(x, context_of(x))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert module.groups_for(1) == {1: 1, 2: 3, 3: 3, 64: 3}[threads] and module.groups_for(64) == 1
    cache = new_cache(1, 9)
    feed(module, cache, x[:, :8], [8])
    assert_close(feed(module, cache, x[:, 8:], [1]), expected[:, 8:])


def test_absorption_works_through_a_linear_of_another_kind():
    """Adapters and quantizers replace linears: the matrix is then what they compute, not a `weight` they hold."""
    module, x = attention(), inputs(2, 1)
    context = context_of(x)
    columns, queries = torch.cat(module.latents(x, context), dim=-1), module.queries(x, context)
    expected = module.absorbed(*queries, columns, context.visibility)
    module.expand = torch.nn.Sequential(module.expand)  # type: ignore[assignment]
    assert_close(module.absorbed(*queries, columns, context.visibility), expected)


def test_packed_documents_equal_each_alone():
    module, x = attention(), inputs(2, 9)
    rows = [[0, 0, 0, 1, 1, 1, 1, 1, 2], [0] * 5 + [PADDING] * 4]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3]])
    context = make_context(x[..., 0].long(), ROTARY, positions, torch.tensor(rows))
    y = module(x, context)
    for row, start, end in [(0, 0, 3), (0, 3, 8), (0, 8, 9), (1, 0, 5)]:
        alone = x[row : row + 1, start:end]
        assert_close(y[row, start:end], module(alone, context_of(alone))[0])


# The cache


def new_cache(batch: int, capacity: int, dtype: torch.dtype = torch.float64) -> LatentCache:
    cache = LatentCache(1, batch, capacity, SIZES["latent_rank"] + SIZES["rotary_width"], dtype=dtype)
    cache.latents[0].fill_(float("nan"))
    return cache


def feed(module, cache, x_BTD: torch.Tensor, counts: list[int]) -> torch.Tensor:
    rows = [[0] * count + [PADDING] * (x_BTD.shape[1] - count) for count in counts]
    context = context_of(x_BTD, rows, cache)
    y = module(x_BTD, context, cache.layer(0))
    cache.advance(context.counts)
    return y


@every_variant
@pytest.mark.parametrize("prefill", [[5, 5], [6, 2], [1, 1]])
@pytest.mark.parametrize("step", [1, 3])
def test_cached_equals_uncached_for_even_and_ragged_rows(variant, prefill, step):
    module, x = attention(variant), inputs(2, 15)
    whole = module(x, context_of(x))
    cache = new_cache(2, 15)
    y = feed(module, cache, x[:, : max(prefill)], prefill)
    for row, count in enumerate(prefill):
        assert_close(y[row, :count], whole[row, :count])
    for _ in range(3):
        lengths = list(cache.lengths)
        new = torch.stack([x[row, length : length + step] for row, length in enumerate(lengths)])
        y = feed(module, cache, new, [step, step])
        for row, length in enumerate(lengths):
            assert_close(y[row], whole[row, length : length + step])


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_long_and_a_short_append_take_different_forms_with_one_result(tokens, monkeypatch):
    module, x = attention(), inputs(2, 6 + tokens)
    cache = new_cache(2, 12)
    feed(module, cache, x[:, :6], [6, 6])
    before = cache.state()
    expected = feed(module, cache, x[:, 6:], [tokens, tokens])
    for form in (module.absorbed, module.naive):
        cache.restore(before)
        monkeypatch.setattr(module, "cached", form)
        assert_close(feed(module, cache, x[:, 6:], [tokens, tokens]), expected)


def test_decoding_absorbs_and_long_prefills_expand():
    module = attention()
    taken = []
    module.absorbed = lambda content, *rest: taken.append(("absorbed", content.shape[2]))  # type: ignore
    module.naive = lambda content, *rest: taken.append(("naive", content.shape[2]))  # type: ignore
    for tokens in (1, 500):
        module.cached(torch.empty(1, 3, tokens, 8), torch.empty(0), torch.empty(0), None)  # type: ignore[arg-type]
    assert taken == [("absorbed", 1), ("naive", 500)]


def test_the_cache_holds_rank_plus_rotary_numbers_per_token_and_moves_like_the_others():
    module, x = attention(), inputs(2, 12)
    cache = new_cache(2, 12)
    assert cache.bytes_per_token() == (16 + 4) * 8
    feed(module, cache, x[:, :6], [6, 4])
    cache.truncate([3, 4])
    cache.reorder([1, 0, 1])
    assert cache.lengths == [4, 3, 4]
    other = new_cache(3, 20)
    other.restore(cache.state())
    new = inputs(3, 1, seed=5)
    y = feed(module, other, new, [1, 1, 1])
    for place, row in enumerate([1, 0, 1]):
        alone = torch.cat([x[row, : [3, 4][row]], new[place]]).unsqueeze(0)
        assert_close(y[place, 0], module(alone, context_of(alone))[0, -1])


# transformers


def peer_of(yarn: bool, **options) -> tuple[DeepseekV3Attention, DeepseekV3RotaryEmbedding, DeepseekV3Config]:
    rope = {"rope_type": "default", "rope_theta": 100.0}
    if yarn:
        rope = {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16,
            "mscale": 0.8, "mscale_all_dim": 0.6,
        }  # fmt: skip
    config = DeepseekV3Config(
        vocab_size=11, hidden_size=WIDTH, num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=16,
        qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, max_position_embeddings=64, rope_parameters=rope,
        attn_implementation="eager", **options,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = DeepseekV3Attention(config, 0)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(("norm" in name) + 0.2 * torch.randn(parameter.shape))
    return peer, DeepseekV3RotaryEmbedding(config), config


NAMES = {
    "query.down": "q_a_proj", "query.norm": "q_a_layernorm", "query.up": "q_b_proj", "query": "q_proj",
    "latent": "kv_a_proj_with_mqa", "latent_norm": "kv_a_layernorm", "expand": "kv_b_proj", "output": "o_proj",
}  # fmt: skip


def assert_agrees_with_peer(yarn: bool, query_rank: int | None, bias: bool, interleave: bool, **changes) -> None:
    peer, peer_rotary, _ = peer_of(yarn, q_lora_rank=query_rank, attention_bias=bias, rope_interleave=interleave)
    log = 0.1 * torch.tensor(4.0, dtype=torch.float64).log().item()
    options = {
        "query_rank": query_rank, "bias": bias, "rope_interleave": interleave,
        "mscale": 1 + 0.6 * log if yarn else 1.0, **changes,
    }  # fmt: skip
    scaling = YarnScaling(factor=4.0, original_context=16, attention_factor=(1 + 0.8 * log) / (1 + 0.6 * log))
    rotary = RotaryEmbedding(RopeConfig(theta=100.0, scaling=scaling if yarn else None), 4)
    module = MultiHeadLatentAttention(MLAConfig(**{**SIZES, **options}), WIDTH, 1e-5)
    weights = dict(peer.named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            stem, kind = name.rsplit(".", 1)
            parameter.copy_(weights.pop(f"{NAMES[stem]}.{kind}"))
    assert not weights
    x = inputs(2, 40, torch.float32)
    mask = torch.full((40, 40), float("-inf")).triu(1)[None, None]

    def theirs(x):
        return peer(x, peer_rotary(x, torch.arange(40).unsqueeze(0)), mask)[0]

    def ours(x):
        return module(x, make_context(x[..., 0].long(), rotary))

    mine, judged = with_gradients(module, ours, x), with_gradients(peer, theirs, x)
    assert_close(mine[0], judged[0])
    assert_close(mine[1], judged[1])
    gradients = dict(zip((n for n, _ in peer.named_parameters()), judged[2:], strict=True))
    for (name, _), gradient in zip(module.named_parameters(), mine[2:], strict=True):
        stem, kind = name.rsplit(".", 1)
        judge = gradients[f"{NAMES[stem]}.{kind}"]
        assert_close(gradient, judge, rtol=1.3e-6, atol=1e-5 * max(1.0, float(judge.abs().max())))


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize("query_rank, bias", [(None, False), (12, True)])
@pytest.mark.parametrize("interleave", [True, False])
def test_it_agrees_with_deepseek_v3_of_transformers(yarn, query_rank, bias, interleave):
    assert_agrees_with_peer(yarn, query_rank, bias, interleave)


@pytest.mark.parametrize("wrong", [{"rope_interleave": False}, {"mscale": 1.0}, {"latent_epsilon": 1e-1}])
def test_a_forgotten_detail_of_deepseek_is_noticed(wrong):
    with pytest.raises(AssertionError):
        assert_agrees_with_peer(True, None, False, True, **wrong)


def test_training_keeps_nothing_of_tokens_squared():
    """What is kept for the backward pass doubles with the tokens."""
    module = attention(dtype=torch.float32)

    def kept(tokens: int) -> int:
        x = inputs(1, tokens, torch.float32)
        context = context_of(x)
        sizes: list[int] = []
        weights = {parameter.data_ptr() for parameter in module.parameters()}

        def count(tensor: torch.Tensor) -> None:
            if tensor.untyped_storage().data_ptr() not in weights:
                sizes.append(tensor.numel())

        with torch.autograd.graph.saved_tensors_hooks(count, lambda _: None):
            module(x, context)
        return sum(sizes)

    assert kept(1024) == 2 * kept(512)


@pytest.mark.parametrize("value_width", [3, 6, 11])
def test_attend_pads_to_one_width_without_changing_the_result(value_width):
    q, k = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64)
    v = torch.randn(2, 3, 5, value_width, dtype=torch.float64)
    seen = context_of(inputs(2, 5)).visibility
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert_close(attend(q, k, v, seen, 0.3), attend_plain(q, k, v, mask, 0.3))


@every_variant
def test_parameters_are_counted(variant):
    config = MLAConfig(**SIZES, **VARIANTS[variant])
    held = sum(p.numel() for p in MultiHeadLatentAttention(config, WIDTH, 1e-5).parameters())
    assert config.parameters(WIDTH) == held
