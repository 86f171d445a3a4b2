"""Softmax of rows with cross-entropy's numbers: kernel and twin against float64, in blocks, and what is not finite."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from shoestring.kernels import softmax
from shoestring.nn.head_blocks import row_stride

SHAPES = pytest.mark.parametrize("rows,vocabulary", [(1, 1), (3, 63), (5, 64), (7, 1000), (2, 9001)])


@pytest.fixture(params=["kernel", "twin"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "twin":
        monkeypatch.setattr(softmax, "_typed_kernel", lambda: None)


def problem(rows: int, vocabulary: int, spread: float = 5.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose rows lie further apart than they are long, with something in between."""
    random = torch.Generator().manual_seed(rows)
    wide = torch.randn(rows, row_stride(vocabulary) + 3, generator=random) * spread
    return wide[:, :vocabulary], torch.randint(0, vocabulary, (rows,), generator=random)


@pytest.mark.usefixtures("either")
@SHAPES
@pytest.mark.parametrize("spread", [5.0, 300.0])
def test_loss_and_gradient_are_float64s_to_rounding(rows: int, vocabulary: int, spread: float) -> None:
    logits, labels = problem(rows, vocabulary, spread)
    exact = logits.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    losses.sum().backward()
    alone = logits.clone()
    for normalizers, labelled in (softmax.log_sums(alone, labels), softmax.softmax_rows(logits, labels)):
        assert_close((normalizers - labelled).double(), losses.detach(), rtol=1e-6, atol=2e-7 * spread)
    assert_close(logits.double(), exact.grad, rtol=3e-5, atol=1e-7)


@pytest.mark.usefixtures("either")
@SHAPES
def test_bfloat16_is_computed_in_float32_and_rounded_once(rows: int, vocabulary: int) -> None:
    logits, labels = problem(rows, vocabulary)
    half = logits.bfloat16()
    exact = half.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    losses.sum().backward()
    normalizers, labelled = softmax.softmax_rows(half, labels)
    assert normalizers.dtype == labelled.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert_close((normalizers - labelled).double(), losses.detach(), rtol=1e-6, atol=1e-6)
    assert_close(half.double(), exact.grad, rtol=2**-8, atol=1e-7)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_bfloat16(bad: float) -> None:
    logits, labels = problem(2, 100)
    half = logits.bfloat16()
    half[0, 7] = bad
    normalizers, _ = softmax.softmax_rows(half, labels)
    assert normalizers.isfinite().tolist() == [False, True] and not half[0].isfinite().all()


@pytest.mark.usefixtures("either")
def test_in_blocks_each_label_is_found_once_and_left_out_of_the_probabilities() -> None:
    logits, labels = problem(6, 100)
    labels[:3] = torch.tensor([0, 39, 40])
    exact, sums, found = logits.double(), [], torch.zeros(6, dtype=torch.int64)
    for first, last in ((0, 40), (40, 100)):
        block = logits[:, first:last]
        normalizers, labelled = softmax.softmax_rows(block, labels, first, less_one=False)
        here = (labels >= first) & (labels < last)
        found += here
        assert torch.equal(labelled[here].double(), exact[here, labels[here]])
        share = exact[:, first:last].softmax(1)
        share[here, labels[here] - first] = 0
        assert_close(block.double(), share, rtol=3e-5, atol=1e-7)
        sums.append(normalizers)
    assert bool((found == 1).all())
    assert_close(torch.logaddexp(*sums).double(), exact.logsumexp(1), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_vanish(bad: float) -> None:
    logits, labels = problem(4, 200)
    logits[2, 100] = bad
    normalizers, _ = softmax.softmax_rows(logits, labels)
    assert normalizers.isfinite().tolist() == [True, True, False, True]
    assert not logits[2].isfinite().all()


@pytest.mark.usefixtures("either")
def test_what_lies_between_rows_stays() -> None:
    logits, labels = problem(4, 200)
    between = logits._base[:, 200:]  # type: ignore[index]
    before = between.clone()
    softmax.softmax_rows(logits, labels)
    assert torch.equal(between, before)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            logits, labels = problem(7, 5000)
            results.append([*softmax.softmax_rows(logits, labels), logits])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_rows_never_begin_in_the_same_sets_of_a_cache() -> None:
    for vocabulary in (1, 200, 8192, 32_000, 49_152, 50_257):
        assert vocabulary <= row_stride(vocabulary) <= vocabulary + 31
        assert row_stride(vocabulary) % 16 == 0 and row_stride(vocabulary) % 256 != 0
