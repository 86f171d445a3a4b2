"""OUT/sessions.jsonl: when a run was worked on, on which machine, with which memory predicted, and how that ended.

A session is one process's work on the run. It writes a line as it begins and another as it ends; one without the second
was killed, or is at work now. For people (`shoestring report`): nothing that a run does depends on it, so a file that
cannot be written ends no run. Reading is in `train.report.read`, without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from shoestring import __version__
from shoestring.core.machine import cpu_count, cpu_model, peak_rss_bytes, total_memory_bytes
from shoestring.plan.shapes import Prediction
from shoestring.train import parallel
from shoestring.train.state import TrainerState

SESSIONS = "sessions.jsonl"


@contextlib.contextmanager
def recorded(
    out: Path, state: TrainerState, recipe: Any, prediction: Prediction, device: torch.device, peak: float
) -> Iterator[None]:
    """Around the work, by the first process. peak: FLOP/s that a matrix product reaches here."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    began = {
        "session": "began",
        "step": state.step,
        "time": _now(),
        "processor": cpu_model(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": total_memory_bytes(),
        **gpu,
        "device": device.type,
        "processes": parallel.world_size(),
        **({} if restart in (None, "0") else {"restart": restart}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "shoestring": __version__,
        "matrix_peak": peak,
        "engine": recipe.budget.engine,
        "budget": recipe.budget.memory,
        "predicted": {"memory": prediction.total, "tensors": prediction.tensor_bytes},
        "predicted_parts": [[name, size] for name, size in prediction.lines],
    }
    if parallel.rank() == 0:
        _write(out / SESSIONS, began)
    how = "finished"
    try:
        yield
    except BaseException as error:
        how = getattr(error, "message", "") or type(error).__name__
        raise
    finally:
        if parallel.rank() == 0:
            end_session(out, state.step, how)


def end_session(out: Path, step: int, how: str) -> None:
    """By whichever process is left."""
    ended = {"session": "ended", "step": step, "time": _now(), "peak_memory": peak_rss_bytes(), "how": how}
    _write(out / SESSIONS, ended)


def _write(file: Path, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError), open(file, "a", encoding="utf-8") as opened:
        opened.write(json.dumps(values) + "\n")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
