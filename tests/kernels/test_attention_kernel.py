"""Causal attention, as layers call it, against its definition in float64: the kernel where there is a compiler."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from shoestring.kernels import attention, compiled
from shoestring.kernels.attention_limits import parts_of
from shoestring.nn.attention.core import attend
from shoestring.nn.attention.window import attend_window
from shoestring.nn.context import Context, Visibility

SCALE = 0.2
FORMS = ("SHOESTRING_NARROW", "SHOESTRING_WIDE")  # vectors of 4 and of 16, whatever this processor has
TWO_ROWS = ((0, 0, 1), (0, 1, 120), (0, 120, 300), (1, 0, 203), (1, 203, 300))  # documents
CASES = {  # rows, tokens, query heads, kv heads, width, value width, documents, window
    "tiny": (1, 5, 2, 1, 16, 16, None, None),
    "one head each": (2, 130, 3, 3, 32, 32, None, None),
    "groups": (2, 251, 4, 2, 64, 64, None, None),
    "one kv head": (1, 97, 8, 1, 16, 16, None, None),
    "odd widths": (1, 150, 2, 2, 40, 72, None, None),
    "narrow values": (2, 100, 2, 1, 96, 64, None, None),
    "widest": (1, 200, 2, 1, 256, 256, None, None),
    "documents": (2, 300, 4, 2, 32, 32, TWO_ROWS, None),
    "window": (1, 330, 4, 2, 32, 32, None, 50),
    "window of one": (1, 110, 2, 2, 16, 16, None, 1),
    "window in documents": (2, 300, 2, 1, 24, 24, TWO_ROWS, 130),
}


@pytest.fixture(autouse=True)
def _short_rows_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention, "SHORTEST", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def operands(rows: int, tokens: int, heads: int, groups: int, width: int, value_width: int, seed: int = 0):
    """q, k, v and the result's gradient, as projections lay them out."""
    made = torch.Generator().manual_seed(seed)
    shapes = (heads, width), (groups, width), (groups, value_width), (heads, value_width)
    return [torch.randn(rows, tokens, *shape, generator=made).transpose(1, 2) for shape in shapes]


def fast(q: Tensor, k: Tensor, v: Tensor, documents, window: int | None) -> Tensor:
    seen = Visibility(causal=True, documents=documents)
    if window is None:
        return attend(q, k, v, seen, SCALE)
    return attend_window(q, k, v, Context(torch.arange(q.shape[2]).unsqueeze(0), None, seen), SCALE, window)


def plain(q: Tensor, k: Tensor, v: Tensor, documents, window: int | None) -> Tensor:
    return attention.attention_plain(q, k, v, SCALE, documents, window)[0]


def with_gradients(function, inputs: list[Tensor], upstream: Tensor, documents=None, window=None) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = function(*leaves, documents, window)
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream)]


def assert_defined(inputs: list[Tensor], upstream: Tensor, documents=None, window=None, tolerance=1e-5) -> None:
    """Result and gradients, in units of their largest number."""
    mine = with_gradients(fast, inputs, upstream, documents, window)
    exact = with_gradients(plain, [x.double() for x in inputs], upstream.double(), documents, window)
    for one, other in zip(mine, exact, strict=True):
        assert_close(one.double(), other, rtol=0, atol=tolerance * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("case", CASES)
def test_result_and_gradients_are_float64s(case: str) -> None:
    *shape, documents, window = CASES[case]
    *inputs, upstream = operands(*shape)
    assert_defined(inputs, upstream, documents, window)


@pytest.mark.parametrize("seed", range(16))
def test_random_shapes_documents_windows_and_threads(seed: int) -> None:
    draw = random.Random(seed)
    rows, tokens, groups = draw.randint(1, 3), draw.randint(1, 280), draw.choice([1, 2, 3])
    widths = [8 * draw.randint(2, 12) for _ in range(2)]
    documents = []
    for row in range(rows):
        cuts = sorted({0, tokens, *(draw.randrange(tokens) for _ in range(draw.randint(0, 4)))})
        documents += [(row, start, end) for start, end in zip(cuts, cuts[1:], strict=False)]
    window = draw.choice([None, draw.randint(1, tokens + 10)])
    torch.set_num_threads(draw.choice([1, 1, 1, 2]))
    *inputs, upstream = operands(rows, tokens, groups * draw.randint(1, 4), groups, *widths, seed)
    assert_defined(inputs, upstream, tuple(documents), window)


def test_more_threads_than_heads_share_a_documents_keys() -> None:
    torch.set_num_threads(8)
    assert parts_of(heads=1, tokens=300, threads=8) == 4
    *inputs, upstream = operands(1, 300, 2, 1, 32, 32)
    assert_defined(inputs, upstream)


def test_parts_are_as_few_as_leave_no_thread_waiting() -> None:
    assert parts_of(6, 1024, threads=1) == parts_of(6, 1024, threads=2) == 1
    assert parts_of(3, 1024, threads=2) == 2
    assert parts_of(6, 1024, threads=16) == 5
    assert parts_of(3, 90, threads=2) == 1  # one block of keys


def test_the_number_of_threads_does_not_change_results() -> None:
    *inputs, upstream = operands(2, 300, 4, 2, 32, 32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(with_gradients(fast, inputs, upstream))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_kernel_is_there_where_a_compiler_is() -> None:
    q, k, v, _ = operands(1, 60, 2, 1, 16, 16)
    assert attention.fits(q, k, v) == (compiled.compiler() is not None)
    assert attention.fits(q, k, v, torch.bfloat16) == attention.fits(q, k, v)
    assert not attention.fits(q.double(), k.double(), v.double())
    assert not attention.fits(q[:, :, -1:], k, v)
    assert not attention.fits(q.to("meta"), k.to("meta"), v.to("meta"))
    assert not attention.fits(q[..., :12], k[..., :12], v)


def test_keys_of_a_cache_and_gradients_of_a_sum() -> None:
    """Heads before tokens in memory, with room behind them; and a gradient without any memory of its own."""
    q, k, v, _ = operands(2, 70, 4, 2, 16, 16)
    k, v = (torch.cat([x, x], 2)[:, :, :70] for x in (k, v))
    assert k.stride(1) > k.stride(2)
    assert_defined([q, k, v], torch.ones(()).expand(2, 4, 70, 16))
    assert_defined([q.transpose(2, 3).contiguous().transpose(2, 3), k, v], torch.ones(()).expand(2, 4, 70, 16))


def test_all_is_laid_out_as_projections_want_it() -> None:
    *inputs, upstream = operands(2, 60, 4, 2, 16, 24)
    if attention.fits(*inputs):
        for x in with_gradients(fast, inputs, upstream):
            assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("large", [1e-6, 30.0, 1e4])
def test_scores_of_any_size(large: float) -> None:
    q, k, v, upstream = operands(1, 200, 2, 1, 16, 16)
    mine = fast(q * large, k, v, None, None)
    assert_close(mine.double(), plain((q * large).double(), k.double(), v.double(), None, None), rtol=0, atol=2e-3)
    assert all(bool(x.isfinite().all()) for x in with_gradients(fast, [q * large, k, v], upstream))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_those_that_see_it_and_no_others(bad: float) -> None:
    inputs = operands(1, 200, 2, 1, 16, 16)[:3]
    documents = ((0, 0, 80), (0, 80, 150), (0, 150, 200))
    right = fast(*inputs, documents, None)
    inputs[2][0, 0, 100] = bad
    found = fast(*inputs, documents, None)
    assert not found[:, :, 100:150].isfinite().any()
    assert_close(found[:, :, :80], right[:, :, :80])
    assert_close(found[:, :, 150:], right[:, :, 150:])
    inputs[1][0, 0, 120] = float("nan")
    assert fast(*inputs, documents, None)[:, :, 120:150].isnan().all()


def test_bfloat16_in_memory_is_summed_in_float32() -> None:
    *inputs, upstream = (x.bfloat16() for x in operands(2, 150, 4, 2, 32, 32))
    assert_defined(inputs, upstream, ((0, 0, 150), (1, 0, 60), (1, 60, 150)), tolerance=2**-7)


def test_autocast_keeps_bfloat16_and_gives_gradients_in_float32() -> None:
    *inputs, upstream = operands(1, 100, 2, 1, 16, 16)

    def cast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            result = fast(*arguments)
        assert result.dtype == torch.bfloat16
        return result

    exact = with_gradients(plain, inputs, upstream)
    for mine, other in zip(with_gradients(cast, inputs, upstream.bfloat16()), exact, strict=True):
        assert_close(mine.float(), other, rtol=0, atol=0.05)


def test_operators_of_torch_say_what_they_give() -> None:
    """Its schema, shapes and layouts on tensors without memory, and that it has gradients."""
    *inputs, upstream = operands(1, 60, 2, 1, 16, 24)
    if attention.fits(*inputs):
        leaves, rest = [x.requires_grad_() for x in inputs], (SCALE, [0, 0, 20, 0, 20, 60], 30)
        checks = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(attention._operator, (*leaves, *rest), test_utils=checks)
        with torch.no_grad():
            saved = (*leaves, *attention._operator(*leaves, *rest))
            torch.library.opcheck(attention._operator_backward, (upstream, *saved, *rest), test_utils=checks[:2])


@pytest.mark.long
def test_compiled_graphs_hold_it_whole() -> None:
    *inputs, upstream = operands(1, 60, 4, 2, 16, 24)
    documents = ((0, 0, 20), (0, 20, 60))
    compiled_fast = torch.compile(fast, backend="aot_eager", fullgraph=True)
    mine = with_gradients(compiled_fast, inputs, upstream, documents)
    for one, other in zip(mine, with_gradients(fast, inputs, upstream, documents), strict=True):
        assert_close(one, other)
        assert one.stride() == other.stride()


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_vectors_of_other_processors(case: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = attention._typed_kernel(form)
    monkeypatch.setattr(attention, "_typed_kernel", lambda: found)
    test_result_and_gradients_are_float64s(case)


@pytest.mark.long
@pytest.mark.parametrize("form", ["SHOESTRING_OWN", *FORMS])
def test_nothing_is_read_or_written_beside_its_tensors(form: str, tmp_path: Path) -> None:
    """Random shapes in memory of their exact size, under AddressSanitizer."""
    build = ["g++", "-std=c++17", "-O1", "-g", "-march=native", "-fopenmp", "-fsanitize=address,undefined", f"-D{form}"]
    build += ["-fno-sanitize-recover=all", "-I", str(Path(compiled.__file__).parent)]
    made = subprocess.run(
        [*build, str(Path(__file__).with_name("attention_stress.cpp")), "-o", str(tmp_path / "stress")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, f"g++ has no sanitizer here, or the program is wrong: {made.stderr}"
    run = subprocess.run([str(tmp_path / "stress"), "80"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
