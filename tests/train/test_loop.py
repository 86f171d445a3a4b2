"""The loop's losses are those of a plain torch loop around transformers' Llama on the same data."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers

from shoestring.data.config import NewTokenizerConfig
from shoestring.data.loader import PackedLoader
from shoestring.data.prepare import prepare
from shoestring.data.shards import ShardFolder
from shoestring.models.folder import save_model
from shoestring.train.loop import Callback, NonFiniteLoss, train
from shoestring.train.metrics import flops_per_token
from shoestring.train.objective import NextToken, next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.pace import FixedSteps
from shoestring.train.resident import ResidentEngine
from shoestring.train.schedule import build_schedule
from shoestring.train.schedule_config import CosineConfig
from shoestring.train.state import TrainerState
from tests.train import tiny

STEPS, RATE = 10, 3e-3


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardFolder:
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = NewTokenizerConfig(vocabulary=300)
    return prepare(tiny.corpus(folder / "text"), tokenizer, folder / "shards", validation=0.2)


def peaked():
    """Fresh weights so large that attention is not uniform and positions matter."""
    return tiny.model(initializer_range=0.2)


class Record(Callback):
    def __init__(self):
        self.losses, self.norms, self.rates = [], [], []

    def after_step(self, event):
        self.losses.append(event.loss.mean)
        self.norms.append(event.result.norm)
        self.rates.append(event.learning_rate)


def our_run(model, shards, rows=4, microbatch=2, **settings):
    engine = ResidentEngine.around(model, next_token)
    engine.begin(next_token, AdamWConfig(learning_rate=RATE))
    record = Record()
    train(
        engine,
        PackedLoader(shards, "train", 32, microbatch, seed=1, separate_documents=False),
        RATE,
        build_schedule(CosineConfig(warmup=3)),
        FixedSteps(STEPS),
        TrainerState(),
        microbatches=rows // microbatch,
        callbacks=[record],
        **settings,
    )
    return record


def reference_run(folder, shards):
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=RATE, betas=(0.9, 0.95), eps=1e-8, foreach=False,
    )  # fmt: skip
    batches = PackedLoader(shards, "train", 32, 4, seed=1, separate_documents=False)
    losses, norms = [], []
    for step in range(STEPS):
        rate = (step + 1) / 4 if step < 3 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 3) / (STEPS - 4)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        batch = next(batches)
        logits = model(batch.tokens_BT).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def test_ten_steps_lose_what_a_plain_loop_with_transformers_loses(shards, tmp_path):
    save_model(peaked(), tmp_path / "model")
    record = our_run(peaked(), shards)
    losses, norms = reference_run(tmp_path / "model", shards)
    assert record.losses == pytest.approx(losses, rel=1e-4) and record.norms == pytest.approx(norms, rel=1e-3)
    assert losses[-1] < losses[0] - 0.5, "the model must have learned for the comparison to mean anything"


def test_another_rotary_base_would_be_seen(shards, tmp_path):
    save_model(peaked(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    for field in ("rope_parameters", "rope_scaling"):
        config.pop(field, None)
    file.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}))
    losses, _ = reference_run(tmp_path / "model", shards)
    assert our_run(peaked(), shards).losses != pytest.approx(losses, rel=1e-3)


class Broken(NextToken):
    """Next-token loss that is no number in some calls."""

    def __init__(self, calls):
        self.calls, self.seen = calls, 0

    def __call__(self, hidden, head, batch):
        self.seen += 1
        loss = super().__call__(hidden, head, batch)
        return type(loss)(loss.sum * (float("nan") if self.seen in self.calls else 1.0), loss.count)


def broken_run(shards, calls, steps):
    """-> the model, the state, and its weights before each step."""
    model, before = tiny.model(), []
    engine = ResidentEngine.around(model, next_token)
    engine.begin(Broken(calls), AdamWConfig())

    class Copy(Callback):
        def after_step(self, event):
            before.append([p.detach().clone() for p in model.parameters()])

    state = TrainerState()
    stream = PackedLoader(shards, "train", 32, 2, seed=1)
    schedule, pace = build_schedule(CosineConfig()), FixedSteps(steps)
    try:
        train(engine, stream, RATE, schedule, pace, state, microbatches=2, callbacks=[Copy()])
    finally:
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return state, before


def test_a_loss_that_is_no_number_skips_its_step_and_is_an_event(shards):
    state, weights = broken_run(shards, {5}, 5)
    assert state.step == 5 and state.skipped_in_a_row == 0
    assert state.events == [{"event": "skipped", "step": 3, "reason": "the loss is not a finite number"}]
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[2], weights[3], strict=True))


def test_ten_skipped_steps_in_a_row_end_the_run(shards):
    with pytest.raises(NonFiniteLoss, match="10 steps in a row were skipped up to step 12"):
        broken_run(shards, range(5, 100), 50)
    assert broken_run(shards, [*range(5, 22), 25], 14)[0].step == 14, "nine in a row do not"


def test_operations_per_token_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny.model()
    batch = tiny.batch(2, length=32)
    with FlopCounterMode(display=False) as counter:
        hidden, _ = model(batch.tokens_BT)
        model.head(hidden).sum().backward()
    config = model.config
    attention = 6.0 * config.layers * 2 * 16 * 33  # 2 heads of 16, half of 32·33 pairs
    counted = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    matmuls = sum(v for k, v in counted.items() if "attention" not in k) / batch.tokens_BT.numel()
    assert flops_per_token(config, 32) - attention == pytest.approx(matmuls)
