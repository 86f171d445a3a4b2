"""Adapters of streamed layers move by every kind of optimizer as those of a model in memory do."""

import pytest
import torch

from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.plan.shapes import Training
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdafactorConfig, AdamWConfig, LionConfig, MuonConfig
from shoestring.train.resident import ResidentEngine
from tests.plan import counted

KINDS = {
    "8bit": AdamWConfig(state="8bit"),
    "muon": MuonConfig(),
    "adafactor": AdafactorConfig(),
    "lion": LionConfig(),
}
LORA = Training(False, counted.RANK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return counted.folder(counted.config(48), tmp_path_factory.mktemp("streamed") / "model", torch.float32)


def adapters(engine, optimizer):
    """After two steps."""
    engine.load()
    engine.begin(next_token, optimizer)
    before = {name: p.detach().clone() for name, p in engine.decoder.named_parameters() if p.requires_grad}
    for _ in range(2):
        engine.set_rate(1.0)
        engine.forward_backward(counted.batches(1, 2, 24, 200))
        engine.optimizer_step(None, 1.0)
    after = {name: p.detach().clone() for name, p in engine.decoder.named_parameters() if p.requires_grad}
    engine.close()
    assert before and all(not torch.equal(before[name], after[name]) for name in before)
    return after


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_adapters_move_as_resident_ones(kind, in_backward, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    optimizer = KINDS[kind].model_copy(update={"in_backward": in_backward})

    def streamed():
        decoder = open_streamed(folder, "source")
        counted.adapt(decoder, LORA)
        return decoder

    expected = adapters(ResidentEngine(lambda: counted.model(counted.config(48), LORA)), optimizer)
    found = adapters(StreamedEngine(streamed), optimizer)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
