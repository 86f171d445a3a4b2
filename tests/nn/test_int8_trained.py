"""Trained int8 linears and heads: near dense ones, unbiased gradients, weights rounded once a step, the kernel."""

import pytest
import torch

from shoestring.kernels import int8 as kernels
from shoestring.nn.head import Head
from shoestring.nn.head_loss import head_loss, head_loss_plain
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.int8_trained import Int8TrainedHead, Int8TrainedLinear


def pair(inputs=48, outputs=40, bias=False):
    torch.manual_seed(0)
    dense = Linear(inputs, outputs, bias=bias)
    return dense, Int8TrainedLinear.around(dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_near_the_dense_ones(bias, dtype):
    dense, rounded = pair(bias=bias)
    assert rounded.weight is dense.weight
    x, seed = torch.randn(3, 50, 48), torch.randn(3, 50, 40)
    found = []
    for linear in (dense, rounded):
        inputs = x.clone().requires_grad_()
        dense.weight.grad = None
        with torch.autocast("cpu", dtype=dtype, enabled=linear is rounded and dtype != torch.float32):
            y = linear(inputs)
        y.backward(seed.to(y.dtype))
        found.append((y.float(), inputs.grad, dense.weight.grad))
    for (mine, wanted), most in zip(zip(found[1], found[0], strict=True), (0.015, 0.02, 0.005), strict=True):
        difference = (mine - wanted).norm() / wanted.norm()
        assert difference < most
    assert (found[1][0] - found[0][0]).norm() > 0, "it rounds"


def test_input_gradients_are_right_in_the_mean():
    """By repetition: the mean's error falls as 1/√n, far under that of one."""
    dense, rounded = pair(24, 32)
    x = torch.randn(20, 24, requires_grad=True)
    seed = torch.randn(20, 32)
    codes, scale = rounded.rounding.of(rounded.weight)
    wanted = seed @ (codes.float() * scale.unsqueeze(1))  # of the rounded weights
    torch.manual_seed(7)
    total, alone = torch.zeros_like(wanted, dtype=torch.float64), []
    for _ in range(1600):
        (gradient,) = torch.autograd.grad(rounded(x), x, seed)
        total += gradient
        alone.append(float((gradient - wanted).norm()))
    one = sum(alone) / len(alone)
    assert one > 1e-3 * wanted.norm() and (total / 1600 - wanted).norm() < 2 * one / 40


def test_the_kernel_rounds_as_its_twin_from_any_offset():
    x, columns = torch.randn(9, 70), torch.rand(70)
    found = []
    for offset in (0, 1 << 31, 2**32 - 1):
        mine, twin = kernels.dither_rows(x, columns, offset), kernels.dither_rows_plain(x, columns, offset)
        assert torch.equal(mine.codes, twin.codes)
        found.append(mine.codes.clone())
    assert not torch.equal(found[0], found[1])


def test_weights_are_rounded_once_a_step():
    dense, rounded = pair()
    first, again = (rounded.rounding.of(rounded.weight) for _ in range(2))
    assert again[0] is first[0]
    with torch.no_grad():
        dense.weight.mul_(2)
    changed = rounded.rounding.of(rounded.weight)
    assert changed[0] is not first[0] and torch.equal(changed[0], first[0])
    torch.testing.assert_close(changed[1], first[1] * 2)


def test_evaluation_is_of_the_weights_themselves():
    dense, rounded = pair()
    x = torch.randn(50, 48)
    assert torch.equal(rounded.eval()(x), dense(x))


def heads(softcap=None, vocabulary=1500, width=32):
    """A head whose vocabulary makes two scales of a gradient's row, hidden states, and labels of which some are out."""
    torch.manual_seed(0)
    dense = Head(torch.nn.Parameter(torch.randn(vocabulary, width) / 4), softcap)
    hidden, labels = torch.randn(2, 40, width) * 2, torch.randint(vocabulary, (2, 40))
    labels[0, 3:7] = -100
    return dense, Int8TrainedHead(dense), hidden, labels


def gradients(loss, head, hidden, labels):
    hidden = hidden.clone().requires_grad_()
    total, count = loss(hidden, head, labels)
    assert count == 76
    return total, *torch.autograd.grad(total / count, [hidden, head.weight])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_heads_loss_and_gradients_are_near_the_dense_ones(dtype, softcap):
    dense, rounded, hidden, labels = heads(softcap)
    assert rounded.weight is dense.weight
    wanted = gradients(head_loss_plain, dense, hidden, labels)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found = gradients(head_loss, rounded, hidden, labels)
    assert abs(found[0] - wanted[0]) < 1e-3 * wanted[0] and found[0] != wanted[0]
    for mine, exact, most in zip(found[1:], wanted[1:], (0.02, 0.01), strict=True):
        assert mine.dtype == torch.float32
        assert 0 < (mine - exact).norm() < most * exact.norm()


def test_a_trained_heads_input_gradients_are_right_in_the_mean():
    """The logits do not change from one time to the next, so that the mean is that of the rounded tail alone."""
    _, rounded, hidden, labels = heads()
    torch.manual_seed(7)
    codes, scale = rounded.rounding.of(rounded.weight)
    weight, rough = rounded.weight.detach(), codes * scale.unsqueeze(1)
    gradient = torch.softmax(hidden.flatten(0, 1) @ rough.t(), 1)
    labels, total = labels.clamp_min(0).flatten(), torch.zeros(80, 32, dtype=torch.float64)
    gradient[torch.arange(80), labels] -= 1
    own = gradient[torch.arange(80), labels].unsqueeze(1)
    wanted = gradient @ rough + own * (weight - rough)[labels]  # the labels' numbers meet the weights themselves
    whole, into, alone = rounded.whole(torch.float32), torch.empty(80, 32), []
    kept = gradient.clone()
    for _ in range(400):
        whole.backward(gradient, labels, into)
        total += into
        alone.append(float((into - wanted).norm()))
    assert torch.equal(gradient, kept), "it is left as it was"
    one = sum(alone) / len(alone)
    assert one > 1e-4 * wanted.norm() and (total / 400 - wanted).norm() < 2 * one / 20


def test_an_evaluated_head_computes_with_its_weights_themselves():
    dense, rounded, hidden, labels = heads()
    found, wanted = (head_loss(hidden, head.eval(), labels)[0] for head in (rounded, dense))
    assert torch.equal(found, wanted)
