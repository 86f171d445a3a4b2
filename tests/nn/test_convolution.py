"""The convolution over the embedding equals its definition, forward and backward; documents do not see each other."""

import pytest
import torch

from shoestring.models.builder import build
from shoestring.nn.context import make_context
from shoestring.nn.convolution import EmbeddingConvolution, convolve_plain
from tests.models.test_count import config as a_config


def _layer(reach, width=6):
    layer = EmbeddingConvolution(reach, width).double()
    with torch.no_grad():
        layer.initialize(torch.Generator().manual_seed(reach), 0.02)
    return layer


@pytest.mark.parametrize("reach", [2, 4])
@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("documents", [False, True])
def test_it_equals_its_definition_forward_and_backward(reach, tokens, documents):
    layer, random = _layer(reach), torch.Generator().manual_seed(tokens)
    x_BTD = torch.randn(2, tokens, 6, generator=random, dtype=torch.float64)
    towards = torch.randn(2, tokens, 6, generator=random, dtype=torch.float64)
    positions = torch.arange(tokens).expand(2, tokens).clone()
    if documents:
        positions[1] = torch.arange(tokens) % 3
    results = []
    for plain in (False, True):
        x, layer.weight.grad = x_BTD.clone().requires_grad_(), None
        context = make_context(torch.zeros(2, tokens, dtype=torch.int64), None, positions)
        y = convolve_plain(x, layer.weight, positions) if plain else layer(x, context)
        (y * towards).sum().backward()
        results.append((y.detach(), x.grad, layer.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_definition_is_the_sum_over_a_documents_last_tokens():
    weight_KD = torch.tensor([[10.0], [100.0]])
    x_BTD = torch.tensor([1.0, 2, 3, 4, 5]).view(1, 5, 1)
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert convolve_plain(x_BTD, weight_KD, positions).flatten().tolist() == [1, 12, 123, 4, 45]


def test_a_second_document_in_a_row_is_as_if_it_were_alone():
    model = build(a_config(embedding_convolution=4), seed=0)
    tokens = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(1))
    positions, segments = torch.tensor([[0, 1, 2, 3, 4, *range(7)]]), torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        packed = model(tokens, positions, segments)[0][:, 5:]
        alone = model(tokens[:, 5:])[0]
        apart = build(a_config(), seed=0)(tokens[:, 5:])[0]
    torch.testing.assert_close(packed, alone)
    assert not torch.allclose(alone, apart, atol=1e-3)


def test_mtla_is_refused():
    latent = {"kind": "mtla", "heads": 4, "latent_rank": 24, "content_width": 16, "rotary_width": 8, "value_width": 16}
    with pytest.raises(ValueError, match="embedding_convolution keeps every token's embedding"):
        a_config(embedding_convolution=2, attention=latent)
