"""Runs of the tiny recipe that are killed, for test_resume.py. A script, so that torch is imported once
and the children are forks of a process in which nothing has run yet.

    python tests/train/killed_runs.py FOLDER SEED -> one JSON line
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import types
from pathlib import Path

import torch
import torch._dynamo  # by the first optimizer: here once, not in each fork

from shoestring.pretraining.job import pretrain
from shoestring.train import checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start(work) -> int:
    """Run `work` in a fork, whose process id is returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(f"{sys.argv[1]}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int) -> bool:
    """Wait for the process; False when it was killed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit("a run failed:\n" + Path(sys.argv[1], "log.txt").read_text())
    return True


def kill_after(pid: int, metrics: Path, lines: int, seconds: float) -> None:
    """SIGKILL once that many more lines have been written, and then some time later."""

    def count() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    seen, deadline = count(), time.monotonic() + 60
    while count() - seen < lines and time.monotonic() < deadline:
        seen = min(seen, count())  # a resume cuts lines off first
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


def half_written(call: int):
    """Die in the middle of the n-th tensor file of a checkpoint."""
    calls = iter(range(1, 1000))
    write = checkpoint.save_file

    def save_file(tensors, file, *rest):
        write(tensors, file, *rest)
        if next(calls) == call:
            os.truncate(file, os.path.getsize(file) // 2)
            die()

    checkpoint.save_file = save_file


def before_latest():
    checkpoint.replace_symlink_or_pointer = lambda *_: die()


def while_deleting():
    checkpoint.shutil = types.SimpleNamespace(rmtree=lambda *_, **__: die())


def main() -> None:
    folder, instants = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    torch.set_num_threads(1)
    recipe, whole, cut = folder / "recipe.yaml", folder / "whole", folder / "cut"
    ended_well(start(lambda: pretrain(recipe, out=str(whole))))

    def go_on(sabotage=None):
        if sabotage is not None:
            sabotage()
        if (cut / "recipe.yaml").exists():
            pretrain(resume=cut)
        else:
            pretrain(recipe, out=str(cut))

    deaths = [None] * 5 + [lambda: half_written(1), before_latest, while_deleting]
    instants.shuffle(deaths)
    reached, kills = [], 0
    for sabotage in deaths:
        pid = start(lambda sabotage=sabotage: go_on(sabotage))
        if sabotage is None:
            kill_after(pid, cut / "metrics.jsonl", instants.randint(0, 5), instants.uniform(0, 0.1))
        kills += not ended_well(pid)
        whole_now = checkpoint.checkpoints(cut)
        reached.append(whole_now[-1].name if whole_now else None)
    ended_well(start(go_on))
    print(json.dumps({"reached": reached, "kills": kills}))


main()
