"""The trained int8 linear: near the dense one, unbiased gradients, weights rounded once a step, the kernel."""

import pytest
import torch

from shoestring.kernels import int8 as kernels
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.int8_trained import Int8TrainedLinear


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
    codes, scale = rounded._rounded()
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
    first = rounded._rounded()
    assert rounded._rounded()[0] is first[0]
    with torch.no_grad():
        dense.weight.mul_(2)
    assert rounded._rounded()[0] is not first[0]
    torch.testing.assert_close(rounded._rounded()[1], first[1] * 2)


def test_evaluation_is_of_the_weights_themselves():
    dense, rounded = pair()
    x = torch.randn(50, 48)
    assert torch.equal(rounded.eval()(x), dense(x))
