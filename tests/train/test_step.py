"""One step's gradients: independent of how the batch is cut, and equal to plain torch's."""

import pytest
import torch
import torch.nn.functional as F

from shoestring.train.objective import Loss, NextToken, next_token
from shoestring.train.resident import ResidentEngine
from tests.train import tiny


def gradients(microbatches, objective=next_token):
    model = tiny.model()
    loss = ResidentEngine.around(model, objective).forward_backward(microbatches)
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_microbatches_give_the_gradient_of_the_whole_batch(rows):
    whole = tiny.batch(4, ignored=0.5)
    counts = (whole.labels_BT != -100).sum(1)
    assert len(set(counts.tolist())) > 1, "the rows must count unevenly for this to mean anything"
    expected, wanted = gradients([whole])
    loss, found = gradients([tiny.rows_of(whole, i, i + rows) for i in range(0, 4, rows)])
    assert loss.count == expected.count and loss.mean == pytest.approx(expected.mean, rel=1e-6)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_a_mean_of_means_would_not_pass_the_test_above():
    class Means(NextToken):
        def __call__(self, hidden, head, batch):
            loss = super().__call__(hidden, head, batch)
            return Loss(loss.sum / loss.count * 8, 8)

    whole = tiny.batch(4, ignored=0.5)
    _, wanted = gradients([whole], objective=Means())
    _, found = gradients([tiny.rows_of(whole, i, i + 1) for i in range(4)], objective=Means())
    name = "blocks.0.feed_forward.up.weight"
    assert not torch.allclose(found[name] / found[name].norm(), wanted[name] / wanted[name].norm(), rtol=1e-2)


def test_the_gradient_is_that_of_the_mean_cross_entropy():
    whole = tiny.batch(3, ignored=0.4)
    _, found = gradients([whole])
    model = tiny.model()
    hidden, _ = model(whole.tokens_BT, whole.positions_BT, whole.segments_BT)
    F.cross_entropy(model.head(hidden).flatten(0, 1), whole.labels_BT.flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_extra_losses_of_the_decoder_pull_by_label_count_and_are_reported_apart():
    model = tiny.model()
    plain = model.forward

    def with_extra(*args, **kwargs):
        hidden, _ = plain(*args, **kwargs)
        return hidden, {"balance": model.norm.weight.sum()}

    whole = tiny.batch(4, ignored=0.5)
    cut = [tiny.rows_of(whole, 0, 1), tiny.rows_of(whole, 1, 4)]
    without = ResidentEngine.around(model, next_token).forward_backward(cut).mean
    before = model.norm.weight.grad.clone()
    model.zero_grad()
    model.forward = with_extra
    loss = ResidentEngine.around(model, next_token).forward_backward(cut)
    assert loss.mean == without, "nats per label, comparable with held-out loss"
    assert loss.metrics["balance"] / loss.count == pytest.approx(32)
    torch.testing.assert_close(model.norm.weight.grad - before, torch.ones(32))


def test_bfloat16_compute_keeps_float32_weights_and_gradients():
    model = tiny.model()
    whole = tiny.batch(2)
    exact = ResidentEngine.around(model, next_token).forward_backward([whole]).mean
    model.zero_grad()
    rounded = ResidentEngine.around(model, next_token, torch.bfloat16).forward_backward([whole]).mean
    assert rounded != exact and rounded == pytest.approx(exact, rel=1e-2)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
