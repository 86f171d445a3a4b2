"""The way to a GPU, with events and streams that only record: there is no GPU here."""

from __future__ import annotations

import contextlib

import torch

from shoestring.offload import stream as module
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.train.objective import next_token
from tests.offload import tiny


class Event:
    log: list[str] = []

    def record(self, stream=None) -> None:
        self.log.append("arrived" if stream is not None and stream.copies else "released")

    def synchronize(self) -> None:
        self.log.append("pinned buffer is free")


class Stream:
    def __init__(self, device=None, copies: bool = True):
        self.copies = copies

    def wait_event(self, event: Event) -> None:
        Event.log.append("copy waits for computing" if self.copies else "computing waits for copy")


def test_layers_are_computed_with_from_the_copies_in_the_right_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "Event", Event)
    monkeypatch.setattr(module.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(module.torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(module.torch.cuda, "current_stream", lambda: Stream(copies=False))
    folder = tiny.save(tmp_path / "model")
    plain, copied = (tiny.adapt(open_streamed(folder, dtype=torch.float64)) for _ in range(2))
    stream = copied.stream
    stream._upload = module._Upload(len(stream._buffers[0]), stream.slots, torch.device("cpu"), stream._view)
    gradients = []
    for model in (plain, copied):
        StreamedEngine.around(model, next_token).forward_backward(tiny.batches(2))
        gradients.append({name: p.grad for name, p in tiny.trained(model).items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    with copied.present(1) as block:
        inside = block.attention.query.base.weight.untyped_storage().data_ptr()
        assert inside in {copy.untyped_storage().data_ptr() for copy in stream._upload._copies}
    for model in (plain, copied):
        model.close()
    log = Event.log
    arrived = log.count("arrived")
    assert arrived == log.count("pinned buffer is free") == log.count("copy waits for computing")
    assert stream.reads - 1 <= arrived <= stream.reads  # closing may call off the last one
    assert log.index("copy waits for computing") < log.index("arrived") < log.index("computing waits for copy")
    assert "released" in log
