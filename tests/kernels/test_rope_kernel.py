"""The turn of rotary positions: kernel and twin against products of complex numbers in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from shoestring.kernels import rope
from shoestring.nn.rope import RotaryTables, rotate


def forbidden(*_: object) -> Tensor:
    raise AssertionError("the other one of kernel and twin was called")


@pytest.fixture(params=["kernel", "twin"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "twin":
        monkeypatch.setattr(rope, "_typed_kernel", lambda: None)
    elif rope._typed_kernel() is None:
        pytest.skip("no compiler here")
    else:
        monkeypatch.setattr(rope, "turn_plain", forbidden)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tables_of(rows: int, tokens: int, half: int) -> RotaryTables:
    """With a temperature, as YaRN has one: not only turns."""
    angles = random(rows, 1, tokens, half, seed=7) * 10
    return RotaryTables(angles.cos() * 1.3, angles.sin() * 1.3)


def exactly(x: Tensor, tables: RotaryTables, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    planes = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = planes * torch.complex(tables.cos.double(), direction * tables.sin.double())
    return torch.cat([turned.real, turned.imag], dim=-1)


LAYOUTS: dict[str, Callable[[int, int, int, int], Tensor]] = {  # -> [B, H, T, C]
    "heads in rows": lambda b, h, t, c: random(b, h, t, c),
    "heads in tokens": lambda b, h, t, c: random(b, t, h, c).transpose(1, 2),
    "a part of wider heads": lambda b, h, t, c: random(b, t, h, c + 5)[..., 3 : 3 + c].transpose(1, 2),
    "one head for all": lambda b, h, t, c: random(b, t, 1, c).transpose(1, 2).expand(b, h, t, c),
    "all tokens from one": lambda b, h, t, c: random(b, h, 1, c).expand(b, h, t, c),
}
SHAPES = [(1, 1, 1, 2), (2, 3, 5, 6), (3, 2, 7, 64), (1, 5, 9, 26), (2, 9, 40, 64), (3, 1, 4, 70), (2, 3, 0, 8)]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", [1, -1])
def test_the_turn_is_float64s_to_rounding_in_xs_dtype_and_strides(
    dtype: torch.dtype, layout: str, direction: int
) -> None:
    for shape in SHAPES:
        for table_rows in {1, shape[0]}:
            x, tables = LAYOUTS[layout](*shape).to(dtype), tables_of(table_rows, shape[2], shape[3] // 2)
            y, exact = rope.turn(x, *tables, direction), exactly(x, tables, direction)
            assert y.dtype == dtype and y.stride() == torch.empty_like(x).stride()
            rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6  # rounded once
            assert_close(y.double(), exact, rtol=rounding, atol=2e-6)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table_rows", [1, 2])
def test_the_gradient_of_a_rotation_is_the_turn_back(dtype: torch.dtype, table_rows: int) -> None:
    leaf = random(2, 11, 3, 20).to(dtype).requires_grad_()
    gradient, tables = random(2, 3, 11, 20, seed=1).to(dtype), tables_of(table_rows, 11, 10)
    y = rotate(leaf.transpose(1, 2), tables)
    y.backward(gradient)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert_close(y.detach().double(), exactly(leaf.detach().transpose(1, 2), tables, 1), rtol=rounding, atol=2e-6)
    assert leaf.grad is not None and leaf.grad.dtype == dtype
    assert_close(leaf.grad.transpose(1, 2).double(), exactly(gradient, tables, -1), rtol=rounding, atol=2e-6)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_plane_and_no_other(dtype: torch.dtype, bad: float) -> None:
    x = random(2, 3, 5, 20).to(dtype)
    x[1, 2, 3, 14] = bad
    finite = rope.turn(x, *tables_of(1, 5, 10), 1).isfinite()
    assert not finite[1, 2, 3, 4] and not finite[1, 2, 3, 14] and int((~finite).sum()) == 2


@pytest.mark.parametrize(
    "x",
    [
        random(2, 3, 5, 8).double(),
        random(2, 3, 5, 8).half(),
        random(2, 3, 8, 5).transpose(2, 3),
        random(2, 3, 12).unfold(-1, 8, 1),
    ],
    ids=["float64", "float16", "last stride", "windows that overlap"],
)
def test_what_the_kernel_does_not_take_goes_to_the_twin(x: Tensor) -> None:
    tables = tables_of(1, 5, 4)
    y = rope.turn(x, *tables, 1)
    assert y.dtype == x.dtype and torch.equal(y, rope.turn_plain(x, *tables, 1))


def test_tables_the_kernel_does_not_take_go_to_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "_typed_kernel", forbidden)
    x, tables = random(2, 3, 5, 8), tables_of(1, 5, 4)
    apart = [torch.stack([table, table], dim=-1)[..., 0] for table in tables]
    wide = [table.double() for table in tables_of(1, 1, 4)]
    assert_close(rope.turn(x, *apart, 1).double(), exactly(x, tables, 1), rtol=1e-6, atol=2e-6)
    assert_close(rope.turn(x.double(), *wide, 1), exactly(x, RotaryTables(*wide), 1))
    shared = tables_of(1, 1, 4)  # one position for all tokens
    assert_close(rope.turn(x, *shared, 1).double(), exactly(x, shared, 1), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    x, tables = random(2, 301, 3, 54).to(dtype).transpose(1, 2), tables_of(2, 301, 27)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(rope.turn(x, *tables, 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
