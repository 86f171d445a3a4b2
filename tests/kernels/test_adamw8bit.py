"""AdamW with moments in 8 bits: the kernel does what its twin does, whatever the numbers."""

import pytest
import torch

from shoestring.kernels import adamw8bit
from shoestring.kernels.adamw8bit import Eight, Step, adamw_8bit, adamw_8bit_plain


def states(weight):
    return [Eight.zeros(weight, True), Eight.zeros(weight, False)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.3, 0.4)])
def test_the_kernel_moves_as_the_twin(threads, betas, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    monkeypatch.setitem(adamw8bit._PORTION, "cpu", 1024)  # several portions
    try:
        random = torch.Generator().manual_seed(0)
        fast, plain = (torch.full((13, 512), 0.5) for _ in range(2))
        moments, others = states(fast), states(plain)
        for number in range(1, 5):
            gradient = torch.randn(13, 512, generator=random) * torch.rand(13, 1, generator=random) ** 8
            gradient[:, :7], gradient[3] = 0.0, 0.0
            step = Step(1e-2, betas, 1e-8, 0.1, number)
            adamw_8bit(fast, gradient, *moments, step)
            adamw_8bit_plain(plain, gradient, *others, step)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        for one, other in zip(moments, others, strict=True):
            torch.testing.assert_close(one.scale, other.scale, rtol=1e-5, atol=0)
            differ = (one.codes.int() - other.codes.int()).abs()
            assert differ.max() <= 1 and (differ > 0).double().mean() < 1e-3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("signed", [True, False])
def test_each_number_becomes_its_nearest_level(signed):
    """Numbers on, between and beside all levels, and halves; by brute force over the 256 of them."""
    levels = adamw8bit._levels(signed)
    halves = (levels[1:] + levels[:-1]) / 2
    near = [levels, halves, halves.nextafter(torch.tensor(2.0)), halves.nextafter(torch.tensor(-2.0))]
    numbers = torch.cat([*near, torch.logspace(-30, 0, 253)])[: 5 * 256 - 4]
    numbers = torch.cat([numbers, torch.ones(-len(numbers) % 256)])
    numbers.view(-1, 256)[:, -1] = 1.0  # so that the scale is 1
    mean, square = (Eight.zeros(numbers, s) for s in (True, False))
    root = numbers.clamp(min=0).sqrt()
    gradient = numbers if signed else root
    adamw_8bit(torch.zeros_like(numbers), gradient, mean, square, Step(0.0, (0.0, 0.0), 1.0, 0.0, 1))
    found = (mean if signed else square).values()
    given = numbers if signed else root * root
    distance = (given.unsqueeze(1) - levels).abs()
    torch.testing.assert_close((given - found).abs(), distance.min(1).values, rtol=0, atol=6e-8)
    assert (mean if signed else square).codes.unique().numel() > 250


def test_levels_are_torchaos():
    from torchao.optim.quant_utils import create_dynamic_map

    for signed in (True, False):
        assert torch.equal(adamw8bit._levels(signed), torch.tensor(create_dynamic_map(signed)))
