"""Masks: which weights become zero, how many of them, and that they are zero in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoestring.compression.prune.job import prune
from shoestring.compression.prune.masks import Mask
from shoestring.compression.quantize.config import LINEARS
from shoestring.models.folder import load_model, save_model
from shoestring.models.weight_files import WeightFiles
from tests.compression.prune.prunable import FEW, inputs, logits, prunable, text_of
from tests.finetuning import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunable(tmp_path_factory.mktemp("model") / "model", "qwen2")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    decoder = load_model(folder)
    return {
        f"blocks.{n}.{name}": decoder.get_parameter(f"blocks.{n}.{name}.weight").detach()
        for n in range(3)
        for name in LINEARS
    }


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize(("pattern", "of"), [("2:4", 4), ("4:8", 8)])
def test_a_pattern_holds_in_every_run_of_every_row(
    model: Path, sums: Path, tmp_path: Path, method: str, pattern: str, of: int
) -> None:
    result = prune(model, tmp_path / "p", sums, pattern=pattern, method=method, dtype="bfloat16", **FEW)
    before = matrices(model)
    for name, weight in matrices(tmp_path / "p").items():
        runs = weight.reshape(-1, of)
        assert ((runs == 0).sum(1) == of // 2).all(), name
        kept = weight != 0
        assert torch.equal(weight[kept], before[name].bfloat16().float()[kept])
        if method == "magnitude":
            sizes = before[name].abs().reshape(-1, of)
            assert (torch.where(runs != 0, sizes, 9.0).amin(1) >= torch.where(runs == 0, sizes, 0.0).amax(1)).all()
    assert result.sparsity == 0.5 and result.parameters == result.parameters_before
    assert not torch.equal(logits(model), logits(tmp_path / "p"))


def test_magnitude_leaves_out_the_smallest_of_a_matrix_without_text(model: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sparsity=0.3, method="magnitude")
    before = matrices(model)
    for name, weight in matrices(tmp_path / "p").items():
        zeros = int(weight.numel() * 0.3)
        limit = before[name].abs().flatten().sort().values[zeros - 1]
        assert torch.equal(weight, torch.where(before[name].abs() <= limit, 0.0, before[name])), name
        assert int((weight == 0).sum()) == zeros
    assert result.before.loss is None and result.sparsity == pytest.approx(0.3, abs=1e-3)


def test_wanda_is_its_formula_on_what_the_pruned_layers_before_give(model: Path, sums: Path, tmp_path: Path) -> None:
    prune(model, tmp_path / "p", sums, sparsity=0.5, **FEW)
    before, after = matrices(model), matrices(tmp_path / "p")
    pruned = load_model(tmp_path / "p")
    seen = inputs(pruned, text_of(model, sums, layers=None, sparsity=0.5), *before)
    for name, x_NI in seen.items():
        norms = [float(x_NI[:, n].double().square().sum()) ** 0.5 for n in range(x_NI.shape[1])]
        for row, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            scores = [abs(float(weight)) * norm for weight, norm in zip(old, norms, strict=True)]
            lowest = sorted(range(len(scores)), key=scores.__getitem__)[: len(scores) // 2]
            expected = old.clone()
            expected[lowest] = 0
            assert torch.equal(new, expected), (name, row)
    # Not the norms of the dense model, which leave others out.
    dense = inputs(load_model(model), text_of(model, sums), "blocks.2.feed_forward.down")["blocks.2.feed_forward.down"]
    weight = before["blocks.2.feed_forward.down"]
    elsewhere = Mask("wanda", 0.5, None).of(weight.abs() * dense.square().sum(0).sqrt())
    assert not torch.equal(elsewhere, after["blocks.2.feed_forward.down"] != 0)


def test_exactly_so_many_are_left_out_where_scores_are_equal() -> None:
    score = torch.ones(6, 10)
    assert (~Mask("wanda", 0.25, None).of(score)).sum(1).tolist() == [2] * 6
    assert int((~Mask("magnitude", 0.25, None).of(score)).sum()) == 15
    assert (~Mask("wanda", None, (1, 5)).of(score)).sum(1).tolist() == [2] * 6


def test_a_models_own_number_format_is_kept_in_rounds(model: Path, tmp_path: Path) -> None:
    save_model(load_model(model), tmp_path / "half", dtypes=torch.bfloat16)
    for rounds in (1, 2):
        prune(tmp_path / "half", tmp_path / f"p{rounds}", pattern="2:4", method="magnitude", rounds=rounds)
        with WeightFiles(tmp_path / f"p{rounds}") as files:
            assert {place.info.dtype for place in files.places.values()} == {torch.bfloat16}
    assert torch.equal(logits(tmp_path / "p1"), logits(tmp_path / "p2"))


def test_rounds_keep_the_zeros_of_the_rounds_before(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, sparsity=0.75, rounds=2, **FEW)
    assert len(result.rounds) == 2
    first, second = (
        sum(block["zeros"]["feed_forward.down"][0] for block in told["blocks"]) for told in result.rounds
    )
    assert (first, second) == (3 * 32 * 24, 3 * 32 * 36)  # half of what is left, twice
    for name, weight in matrices(tmp_path / "p").items():
        assert ((weight == 0).sum(1) == weight.shape[1] * 3 // 4).all(), name
    assert "in 2 rounds" in result.report()["how"]
