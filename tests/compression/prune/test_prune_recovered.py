"""Pruning in rounds with training between: it helps, zeros stay, and who was stopped goes on to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.compression.prune import job, one_round
from shoestring.compression.prune.job import prune
from shoestring.compression.prune.recovery import Again, KeepZeros
from shoestring.compression.prune.workplace import place_of
from shoestring.compression.quantize.config import LINEARS
from shoestring.core.errors import ConfigError, RunError
from shoestring.core.files import hold
from shoestring.models.folder import load_model
from shoestring.train.interrupt import Interrupted
from shoestring.train.loop import StepEvent
from tests.compression.prune.prunable import FEW, prunable, text_of
from tests.finetuning import tiny

RECOVER: dict[str, Any] = {**FEW, "recover": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunable(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def made(model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory):
    return prune(model, tmp_path_factory.mktemp("made") / "p", sums, pattern="2:4", rounds=2, **RECOVER)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "compression.json"}


def test_zeros_stay_while_the_other_weights_recover(model: Path, sums: Path, made, tmp_path: Path) -> None:
    before, after = load_model(model), load_model(made.folder)
    for block in range(3):
        for name in LINEARS:
            weight = after.get_parameter(f"blocks.{block}.{name}.weight")
            assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()
            kept = weight != 0
            assert not torch.equal(weight[kept], before.get_parameter(f"blocks.{block}.{name}.weight")[kept])
    alone = prune(model, tmp_path / "alone", sums, pattern="2:4", **FEW)
    assert made.after.loss < alone.after.loss
    assert [run["steps"] for run in made.recovered] == [4, 4]
    assert "recovered in 8 steps" in made.report()["how"] and "8 steps of training" in str(made)
    assert [path.name for path in made.folder.parent.iterdir()] == ["p"]


def test_a_smaller_model_recovers_and_is_written_in_the_format_asked_for(
    model: Path, sums: Path, tmp_path: Path
) -> None:
    parts = {"feed_forward": 24, "layers": 2, "rounds": 2}
    alone = prune(model, tmp_path / "alone", sums, **parts, **FEW)
    result = prune(model, tmp_path / "p", sums, dtype="bfloat16", **parts, **RECOVER)
    assert result.after.loss < alone.after.loss and result.parameters == alone.parameters
    assert result.after.weight_bytes == 2 * result.parameters
    assert [told["parameters"] for told in result.rounds][-1] == result.parameters < result.rounds[0]["parameters"]
    assert (tmp_path / "p" / "tokenizer.json").is_file()


def test_what_the_whole_model_predicts_is_learned_in_place_of_the_text(
    model: Path, sums: Path, tmp_path: Path
) -> None:
    """By the divergence of predictions on held-out rows, in full."""
    parts: dict[str, Any] = {"feed_forward": 24, **FEW}
    folders = [prune(model, tmp_path / "alone", sums, **parts).folder]
    for by in ("text", "model"):
        settings = {**parts, "recover": 8, "learning_rate": 3e-3, "recover_by": by}
        result = prune(model, tmp_path / by, sums, **settings)
        assert [run["steps"] for run in result.recovered] == [8]
        folders.append(result.folder)
    whole, found = load_model(model), []
    for folder in folders:
        pruned, total = load_model(folder), 0.0
        for batch in text_of(model, sums).measured:
            given = batch.tokens_BT, batch.positions_BT, batch.segments_BT
            counted = batch.labels_BT != -100
            with torch.no_grad():
                log_p, log_q = (one.head(one(*given)[0])[counted].log_softmax(-1) for one in (whole, pruned))
            total += float((log_p.exp() * (log_p - log_q)).sum())
        found.append(total)
    alone, by_text, by_model = found
    assert 0 < by_model < 0.9 * alone and by_model < by_text


@pytest.mark.parametrize("stopped_in", ["training", "pruning"])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    model: Path, sums: Path, made, tmp_path: Path, monkeypatch, stopped_in: str
) -> None:
    out, said, again = tmp_path / "p", [], []
    with monkeypatch.context() as patched:
        if stopped_in == "training":
            keep, steps = KeepZeros.after_step, []

            def after_step(self: KeepZeros, event: StepEvent) -> None:
                keep(self, event)
                steps.append(1)
                if len(steps) == 6:  # the second of the second round
                    event.stopping = "stopped after step 2"

            patched.setattr(KeepZeros, "after_step", after_step)
            with pytest.raises(Interrupted, match="(?s)stopped after step 2.*the same command goes on") as caught:
                prune(model, out, sums, pattern="2:4", rounds=2, say=said.append, **RECOVER)
            assert caught.value.exit_code == 130
        else:
            masked, blocks = one_round.mask_block, []

            def mask_block(*given: Any) -> Any:
                blocks.append(1)
                if len(blocks) == 6:  # the last of the second round
                    raise KeyboardInterrupt
                return masked(*given)

            patched.setattr(one_round, "mask_block", mask_block)
            with pytest.raises(KeyboardInterrupt):
                prune(model, out, sums, pattern="2:4", rounds=2, say=said.append, **RECOVER)
            assert any("2 blocks done: the same command goes on from there" in line for line in said)
    assert not out.exists() and (place_of(out) / "round-1").is_dir()
    with monkeypatch.context() as patched:
        run = job.Round.run

        def once(self: Any, *given: Any) -> None:
            again.append(1)
            run(self, *given)

        patched.setattr(job.Round, "run", once)
        result = prune(model, out, sums, pattern="2:4", rounds=2, say=said.append, **RECOVER)
    assert len(again) == (0 if stopped_in == "training" else 1)  # what was there was not made again
    assert content(out) == content(made.folder) and not place_of(out).exists()
    assert (result.after.loss, result.rounds) == (made.after.loss, made.rounds)


def test_what_is_unfinished_of_something_else_is_begun_anew_and_told(
    model: Path, sums: Path, tmp_path: Path, monkeypatch
) -> None:
    out, said = tmp_path / "p", []

    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "recovered", stopped)
        with pytest.raises(KeyboardInterrupt):
            prune(model, out, sums, feed_forward=24, **RECOVER)
    assert (place_of(out) / "round-1").is_dir()
    result = prune(model, out, sums, feed_forward=32, say=said.append, **FEW)
    assert any("anew" in line for line in said) and load_model(out).config.feed_forward.width == 32
    assert result.recovered == () and not place_of(out).exists()


def test_another_process_that_makes_the_same_folder_is_told_of(model: Path, tmp_path: Path) -> None:
    place_of(tmp_path / "p").mkdir()
    held = hold(place_of(tmp_path / "p") / "lock")
    assert held is not None
    with pytest.raises(RunError, match="another process is making this folder"):
        prune(model, tmp_path / "p", sparsity=0.5, method="magnitude")
    held.release()


def test_the_stream_takes_every_batch_once_an_epoch_and_goes_on_where_its_state_was_taken() -> None:
    batches: Any = list("abcde")
    stream = Again(batches, seed=3)
    taken = [next(stream) for _ in range(12)]
    assert sorted(taken[:5]) == sorted(taken[5:10]) == batches != taken[:5] != taken[5:10]
    other = Again(batches, seed=3)
    other.restore({"next": 4})
    assert [next(other) for _ in range(8)] == taken[4:] and other.state() == stream.state()


def test_the_whole_model_beside_is_not_inside_a_budget(model: Path, sums: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps the whole model beside"):
        prune(model, tmp_path / "p", sums, feed_forward=24, memory="8GB", recover=2, recover_by="model", **FEW)
    assert list(tmp_path.iterdir()) == []


def test_recovering_keeps_to_a_time(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, feed_forward=24, recover="1s", **FEW)
    assert result.recovered[0]["steps"] >= 1 and result.recovered[0]["seconds"] < 5
