"""Documents that go on from step to step, with a memory that finds what came before; resumed runs remember."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from shoestring.core.errors import ConfigError
from shoestring.data.config import DataConfig, NewTokenizerConfig
from shoestring.data.loader import PackedLoader
from shoestring.data.prepare import prepare
from shoestring.data.shards import ShardFolder
from shoestring.models.folder import load_model
from shoestring.models.resolve import find_model
from shoestring.pretraining.job import pretrain
from shoestring.train.loop import Callback
from tests.train import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardFolder:
    folder = tmp_path_factory.mktemp("corpus")
    return prepare(tiny.corpus(folder / "text"), NewTokenizerConfig(vocabulary=300), folder / "shards", validation=0.2)


def test_each_row_goes_on_where_it_stopped_and_so_do_its_positions(shards):
    loader = PackedLoader(shards, "train", 16, 2, seed=3, lanes=4)
    batches = [next(loader) for _ in range(2 * (loader.samples_per_epoch // 4))]
    for lane in range(4):
        rows = [batch for n, batch in enumerate(batches) if n % 2 == lane // 2]
        tokens = torch.cat([batch.tokens_BT[lane % 2] for batch in rows])
        labels = torch.cat([batch.labels_BT[lane % 2] for batch in rows])
        positions = torch.cat([batch.positions_BT[lane % 2] for batch in rows])
        assert torch.equal(labels[:-1], tokens[1:])
        for t in range(1, len(tokens)):
            new = tokens[t] == shards.separator_id
            assert positions[t] == (0 if new else positions[t - 1] + 1)
        assert positions.max() > 16 and positions[0] == 0


def test_a_continued_stream_resumes_with_the_next_batch(shards):
    one, other = (PackedLoader(shards, "train", 16, 2, seed=3, lanes=4) for _ in range(2))
    for _ in range(5):
        next(one)
    other.restore(one.state())
    ours, theirs = next(one), next(other)
    assert torch.equal(ours.tokens_BT, theirs.tokens_BT) and torch.equal(ours.positions_BT, theirs.positions_BT)


def test_continuing_documents_without_documents_is_refused():
    with pytest.raises(ValidationError, match="continue_documents needs separate_documents"):
        DataConfig(continue_documents=True, separate_documents=False)


def recipe(folder: Path, shards: ShardFolder, memory: str, data: str = "continue_documents: true") -> Path:
    file = folder / "recipe.yaml"
    text = tiny.recipe_text(shards.folder).replace("vocabulary: 320", "vocabulary: 300", 1)
    text = text.replace("  layers: 2\n", f"  layers: 2\n  memory: {memory}\n").replace("data:\n", f"data:\n  {data}\n")
    file.write_text(text)
    return file


DOCUMENT = "{layers: [1], top_k: 4, block: 8, capacity: 64}"
PERSISTENT = "{layers: [1], top_k: 4, block: 8, capacity: 200, scope: persistent}"
IN_FILES = "{layers: [1], top_k: 4, block: 8, capacity: 64, store: file}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(find_model(run)).named_parameters())


class Stop(Callback):
    """Kills a run after a step, checkpoints of earlier steps stay."""

    def after_step(self, event) -> None:
        if event.state.step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("memory", [DOCUMENT, PERSISTENT, IN_FILES], ids=["document", "persistent", "files"])
def test_a_resumed_run_remembers_what_an_uninterrupted_one_does(memory, shards, tmp_path, monkeypatch):
    file = recipe(tmp_path, shards, memory)
    pretrain(file, out=str(tmp_path / "whole"), train__steps=8)
    from shoestring.train import run as module

    original = module.train

    def stopping(*arguments, callbacks, **settings):
        return original(*arguments, callbacks=[*callbacks, Stop()], **settings)

    monkeypatch.setattr(module, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretrain(file, out=str(tmp_path / "cut"), train__steps=8)
    monkeypatch.setattr(module, "train", original)
    pretrain(resume=tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert whole["blocks.1.attention.gate_bias"].abs().max() > 0


def test_the_memory_of_earlier_steps_matters(shards, tmp_path, monkeypatch):
    file = recipe(tmp_path, shards, DOCUMENT)
    pretrain(file, out=str(tmp_path / "with"))

    def discard(banks):
        for bank in banks.banks:
            bank.discard()

    monkeypatch.setattr("shoestring.train.memory_banks.MemoryBanks.commit", discard)
    pretrain(file, out=str(tmp_path / "without"))
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_continued_documents_and_learned_positions_are_refused(shards, tmp_path):
    file = recipe(tmp_path, shards, DOCUMENT)
    with pytest.raises(ConfigError, match="learned positions end there"):
        pretrain(file, overrides={"model.position": "{kind: learned}"}, out=str(tmp_path / "run"))
