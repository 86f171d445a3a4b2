"""What a part counts for is what a brute-force reference on a tiny model says: the part taken out, outputs compared."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.compression.prune.importance import channel_changes, fitted, group_changes
from shoestring.compression.prune.job import prune
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.folder import load_model, save_model
from tests.compression.prune.prunable import FEW, inputs, prunable, text_of
from tests.finetuning import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunable(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


def without(weight_OI: torch.Tensor, x_NI: torch.Tensor, gone: list[int]) -> float:
    """The squared change of a linear's output when inputs are zero."""
    less = x_NI.clone()
    less[:, gone] = 0
    return float(((x_NI - less).double() @ weight_OI.double().t()).square().sum())


def test_the_feed_forward_channels_that_stay_change_the_output_most(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, feed_forward=20, fit=False, **FEW)
    dense, pruned = load_model(model), load_model(tmp_path / "p")
    text = text_of(model, sums)
    # The first block's inputs are the dense model's; those of the second are the pruned model's.
    for block, source in ((0, dense), (1, pruned)):
        down = dense.get_parameter(f"blocks.{block}.feed_forward.down.weight").detach()
        before = dense.blocks[block].feed_forward
        x_ND = inputs(source, text, f"blocks.{block}.feed_forward.gate")[f"blocks.{block}.feed_forward.gate"]
        with torch.no_grad():
            inner_NF = torch.nn.functional.silu(before.gate(x_ND)) * before.up(x_ND)
        changes = [without(down, inner_NF, [channel]) for channel in range(48)]
        kept = sorted(sorted(range(48), key=lambda channel: -changes[channel])[:20])
        for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
            expected = dense.get_parameter(f"blocks.{block}.feed_forward.{name}.weight").index_select(
                dim, torch.tensor(kept)
            )
            assert torch.equal(pruned.get_parameter(f"blocks.{block}.feed_forward.{name}.weight"), expected)
        lost = 1 - sum(changes[channel] for channel in kept) / sum(changes)
        assert result.rounds[0]["blocks"][block]["channels"]["lost"] == pytest.approx(lost, rel=1e-4)


def test_the_attention_groups_that_stay_change_the_output_most(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, heads=4, fit=False, **FEW)
    dense, pruned = load_model(model), load_model(tmp_path / "p")
    x_NI = inputs(dense, text_of(model, sums), "blocks.0.attention.output")["blocks.0.attention.output"]
    output = dense.get_parameter("blocks.0.attention.output.weight").detach()
    changes = [without(output, x_NI, list(range(16 * group, 16 * group + 16))) for group in range(3)]
    kept = sorted(sorted(range(3), key=lambda group: -changes[group])[:2])
    assert result.rounds[0]["blocks"][0]["groups"]["kept"] == kept
    queries = [row for group in kept for row in range(16 * group, 16 * group + 16)]
    keys = [row for group in kept for row in range(8 * group, 8 * group + 8)]
    for name, rows, dim in (("query", queries, 0), ("key", keys, 0), ("value", keys, 0), ("output", queries, 1)):
        expected = dense.get_parameter(f"blocks.0.attention.{name}.weight").index_select(dim, torch.tensor(rows))
        assert torch.equal(pruned.get_parameter(f"blocks.0.attention.{name}.weight"), expected)
    assert pruned.config.attention.heads == 4 and pruned.config.attention.kv_heads == 2


def test_the_layers_that_stay_turn_the_stream_most(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, layers=2, **FEW)
    dense = load_model(model)
    seen = inputs(dense, text_of(model, sums), *(f"blocks.{n}.attention_norm" for n in range(3)), "norm")
    streams = list(seen.values())
    influence = []
    for before, after in zip(streams, streams[1:], strict=False):
        cosines = [
            float(x.double() @ y.double()) / math.sqrt(float(x.double() @ x.double()) * float(y.double() @ y.double()))
            for x, y in zip(before, after, strict=True)
        ]
        influence.append(1 - sum(cosines) / len(cosines))
    told = result.rounds[0]
    assert told["influence"] == pytest.approx(influence, rel=1e-4)
    kept = sorted(sorted(range(3), key=lambda layer: -influence[layer])[:2])
    assert told["layers_kept"] == kept
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "p" / "model.safetensors")
    for number, layer in enumerate(kept):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(after[name.format(number)], before[name.format(layer)])


def test_the_components_that_stay_are_the_largest_behind_all_norms(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, width=24, **FEW)
    dense, pruned = load_model(model), load_model(tmp_path / "p")
    norms = [f"blocks.{n}.{part}_norm" for n in range(3) for part in ("attention", "feed_forward")] + ["norm"]
    seen = inputs(dense, text_of(model, sums), *norms)
    with torch.no_grad():
        sizes = sum(dense.get_submodule(name)(x_ND).abs().mean(0) for name, x_ND in seen.items())
    kept = sorted(sizes.topk(24).indices.tolist())
    assert result.rounds[0]["width_kept"] == kept
    assert torch.equal(pruned.embedding.weight, dense.embedding.weight[:, kept])
    ratio = (pruned.get_parameter("norm.weight") / dense.get_parameter("norm.weight")[kept]).detach()
    x_ND = seen["norm"]
    each = x_ND[:, kept].square().mean(1).sqrt() / x_ND.square().mean(1).sqrt()
    assert float(ratio.std()) < 1e-5 and float(ratio[0]) == pytest.approx(float(each.log().mean().exp()), rel=2e-2)


def test_a_changed_norm_gives_what_it_gave_where_the_other_components_are_zero(sums: Path, tmp_path: Path) -> None:
    """Then nothing is lost with them: the narrower model computes the same."""
    whole = load_model(prunable(tmp_path / "model"))
    decoder = build(whole.config.model_copy(update={"norm_epsilon": 1e-12}))
    decoder.load_state_dict(whole.state_dict())
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                parameter[24:] = 0
            elif name == "embedding.weight":
                parameter[:, 24:] = 0
    save_model(decoder, tmp_path / "zeros", Tokenizer.load(tmp_path / "model"))
    prune(tmp_path / "zeros", tmp_path / "p", sums, width=24, **FEW)
    ids = torch.arange(30).unsqueeze(0)
    narrow = load_model(tmp_path / "p")
    with torch.no_grad():
        torch.testing.assert_close(narrow.head(narrow(ids)[0]), decoder.head(decoder(ids)[0]), rtol=0, atol=2e-4)


def test_formulas_are_what_they_stand_for_in_float64() -> None:
    random = torch.Generator().manual_seed(0)
    weight, x_NI = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((7, 12), (90, 12)))
    moments = x_NI.t() @ x_NI
    channels = [without(weight, x_NI, [n]) for n in range(12)]
    assert channel_changes(weight, moments).tolist() == pytest.approx(channels)
    groups = [without(weight, x_NI, list(range(4 * n, 4 * n + 4))) for n in range(3)]
    assert group_changes(weight, moments, 4).tolist() == pytest.approx(groups)


def test_kept_columns_are_the_least_squares_of_what_all_gave() -> None:
    random = torch.Generator().manual_seed(1)
    weight, mixed = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((7, 12), (12, 12)))
    x_NI = torch.randn(200, 12, generator=random, dtype=torch.float64) @ mixed
    kept = torch.tensor([0, 3, 4, 7, 9, 11])
    best = torch.linalg.lstsq(x_NI[:, kept], x_NI @ weight.t()).solution.t()
    found = fitted(weight, x_NI.t() @ x_NI, kept, 1e-12)
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-6)
    # Damping draws them towards what they were.
    far = fitted(weight, x_NI.t() @ x_NI, kept, 1e9)
    torch.testing.assert_close(far, weight[:, kept], rtol=1e-6, atol=1e-6)
    assert torch.equal(fitted(weight, x_NI.t() @ x_NI, torch.arange(12), 0.1), weight)


def test_matrices_that_read_a_narrower_stream_are_fitted_to_what_they_gave_in_the_whole_model(
    model: Path, sums: Path, tmp_path: Path
) -> None:
    result = prune(model, tmp_path / "p", sums, width=24, layers=2, **FEW)
    dense, pruned, text = load_model(model), load_model(tmp_path / "p"), text_of(model, sums)
    kept, layer = result.rounds[0]["width_kept"], result.rounds[0]["layers_kept"][1]
    for name, norm in (("attention.key", "attention_norm"), ("feed_forward.up", "feed_forward_norm")):
        where = f"blocks.{layer}.{norm}"
        with torch.no_grad():
            x_ND = dense.get_submodule(where)(inputs(dense, text, where)[where]).double()
        weight = dense.get_parameter(f"blocks.{layer}.{name}.weight").detach().double()
        # Least squares with rows beneath that draw towards what the columns were.
        damping = 1e-3 * float(x_ND[:, kept].square().sum(0).mean())
        seen = torch.cat([x_ND[:, kept], damping**0.5 * torch.eye(24, dtype=torch.float64)])
        wanted = torch.cat([x_ND @ weight.t(), damping**0.5 * weight[:, kept].t()])
        best = torch.linalg.lstsq(seen, wanted).solution.t()
        found = pruned.get_parameter(f"blocks.1.{name}.weight").detach().double()
        torch.testing.assert_close(found, best, rtol=0, atol=1e-4)
        assert (found - weight[:, kept]).abs().max() > 1e-2


def test_making_up_brings_outputs_nearer_than_leaving_out(model: Path, sums: Path, tmp_path: Path) -> None:
    dense, text = load_model(model), text_of(model, sums)
    errors = {}
    for fit in (True, False):
        prune(model, tmp_path / str(fit), sums, feed_forward=24, fit=fit, **FEW)
        pruned = load_model(tmp_path / str(fit))
        x_ND = inputs(dense, text, "blocks.0.feed_forward.gate")["blocks.0.feed_forward.gate"]
        with torch.no_grad():
            off = pruned.blocks[0].feed_forward(x_ND)[0] - dense.blocks[0].feed_forward(x_ND)[0]
        errors[fit] = float(off.square().sum())
    assert errors[True] < 0.8 * errors[False]
