"""One of two ranks in whose runs something goes wrong on one of them alone, for test_rank_faults.py.

    python -m tests.train.faulty_ranks FOLDER DISK|- FAULT ... -> FOLDER/RANK.json
"""

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

from shoestring.pretraining.job import pretrain
from shoestring.train import checkpoint, loggers
from shoestring.train.metrics import Metrics
from shoestring.train.objective import Loss
from shoestring.train.resident import ResidentEngine

rank, folder, disk = int(os.environ["RANK"]), Path(sys.argv[1]), sys.argv[2]
forward, after_step = ResidentEngine._forward, Metrics.after_step
facts = {}


def summary(result) -> dict:
    state = checkpoint.read_state(result.checkpoint)
    weights = (result.checkpoint / "model.safetensors").read_bytes()
    return {
        "events": [[event["event"], event["step"]] for event in state.events],
        "weights": hashlib.sha256(weights).hexdigest(), "steps": result.steps, "tokens": result.tokens,
        "seconds": result.seconds, "bits": result.bits_per_byte,
    }  # fmt: skip


def nan() -> dict:
    """The second rank's batches give no number: that of step 2, and those of steps 6 to 15."""

    def poisoned(engine, batch, memory, seed):
        loss, aux = forward(engine, batch, memory, seed)
        if rank == 1 and engine.steps + 1 in (2, *range(6, 16)):
            loss = Loss(loss.sum * math.nan, loss.count, loss.metrics)
        return loss, aux

    ResidentEngine._forward = poisoned
    try:
        return summary(pretrain(folder / "recipe.yaml", out=folder / "nan", train__steps=20))
    finally:
        ResidentEngine._forward = forward


def full() -> dict:
    """The disk is full from step 4 to step 6, with the checkpoint of step 6 in between."""
    filler = Path(disk) / "filler"

    def fill(metrics, event):
        if rank == 0 and event.state.step == 4:
            with open(filler, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        if rank == 0 and event.state.step == 7:
            filler.unlink()
        event.lines.append({"note": "x" * 5000})
        after_step(metrics, event)

    Metrics.after_step = fill
    try:
        return summary(pretrain(folder / "recipe.yaml", out=Path(disk) / "run"))
    finally:
        Metrics.after_step = after_step


def slow() -> dict:
    """The second rank's passes take 50 ms longer, in a run of three seconds."""

    def slowed(engine, batch, memory, seed):
        time.sleep(0.05 * rank)
        return forward(engine, batch, memory, seed)

    ResidentEngine._forward = slowed
    try:
        return summary(pretrain(folder / "recipe.yaml", out=folder / "slow", time="3s"))
    finally:
        ResidentEngine._forward = forward


def dead_logger() -> dict:
    loggers._SIGN_IN = 5
    return summary(pretrain(folder / "recipe.yaml", out=folder / "dead_logger", log__everywhere="tests"))


for name in sys.argv[3:]:
    facts[name] = globals()[name]()
(folder / f"{rank}.json").write_text(json.dumps(facts))
