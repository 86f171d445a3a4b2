"""The chunked head and loss against the definition with full logits: value and gradients, in several chunks."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import shoestring.nn.head
from shoestring.kernels import softmax
from shoestring.nn import frozen_head_loss
from shoestring.nn import head_loss as module
from shoestring.nn.head import Head
from shoestring.nn.head_blocks import even_rows

WIDTH, VOCABULARY = 12, 37


def head(softcap: float | None) -> Head:
    random = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=random))
    return Head(weight, softcap)


def results(function, softcap: float | None) -> list[torch.Tensor]:
    layer = head(softcap)
    random = torch.Generator().manual_seed(0)
    hidden_BTD = (torch.randn(2, 11, WIDTH, generator=random) * 2).requires_grad_()
    labels_BT = torch.randint(0, VOCABULARY, (2, 11), generator=random)
    labels_BT[0, 3:5] = -100
    total, count = function(hidden_BTD, layer, labels_BT)
    assert count == 20
    return [total, *torch.autograd.grad(total * 0.7, [hidden_BTD, layer.weight])]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("way", ["in place", "apart", "no kernel"])
def test_the_chunked_loss_is_its_definition(softcap, rows, way, monkeypatch):
    monkeypatch.setattr(module, "chunk_rows", lambda vocabulary: rows)
    if way == "apart":  # as where another library multiplies
        monkeypatch.setattr(shoestring.nn.head, "writes_in_place", lambda *sizes: False)
    if way == "no kernel":
        monkeypatch.setattr(softmax, "_typed_kernel", lambda: None)
    fast, plain = results(module.head_loss, softcap), results(module.head_loss_plain, softcap)
    for one, other in zip(fast, plain, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [3, 22, 100])
def test_rows_that_fill_up_change_nothing(rows, softcap, frozen, monkeypatch):
    """To 27 rows, in chunks of which whole ones may count for nothing, or in blocks of the vocabulary."""
    monkeypatch.setattr(module, "filled_rows", lambda x, count: count + 7)
    monkeypatch.setattr(module, "chunk_rows", lambda vocabulary: rows)
    monkeypatch.setattr(frozen_head_loss, "STATES", rows)
    if not frozen:
        fast, plain = results(module.head_loss, softcap), results(module.head_loss_plain, softcap)
    else:
        layer, found = head(softcap).requires_grad_(False), []
        random = torch.Generator().manual_seed(0)
        hidden_BTD = (torch.randn(2, 11, WIDTH, generator=random) * 2).requires_grad_()
        labels_BT = torch.randint(0, VOCABULARY, (2, 11), generator=random)
        labels_BT[0, 3:5] = -100
        for function in (module.head_loss, module.head_loss_plain):
            total, count = function(hidden_BTD, layer, labels_BT)
            assert count == 20
            found.append([total, *torch.autograd.grad(total * 0.7, [hidden_BTD])])
        fast, plain = found
    for one, other in zip(fast, plain, strict=True):
        assert_close(one, other)


def test_labels_that_count_are_filled_up_in_half_precision_alone():
    hidden_BTD, labels_BT = torch.randn(1, 70, WIDTH), torch.zeros(1, 70, dtype=torch.int64)
    labels_BT[0, :30] = -100
    seen: list[int] = []
    layer = head(None).requires_grad_(False)
    rounded = layer.rounded
    layer.rounded = lambda rows: (seen.append(len(rows)), rounded(rows))[1]
    module.head_loss(hidden_BTD, layer, labels_BT)
    with torch.autocast("cpu", torch.bfloat16):
        module.head_loss(hidden_BTD, layer, labels_BT)
        labels_BT[0, 0] = 1
        module.head_loss(hidden_BTD, layer, labels_BT)
    assert seen == [40, 64, 64]


def test_a_head_that_is_trained_asks_for_no_gradient_where_none_is_wanted():
    layer, labels_BT = head(None), torch.arange(6).view(1, 6)
    hidden_BTD = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        fast, plain = (f(hidden_BTD, layer, labels_BT)[0] for f in (module.head_loss, module.head_loss_plain))
    assert_close(fast, plain)


@pytest.mark.parametrize(("count", "most", "rows"), [(2048, 1025, 1024), (2049, 1024, 683), (5, 100, 5), (0, 7, 1)])
def test_chunks_are_even_and_as_few_as_can_be(count, most, rows):
    assert even_rows(count, most) == rows
    assert -(-count // rows) == -(-count // most)


def test_a_softcap_bounds_the_logits_and_changes_the_loss():
    hidden = torch.full((1, 1, WIDTH), 50.0)
    assert head(3.0)(hidden).abs().max() <= 3.0 < head(None)(hidden).abs().max()
    capped, uncapped = (results(module.head_loss, softcap)[0] for softcap in (3.0, None))
    assert (capped - uncapped).abs() > 1


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_frozen_head_by_blocks_of_the_vocabulary_gives_the_definition(on_gpu, softcap, rows, monkeypatch):
    if on_gpu:  # what runs there, on the CPU
        monkeypatch.setattr(frozen_head_loss, "_Merged", frozen_head_loss._MergedOnGPU)
    monkeypatch.setattr(frozen_head_loss, "block_rows", lambda width: rows)
    layer = head(softcap).double().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    hidden_BTD = (torch.randn(2, 11, WIDTH, generator=random, dtype=torch.float64) * 20).requires_grad_()
    labels_BT = torch.randint(0, VOCABULARY, (2, 11), generator=random)
    labels_BT[0, 3:5] = -100
    (fast, count), (plain, _) = (f(hidden_BTD, layer, labels_BT) for f in (module.head_loss, head_loss_float64))
    assert count == 20 and fast.dtype == torch.float64
    assert_close(fast, plain)
    assert_close(*(torch.autograd.grad(total * 0.7, hidden_BTD)[0] for total in (fast, plain)))


def head_loss_float64(hidden_BTD, layer, labels_BT):
    logits = layer(hidden_BTD).flatten(0, -2)
    return torch.nn.functional.cross_entropy(logits, labels_BT.reshape(-1), reduction="sum"), 20


def test_a_frozen_head_without_labels_costs_nothing_and_breaks_nothing():
    layer = head(None).requires_grad_(False)
    hidden_BTD = torch.randn(1, 3, WIDTH, requires_grad=True)
    total, count = module.head_loss(hidden_BTD, layer, torch.full((1, 3), -100))
    assert (float(total.detach()), count) == (0.0, 0)


def test_a_frozen_head_is_as_exact_as_full_logits_where_labels_are_all_but_impossible():
    layer = head(None).requires_grad_(False)
    hidden_BTD = torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(3)) * 300
    labels_BT = torch.arange(8).unsqueeze(0)
    fast, plain = (f(hidden_BTD, layer, labels_BT)[0] for f in (module.head_loss, module.head_loss_plain))
    assert torch.isfinite(fast)
    assert_close(fast, plain)


@pytest.mark.parametrize("frozen", [False, True])
def test_under_autocast_products_are_in_its_dtype_and_gradients_in_their_own(frozen, monkeypatch):
    dtypes = set()

    def spy(rows, weight, out=None):
        dtypes.update((rows.dtype, weight.dtype))
        return torch.matmul(rows, weight.t())

    monkeypatch.setattr(shoestring.nn.head, "matmul", spy)
    layer = head(None).requires_grad_(not frozen)
    random = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(2, 11, WIDTH, generator=random).requires_grad_()
    labels_BT = torch.randint(0, VOCABULARY, (2, 11), generator=random)
    wanted = [hidden_BTD] if frozen else [hidden_BTD, layer.weight]
    exact = torch.autograd.grad(module.head_loss_plain(hidden_BTD, layer, labels_BT)[0] * 1.1, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = module.head_loss(hidden_BTD, layer, labels_BT)
    found = torch.autograd.grad(total * 1.1, wanted)
    assert dtypes == {torch.bfloat16} and total.dtype == torch.float32
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32 and float((one - other).norm() / other.norm()) < 0.02
        assert not torch.equal(one, one.bfloat16().float())  # not rounded once more on its way out
