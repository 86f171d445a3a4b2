"""A GPU's memory: the same walk, held to torch's meta tensors. What a pass saves is counted exactly; peaks nearly."""

from __future__ import annotations

import pytest
import torch

from shoestring.data.batch import layout_of
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.nn.lora_config import LoRAConfig
from shoestring.plan.gpu import unpredicted_on_gpu
from shoestring.plan.model import Model
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Training
from shoestring.plan.tape import Memory, Tape
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.resident import ResidentEngine, forward_loss
from tests.models.test_count import KINDS
from tests.plan import counted
from tests.plan.held import GPU, Held, as_gpu

MACHINE = Machine(0, 1e12, threads=0, gpu=True)
SCALARS = 100  # bytes of numbers that stand alone
# Of the others the plan says nothing on a GPU.
SAVED = [kind for kind in KINDS if not unpredicted_on_gpu(counted.config(64, **KINDS[kind]))]


@pytest.fixture
def gpu(monkeypatch):
    with as_gpu(monkeypatch):
        yield


def on_gpu(config, training: Training, recompute: str = "selective"):
    decoder = build(config, device="meta")
    if not training.full:
        attach(decoder, LoRAConfig(rank=counted.RANK, dora=training.dora))
    decoder.activation_checkpointing = recompute
    return decoder.train()


def batch(config, rows: int, length: int, documents: bool):
    found = counted.batches(1, rows, length, config.vocabulary, documents)[0]
    found.layout = layout_of(found)
    return found.to(GPU)


def of_batch(given) -> list[torch.Tensor]:
    return [given.tokens_BT, given.labels_BT, given.positions_BT, given.segments_BT]


def saved(config, training: Training, rows: int, length: int, recompute: str, documents: bool) -> tuple[int, float]:
    """Bytes that are there between a pass forward and its pass backward, counted and predicted."""
    decoder = on_gpu(config, training, recompute)
    given = batch(config, rows, length, documents)
    forward_loss(decoder, next_token, given)  # DoRA's lengths of rows are made once
    with Held() as held:
        held.before([*decoder.parameters(), *decoder.buffers(), *of_batch(given)])
        loss, aux = forward_loss(decoder, next_token, given)
        total = loss.sum + sum(aux.values())
        del loss, aux
        found = held.live
        del total
    tape = Tape(Memory(), threads=0)
    tape.gpu = True
    model = Model(tape, config, training)
    hidden = model.forward(tape, model.context(tape, rows, length, documents), recompute)
    made = model.loss(tape, hidden, None)
    assert made.node is not None
    del hidden
    return found, tape.memory.live


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", SAVED)
def test_what_a_pass_keeps_for_the_pass_backward_is_counted_exactly(kind, recompute, gpu):
    config = counted.config(64, **KINDS[kind])
    found, predicted = saved(config, Training(), 2, 200, recompute, documents=False)
    assert abs(found - predicted) <= SCALARS, (found, predicted)


@pytest.mark.parametrize("training", [Training(False, counted.RANK), Training(False, counted.RANK, dora=True)])
def test_the_same_of_adapters(training, gpu):
    found, predicted = saved(counted.config(64), training, 2, 200, "selective", documents=False)
    assert abs(found - predicted) <= SCALARS, (found, predicted)


def test_packed_documents_take_one_kernel(gpu):
    found, predicted = saved(counted.config(64), Training(), 2, 200, "selective", documents=True)
    assert abs(found - predicted) <= SCALARS + 2 * 200 * 16, (found, predicted)  # and where each document begins


@pytest.mark.parametrize(("engine", "recompute"), [("resident", "selective"), ("checkpointed", "full")])
@pytest.mark.parametrize("kind", SAVED)
def test_the_peak_of_a_step_is_within_two_percent(kind, engine, recompute, gpu):
    config = counted.config(64, **KINDS[kind])
    given = batch(config, 2, 200, documents=False)
    engine_of = ResidentEngine(lambda: on_gpu(config, Training()), recompute=recompute)
    decoder = engine_of.load()
    with Held() as held:
        held.before([*decoder.parameters(), *decoder.buffers(), *of_batch(given)])
        engine_of.begin(next_token, AdamWConfig())
        state = held.live
        for _ in range(2):
            loss, aux = forward_loss(decoder, next_token, given)
            (loss.sum + sum(aux.values())).backward()
            del loss, aux
    prediction = predict(JobShape(config, 4, 200), EngineSpec(engine, 2, recompute), MACHINE)
    lines = dict(prediction.tensors)
    assert 0 <= state - lines["moments"] <= 8 * len(list(decoder.parameters())) + SCALARS  # and counts of steps
    found = held.peak + lines["weights"]
    assert abs(found - prediction.tensor_bytes) <= 0.02 * found, (found, prediction.tensor_bytes)


def test_a_tensor_that_goes_is_no_longer_counted():
    """Or the tests above would hold of nothing."""
    with Held() as held:
        x = torch.empty(100, device=GPU)
        y = x * 2
        assert held.live == held.peak == 800
        view = y.view(10, 10)
        del x, y
        assert held.live == 400 and held.peak == 800
        del view
        assert held.live == 0
