"""One session of a run that reports to a service; a script, so that it can be killed, the package's own process too.

    python -m tests.train.wandb_run RECIPE OUT STEP -> the service goes away after step 2, and all are killed after STEP
    python -m tests.train.wandb_run RECIPE OUT 0    -> resumed, to the end
"""

import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path

from shoestring.pretraining.job import pretrain
from shoestring.train.metrics import Metrics

recipe, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
after_step = Metrics.after_step


def children() -> list[int]:
    """Of this process, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [os.getpid()]
    for parent in found:
        found += [pid for pid, of in parents.items() if of == parent]
    return found


def asked(path: str) -> bytes:
    with urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + path) as answer:
        return answer.read()


def eventful(metrics, event):
    after_step(metrics, event)
    if event.state.step == 2:
        while not json.loads(asked("/points")):  # the package sends all it has every fifteen seconds
            time.sleep(0.5)
        asked("/go-away")
    if event.state.step == last:
        for pid in reversed(children()):
            os.kill(pid, signal.SIGKILL)


if last:
    Metrics.after_step = eventful
    pretrain(recipe, out=out, log__wandb="tests")
else:
    pretrain(resume=out)
