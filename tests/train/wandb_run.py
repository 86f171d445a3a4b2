"""One session of a run that reports to a service; a script, so that it can be killed.

    python -m tests.train.wandb_run RECIPE OUT STEP -> killed after STEP; resumed, to the end, where that is 0
"""

import os
import signal
import sys
import time

import wandb

from shoestring.pretraining.job import pretrain
from shoestring.train.metrics import Metrics

recipe, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
after_step = Metrics.after_step


def die(metrics, event):
    after_step(metrics, event)
    if event.state.step == last:
        time.sleep(2)  # what was given to the package is on its way, or not
        wandb.sdk.wandb_setup.singleton()  # it has a process of its own, which goes as well
        os.killpg(os.getpgrp(), signal.SIGKILL)


Metrics.after_step = die
if last:
    pretrain(recipe, out=out, log__wandb="tests")
else:
    pretrain(resume=out)
