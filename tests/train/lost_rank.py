"""One rank of a run in which rank 1 is lost, for test_lost_ranks.py; a script, so that it can be.

    python -m tests.train.lost_rank HOW,HOW,... pretrain RECIPE --out OUT ...
    HOW, for each time that torchrun starts it: hang@5, kill@7, freeze@5, fail@5 (the step), none; kill0@5 is rank 0;
    none+OUT does the run once more afterwards, undisturbed, into OUT
"""

import os
import re
import signal
import sys
import time

from shoestring.cli.main import main
from shoestring.core.errors import DataError
from shoestring.data.loader import RowLoader
from shoestring.train.resident import ResidentEngine

attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
asked, _, whole = sys.argv[1].split(",")[attempt].partition("+")
how, victim, step = re.fullmatch(r"(\D+)(\d*)@(\d+)|none", asked).groups()
forward_backward, read = ResidentEngine.forward_backward, RowLoader.__next__
reading = [0]


def lose(engine, microbatches):
    if engine.steps + 1 == int(step):
        if how == "hang":
            time.sleep(600)
        elif how != "fail":
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}[how])
    return forward_backward(engine, microbatches)


def fail(loader):
    reading[0] += 1
    if reading[0] >= int(step):  # one microbatch a step
        raise DataError("not a JSON object", "text.jsonl:418")
    return read(loader)


if how and int(os.environ["RANK"]) == int(victim or 1):
    ResidentEngine.forward_backward = lose
    if how == "fail":
        RowLoader.__next__ = fail
code = main(arguments := sys.argv[2:])
if whole and not code:
    arguments[arguments.index("--out") + 1] = whole
    code = main(arguments)
sys.exit(code)
