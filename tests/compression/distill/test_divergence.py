"""Each divergence and its gradient against plain torch in float64; what samples give is, in expectation, the whole."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from shoestring.compression.distill import loss
from shoestring.compression.distill.config import DistillConfig
from shoestring.compression.distill.divergence import (
    divergence_of,
    draw,
    drawn_of,
    forward_kl,
    mixture,
    sampled_kl,
)
from shoestring.compression.distill.loss import Sampled, Whole, follow_loss
from shoestring.nn import head_blocks
from shoestring.nn.head import Head

KINDS = {"forward": {}, "reverse": {}, "mixture": {"beta": 0.3}}


def by_torch(log_q: Tensor, log_p: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """The definitions, by torch's own kl_div, as trl's GKDTrainer has them."""
    if kind == "forward":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if kind == "reverse":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    mixed = torch.logsumexp(torch.stack([log_q + math.log(1 - beta), log_p + math.log(beta)]), dim=0)
    theirs = F.kl_div(mixed, log_p, reduction="sum", log_target=True)
    ours = F.kl_div(mixed, log_q, reduction="sum", log_target=True)
    return beta * theirs + (1 - beta) * ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_and_its_gradient_are_those_of_torch(kind: str) -> None:
    torch.manual_seed(1)
    z, log_p = torch.randn(7, 11, dtype=torch.float64), torch.randn(7, 11, dtype=torch.float64).log_softmax(-1)
    z.requires_grad_()
    expected = by_torch(z.log_softmax(-1), log_p, kind, **KINDS[kind])
    (gradient,) = torch.autograd.grad(expected, z)
    settings = DistillConfig.model_validate({"divergence": kind, **KINDS[kind]})
    value, slope = divergence_of(settings)(z.detach().log_softmax(-1), log_p.clone())
    assert_close(value.sum(), expected.detach())
    assert_close(slope, gradient)


def test_the_mixture_tends_to_both_ends() -> None:
    torch.manual_seed(1)
    log_q, log_p = (torch.randn(5, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    for beta, kind in ((1e-6, "forward"), (1 - 1e-6, "reverse")):
        value, _ = mixture(log_q.clone(), log_p.clone(), beta)
        share = beta if kind == "forward" else 1 - beta
        assert_close(value.sum() / share, by_torch(log_q, log_p, kind), rtol=1e-3, atol=0)


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("kind", "temperature", "labels"), [
    ("forward", 1.0, 0.0), ("forward", 2.0, 0.3), ("reverse", 0.5, 0.3), ("mixture", 1.5, 0.25),
])  # fmt: skip
def test_the_loss_in_chunks_and_its_gradients_are_those_of_torch(
    kind: str, temperature: float, labels: float, softcap: float | None, trained: bool, more: int, monkeypatch
) -> None:
    """more: rows that each chunk is filled up with, as in half precision."""
    monkeypatch.setattr(loss, "filled_rows", lambda x, count: count + more)
    monkeypatch.setattr(head_blocks, "COMPARED_BYTES", 4 * 23 * 3)  # three rows in a chunk
    torch.manual_seed(1)
    rows, theirs = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.randn(23, 5, dtype=torch.float64), requires_grad=trained)
    teacher = Head(torch.randn(23, 4, dtype=torch.float64), softcap)
    rows.requires_grad_()
    head, labels_N = Head(weight, softcap), torch.randint(23, (8,))
    log_p = (teacher(theirs) / temperature).log_softmax(-1)
    logits = head(rows)
    divergence = by_torch((logits / temperature).log_softmax(-1), log_p, kind, **KINDS[kind])
    crossed = F.cross_entropy(logits, labels_N, reduction="sum")
    expected = (1 - labels) * temperature**2 * divergence + labels * crossed
    wanted = [rows, weight] if trained else [rows]
    gradients = torch.autograd.grad(expected, wanted)
    settings = DistillConfig.model_validate({"divergence": kind, **KINDS[kind]})
    target = Whole(theirs, teacher, divergence_of(settings), temperature)
    total, value, cross = follow_loss(rows, head, target, labels_N, labels)
    assert_close([total, value, cross], [expected, divergence, crossed])
    assert_close(torch.autograd.grad(3 * total, wanted), tuple(3 * gradient for gradient in gradients))


def test_what_is_expected_of_samples_is_the_whole_divergence_value_and_gradient() -> None:
    """By enumeration: all 5³ ways to draw three tokens of five, each with its probability."""
    torch.manual_seed(1)
    vocabulary, count = 5, 3
    rows, weight = torch.randn(1, 4, dtype=torch.float64), torch.randn(vocabulary, 4, dtype=torch.float64)
    log_p = (1.5 * torch.randn(1, vocabulary, dtype=torch.float64)).log_softmax(-1)
    p, entropy = log_p.exp()[0], -(log_p.exp() * log_p).sum(-1)
    label, temperature = torch.tensor([2]), 1.5

    def by(target) -> tuple[Tensor, ...]:
        hidden, head = rows.clone().requires_grad_(), Head(torch.nn.Parameter(weight.clone()))
        total, _, _ = follow_loss(hidden, head, target, label, 0.2)
        return (total.detach(), *torch.autograd.grad(total, [hidden, head.weight]))

    teacher = Head(log_p.T.contiguous())  # whose logits behind the hidden state 1 are log p
    whole = by(Whole(torch.ones(1, 1, dtype=torch.float64) * temperature, teacher, forward_kl, temperature))
    expected = [torch.zeros_like(part) for part in whole]
    single = []
    for ids in itertools.product(range(vocabulary), repeat=count):
        chance = p[list(ids)].prod()
        found = by(Sampled(drawn_of(torch.tensor([ids]), entropy), temperature))
        single.append(found[2])
        for total, part in zip(expected, found, strict=True):
            total += chance * part
    # Weights of draws are float32; thirds are exact to its last bit.
    assert_close(tuple(expected), whole, rtol=1e-6, atol=1e-7)
    assert max(float((one - whole[2]).abs().max()) for one in single) > 0.1  # one draw alone is something else


def test_keeping_the_likeliest_tokens_instead_would_be_biased() -> None:
    """The negative control of the test above: top-k, renormalized."""
    log_p = torch.tensor([[0.5, 0.2, 0.2, 0.05, 0.05]], dtype=torch.float64).log()
    log_q = torch.full((1, 5), 0.2, dtype=torch.float64).log()
    _, whole = forward_kl(log_q.clone(), log_p.clone())
    top = drawn_of(torch.tensor([[0, 0, 0, 1, 2]]), torch.zeros(1))
    _, biased = sampled_kl(log_q.clone(), top)
    assert float((biased - whole).abs().max()) > 0.04


def test_tokens_are_drawn_as_often_as_they_are_likely_and_counted_once() -> None:
    p = torch.tensor([0.6, 0.3, 0.1, 0.0]).expand(4000, 4)
    ids = draw(p, 10, torch.Generator().manual_seed(1))
    drawn = drawn_of(ids, torch.zeros(4000))
    shares = torch.zeros(4).index_add_(0, drawn.ids, drawn.weights) / 4000
    assert_close(shares, p[0], rtol=0, atol=0.01)  # a standard deviation is 0.0025
    assert_close(torch.zeros(4000).index_add_(0, drawn.rows, drawn.weights), torch.ones(4000))
    pairs = torch.stack([drawn.rows, drawn.ids])
    assert len(pairs.unique(dim=1).T) == len(drawn.ids)
    part = drawn.part(100, 200)
    assert torch.equal(part.ids, drawn_of(ids[100:200], torch.zeros(100)).ids) and int(part.rows.max()) == 99
