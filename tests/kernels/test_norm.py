"""The root-mean-square norm: kernel and twin against float64, forward and backward, for any number of threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from shoestring.kernels import compiled, norm

EPSILON = 1e-3
SHAPES = pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 64), (40, 100), (0, 8)])


@pytest.fixture(params=["kernel", "twin"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "twin":
        monkeypatch.setattr(norm, "_typed_kernel", lambda: None)


def operands(*shape: int) -> list[torch.Tensor]:
    """x, weight and the gradient of the result."""
    random = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=random) * 3 for size in (shape, shape[-1:], shape)]


@pytest.mark.usefixtures("either")
@SHAPES
def test_value_and_gradients_are_float64s_to_rounding(shape: tuple[int, ...]) -> None:
    x, weight, gradient = operands(*shape)
    wide = [x.double().requires_grad_(), weight.double().requires_grad_()]
    exact = torch.nn.functional.rms_norm(wide[0], shape[-1:], wide[1], EPSILON)
    exact.backward(gradient.double())
    y, scale = norm.rms_norm(x, weight, EPSILON)
    assert_close(y.double(), exact.detach(), rtol=1e-6, atol=1e-6)
    found = norm.rms_norm_backward(gradient, x, weight, scale, True)
    for one, other in zip(found, wide, strict=True):
        assert_close(one.double(), other.grad, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("either")
def test_a_frozen_weight_gets_no_gradient_and_a_transposed_one_is_taken() -> None:
    x, weight, gradient = operands(6, 10)
    _, scale = norm.rms_norm(x, weight, EPSILON)
    wanted = norm.rms_norm_backward(gradient, x, weight, scale, True)
    transposed = gradient.t().contiguous().t()
    assert_close(norm.rms_norm_backward(transposed, x, weight, scale, True), wanted, rtol=0, atol=0)
    x_gradient, none = norm.rms_norm_backward(gradient, x, weight, scale, False)
    assert none is None and torch.equal(x_gradient, wanted[0])


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_vanish(bad: float) -> None:
    x, weight, gradient = operands(4, 100)
    x[2, 50] = bad
    y, scale = norm.rms_norm(x, weight, EPSILON)
    assert not y[2].isfinite().all() and y[[0, 1, 3]].isfinite().all()
    assert not norm.rms_norm_backward(gradient, x, weight, scale, True)[0][2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_to_the_twin(dtype: torch.dtype) -> None:
    x, weight, gradient = (each.to(dtype) for each in operands(5, 100))
    (y, scale), (plain, _) = (f(x, weight, EPSILON) for f in (norm.rms_norm, norm.rms_norm_plain))
    assert y.dtype == dtype and torch.equal(y, plain)
    found = norm.rms_norm_backward(gradient, x, weight, scale, True)
    wanted = norm.rms_norm_backward_plain(gradient, x, weight, scale, True)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))  # type: ignore[arg-type]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, weight, gradient = operands(333, 70)
            y, scale = norm.rms_norm(x, weight, EPSILON)
            results.append([y, scale, *norm.rms_norm_backward(gradient, x, weight, scale, True)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.long
def test_nothing_is_read_or_written_beside_its_tensors(tmp_path: Path) -> None:
    """Norm, softmax, gate and rotary turn, of random shapes in memory of their exact size, under AddressSanitizer."""
    build = ["g++", "-std=c++17", "-O1", "-g", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = str(Path(__file__).with_name("passes_stress.cpp"))
    build += ["-I", str(Path(compiled.__file__).parent), source, "-o", str(tmp_path / "stress")]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, f"g++ has no sanitizer here, or the program is wrong: {made.stderr}"
    run = subprocess.run([str(tmp_path / "stress"), "300"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
