"""What a run of several processes leaves when one of them hangs or has died: an event, the end of its session, a hint.

One process tells it for all that are left, whichever has noticed first. The last checkpoint stays as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from shoestring.train import parallel, watchdog
from shoestring.train.blame import Verdict
from shoestring.train.checkpoint import checkpoints
from shoestring.train.metrics_file import NAME as METRICS
from shoestring.train.sessions import end_session
from shoestring.train.state import TrainerState
from shoestring.train.watchdog import Lost


@contextlib.contextmanager
def noted(out: Path, state: TrainerState, resume: str, limit: float) -> Iterator[None]:
    """Around the work of a run. resume: how it is continued. limit: seconds that an exchange may take."""
    if not parallel.is_parallel():
        yield
        return
    dog = watchdog.watching()

    def note(verdict: Verdict, told: bool) -> tuple[str, str]:
        """As the process is ended from outside its main thread."""
        _write(out, state, verdict, told)
        if parallel.rank() == 0 and verdict.rank != 0:
            end_session(out, state.step, verdict.sentence)
        return str(out), hint()

    def hint() -> str:
        whole = checkpoints(out)
        return f"the last checkpoint is {whole[-1]}\n{resume}" if whole else "there was no checkpoint yet"

    dog.limit = limit
    dog.notes.append(note)
    try:
        yield
    except Lost as error:
        _write(out, state, error.verdict, error.told)
        raise Lost(error.verdict, error.told, str(out), hint()) from error.__cause__
    except BaseException as error:
        watchdog.failed(error)  # at once: what is closed on the way out may take its time
        raise
    finally:
        dog.notes.remove(note)
        dog.limited = False


def _write(out: Path, state: TrainerState, verdict: Verdict, told: bool) -> None:
    if not told:
        return
    place = {"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3)}
    said = {"rank": verdict.rank, "at_step": verdict.step, "doing": verdict.doing, "silent": round(verdict.silent, 1)}
    line = {"event": verdict.event, **place, **said, "reason": verdict.sentence}
    with contextlib.suppress(OSError), open(out / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if verdict.rank == 0:  # who would write it
        end_session(out, state.step, verdict.sentence)
