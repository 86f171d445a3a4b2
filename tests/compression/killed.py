"""Compressions that are killed, for test_compressions_killed.py. A script, so that torch is imported once and the
children are forks of a process in which nothing has run yet.

    python tests/compression/killed.py FOLDER WORK -> one JSON line

WORK, as JSON: verb, model, settings, seed, deaths. They die by turns right before some change of the disk, counted by
the interpreter's audit events, and at some instant; then the same is asked for again, and again, and must end with the
bytes of the run that nobody killed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by the first optimizer: here once, not in each fork

from shoestring.compression.compress import job as compress_job
from shoestring.compression.compress.job import compress
from shoestring.compression.distill.job import distill
from shoestring.compression.factorize.job import factorize
from shoestring.compression.prune.job import prune
from shoestring.compression.quantize.job import quantize
from shoestring.core.files import resolve_pointer
from shoestring.train import run as train_run

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
DIFFERENT = {"compression.json", "state.json"}  # they hold times


def watch(folder: str, last: int | None) -> list[int]:
    """Count the changes below a folder, and die right before the last."""
    seen = [0]

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not int(given[2] or 0) & WRITING):
            return
        names = given[:2] if event in ("os.rename", "os.link", "os.symlink") else given[:1]
        below = [os.fsdecode(name) for name in names if isinstance(name, str | bytes | os.PathLike)]
        in_a_tree = event in ("os.remove", "os.rmdir") and not os.path.isabs(below[0])  # relative to an open folder
        if in_a_tree or any(folder in name for name in below):
            seen[0] += 1
            if seen[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def make(work: dict[str, Any], out: Path) -> None:
    """The same command, whatever an earlier one left."""
    verb, model, settings = work["verb"], work["model"], work["settings"]
    if verb == "distill":
        if (out / "recipe.yaml").is_file():
            distill(resume=out)
        else:
            distill(model, overrides={**settings, "out": str(out)})
        return
    verbs = {"quantize": quantize, "prune": prune, "factorize": factorize, "compress": compress}
    verbs[verb](model, out, **settings)


def start(work: dict[str, Any], out: Path, folder: Path, last: int | None = None) -> int:
    """In a fork, whose process id is returned. It writes down how many changes it made."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            seen = watch(str(out.parent), last)
            make(work, out)
            (folder / "changes").write_text(str(seen[0]))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int, folder: Path) -> bool:
    """Wait for the process; False when it was killed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit("a run failed:\n" + (folder / "log.txt").read_text())
    return True


def content(out: Path) -> dict[str, Any]:
    """All bytes of what was made, and the losses that are told of it."""
    # Of a run the newest step, and the best, which has the report and may be another.
    made = [resolve_pointer(out / name) for name in ("latest", "best") if (out / name).exists()] or [out]
    found: dict[str, Any] = {
        str(path.relative_to(folder.parent)): path.read_bytes()
        for folder in made
        for path in folder.rglob("*")
        if path.is_file() and path.name not in DIFFERENT
    }
    report = json.loads((made[-1] / "compression.json").read_text())
    return {**found, "losses": (report["before"]["loss"], report["after"]["loss"])}


def compare(out: Path, whole: dict[str, Any], when: str) -> None:
    found = content(out)
    different = {name for name in {*found, *whole} if found.get(name) != whole.get(name)}
    if different:
        raise SystemExit(f"{when}: {sorted(different)} are other than without a death")


def main() -> None:
    folder, work = Path(sys.argv[1]), json.loads(sys.argv[2])
    instants = random.Random(work["seed"])
    torch.set_num_threads(1)
    train_run.write_plot = lambda *given: None  # a second each
    plain = compress_job.quantize

    def quick(*given: Any, **settings: Any) -> Any:
        return plain(*given, **settings, **({"steps": 2} if settings["method"] == "learned" else {}))

    compress_job.quantize = quick
    began = time.monotonic()
    ended_well(start(work, folder / "whole" / "x", folder), folder)
    seconds, changes = time.monotonic() - began, int((folder / "changes").read_text())
    whole, out = content(folder / "whole" / "x"), folder / "cut" / "x"
    kills = ended = 0
    for number in range(work["deaths"]):
        last = instants.randint(1, changes) if number % 2 == 0 else None
        pid = start(work, out, folder, last)
        if last is None:
            time.sleep(instants.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        kills += not ended_well(pid, folder)
        finished = out.is_dir() if work["verb"] != "distill" else (out / "best" / "compression.json").is_file()
        if finished:
            compare(out, whole, f"after {kills} deaths")
            ended += 1
            shutil.rmtree(out)  # what was kept beside it, if it died just then, stays
    ended_well(start(work, out, folder), folder)
    compare(out, whole, "in the end")
    print(json.dumps({"kills": kills, "ended": ended, "left": sorted(path.name for path in out.parent.iterdir())}))


main()
