"""One of two gloo processes, for test_parallel.py; a script, so that torch is imported once for all facts.

    python -m tests.train.two_ranks RANK PORT FOLDER -> FOLDER/RANK.safetensors, FOLDER/RANK.json
"""

import copy
import json
import math
import sys
import time

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if rank == 1:  # before anybody takes it: this process's clock goes three times as fast
    true_clock = time.perf_counter
    time.perf_counter = lambda: 3 * true_clock()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from shoestring.core.errors import ConfigError, RunError  # noqa: E402
from shoestring.core.files import hold  # noqa: E402
from shoestring.data.batch import Batch  # noqa: E402
from shoestring.data.sources import Source  # noqa: E402
from shoestring.pretraining.job import pretrain  # noqa: E402
from shoestring.train import checkpoint, parallel, planning  # noqa: E402
from shoestring.train.engine import LocalEngine  # noqa: E402
from shoestring.train.loop import train  # noqa: E402
from shoestring.train.objective import NextToken, next_token  # noqa: E402
from shoestring.train.optimizer_config import AdamWConfig  # noqa: E402
from shoestring.train.pace import FixedSteps  # noqa: E402
from shoestring.train.resident import ResidentEngine  # noqa: E402
from shoestring.train.schedule import build_schedule  # noqa: E402
from shoestring.train.schedule_config import CosineConfig  # noqa: E402
from shoestring.train.state import TrainerState  # noqa: E402
from tests.train import tiny  # noqa: E402

facts = {}


def counted(owner, name: str) -> None:
    """Count the calls of a function in the facts."""
    function, facts[name] = getattr(owner, name), 0

    def call(*arguments, **settings):
        facts[name] += 1
        return function(*arguments, **settings)

    setattr(owner, name, call)


def gradients() -> None:
    parallel.BUCKET_NUMBERS = 5000  # several buckets
    model, whole = tiny.model(), tiny.batch(4, ignored=0.5)
    parts = (whole.tokens_BT, whole.labels_BT, whole.positions_BT, whole.segments_BT)
    loss = ResidentEngine.around(model, next_token).forward_backward([Batch(*(part[rank::2] for part in parts))])
    tensors = {name: p.grad for name, p in model.named_parameters()}
    tensors["loss"] = torch.tensor([loss.mean, loss.count], dtype=torch.float64)
    save_file(tensors, f"{folder}/{rank}.safetensors")


def experts() -> None:
    """The second process has no labels, so no extra loss either."""
    batch = tiny.batch(2, seed=3)
    if rank:
        batch.labels_BT.fill_(tiny.IGNORED)
    loss = ResidentEngine.around(tiny.model(**tiny.EXPERTS), next_token).forward_backward([batch])
    facts["experts"] = {"loss": loss.mean, "count": loss.count, **loss.metrics}


def decisions() -> None:
    def refuse():
        raise ConfigError("nothing fits")

    facts["decided"] = parallel.by_first(lambda: [rank, "first"])
    try:
        parallel.by_first(refuse)
    except (ConfigError, RunError) as error:
        facts["refused"] = [type(error).__name__, error.message]


class Rows:
    """A stream that gives one batch again and again."""

    def __next__(self) -> Batch:
        return tiny.batch(1)

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass


def refusal() -> None:
    """Of a tensor, by the second process alone: in the middle of a step, and in the optimizer's part of one."""

    class Refused(NextToken):
        def __call__(self, hidden_BTD, head, batch):
            if rank:
                raise RuntimeError("no room for a tensor of 40 bytes: 5 live of at most 12")
            return super().__call__(hidden_BTD, head, batch)

    try:
        ResidentEngine.around(tiny.model(), Refused()).forward_backward([tiny.batch(1)])
    except RuntimeError as error:
        facts["stopped"] = [type(error).__name__]

    engine = ResidentEngine.around(tiny.model(), next_token)
    engine.begin(next_token, AdamWConfig(learning_rate=1e-3))
    step = engine.optimizer_step

    def optimizer_step(clip, rate):
        if rank:
            raise RuntimeError("no room for a tensor of 40 bytes: 5 live of at most 12")
        return step(clip, rate)

    engine.optimizer_step = optimizer_step
    try:
        train(engine, Rows(), 1e-3, build_schedule(CosineConfig()), FixedSteps(2), TrainerState())
    except RuntimeError as error:
        facts["stopped"].append(type(error).__name__)


def timed_run() -> None:
    rates = facts["rates"] = []
    step = LocalEngine.optimizer_step

    def optimizer_step(self, clip, rate):
        rates.append(rate)
        return step(self, clip, rate)

    LocalEngine.optimizer_step = optimizer_step
    counted(Source, "_hash_everything")
    counted(planning, "matrix_peak")
    measured, rss_bytes = set(), planning.rss_bytes

    def rss() -> int:
        measured.update(sys.modules)
        return rss_bytes()

    planning.rss_bytes = rss
    out = f"{folder}/run"
    result = pretrain(f"{folder}/recipe.yaml", out=out)
    facts["loaded later"] = [name for name in sys.modules if name.startswith("torch.") and name not in measured]
    facts["steps"], facts["tokens"], facts["free"] = result.steps, result.tokens, parallel.by_first(is_free)
    held = hold(f"{out}/.lock") if rank == 0 else None
    try:
        pretrain(resume=out)
    except RunError as error:
        facts["locked"] = error.message
    del held


def faults() -> None:
    """Weights that give no number from step 5 on, and at step 18 a disk that is full for the first process alone."""
    forward_backward, write = ResidentEngine.forward_backward, checkpoint.write_checkpoint
    before = copy.deepcopy(facts)  # what is counted there goes on here

    def poisoned(engine, microbatches):
        if engine.steps == 4:
            with torch.no_grad():
                engine.decoder.norm.weight.fill_(math.nan)
        return forward_backward(engine, microbatches)

    def full(out, state, *rest):
        if state.step == 18:
            raise OSError(28, "No space left on device")
        return write(out, state, *rest)

    ResidentEngine.forward_backward, checkpoint.write_checkpoint = poisoned, full
    try:
        result = pretrain(f"{folder}/faults.yaml", out=f"{folder}/faults")
    finally:
        ResidentEngine.forward_backward, checkpoint.write_checkpoint = forward_backward, write
    facts.update(before)
    state = checkpoint.read_state(result.checkpoint)
    facts["faults"] = [[event["event"], event["step"]] for event in state.events if event["event"] != "skipped"]
    facts["after faults"] = [result.steps, result.bits_per_byte]


def is_free() -> bool:
    held = hold(f"{folder}/run/.lock")
    if held is not None:
        held.release()
    return held is not None


torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
for look in (gradients, experts, decisions, refusal, timed_run, faults):
    look()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(facts, file)
dist.destroy_process_group()
