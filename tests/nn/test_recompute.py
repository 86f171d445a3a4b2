"""`recomputing` drops the tensor it is given, makes it again once, and changes no gradient."""

from __future__ import annotations

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close

from shoestring.nn.recompute import recomputing, recomputing_nothing


class Counting(nn.Module):
    """x³, counting its calls: an operation whose output is worth dropping."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return Cube.apply(x)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        return gradients[0] * 3 * x**2


def problem():
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    linears = [nn.Linear(6, 7).double() for _ in range(3)]
    return x, linears, Counting()


def run(recompute: bool):
    x, linears, cube = problem()
    value = cube(x)
    if recompute:
        with recomputing(value, cube, x):
            y = sum(linear(value).sin().sum() for linear in linears)
    else:
        y = sum(linear(value).sin().sum() for linear in linears)
    inputs = [x, *(p for linear in linears for p in linear.parameters())]
    del value
    return torch.autograd.grad(y, inputs), cube.calls


def test_gradients_are_the_same_with_and_without():
    kept, recomputed = run(False)[0], run(True)[0]
    for one, other in zip(kept, recomputed, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_three_consumers_share_one_recomputation():
    assert run(False)[1] == 1
    assert run(True)[1] == 2


def is_freed(recompute: bool) -> bool:
    """Whether the value's memory is free after the forward pass, with the graph still there."""
    x, linears, cube = problem()
    value = cube(x)
    memory = StorageWeakRef(value.untyped_storage())
    if recompute:
        with recomputing(value, cube, x):
            y = linears[0](value).sum()
    else:
        y = linears[0](value).sum()
    del value
    assert y.grad_fn is not None
    return memory.expired()


def test_its_memory_is_freed_before_the_backward_pass():
    assert not is_freed(recompute=False)
    assert is_freed(recompute=True)


def test_it_can_go_backward_twice():
    x, linears, cube = problem()
    value = cube(x)
    with recomputing(value, cube, x):
        y = sum(linear(value).sin().sum() for linear in linears)
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert_close(torch.autograd.grad(y, x)[0], first)


def test_without_gradients_it_does_nothing():
    x, linears, cube = problem()
    with torch.no_grad():
        value = cube(x)
        with recomputing(value, cube, x):
            linears[0](value)
    assert cube.calls == 1


def test_it_can_be_switched_off_for_a_checkpoint():
    x, linears, cube = problem()
    value = cube(x)
    with recomputing_nothing(), recomputing(value, cube, x):
        y = linears[0](value).sum()
    y.backward()
    assert cube.calls == 1
