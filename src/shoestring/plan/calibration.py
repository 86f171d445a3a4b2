"""What this machine's own receipts say of predictions: a factor for each job and engine, for memory and for time.

Tensors are counted exactly, so what machines differ in is the constant beside them: its factor is the median, over
runs, of what a process kept beside tensors over what the constant said, and never below 1: a small run keeps less than
a larger one will. Time's is the median of measured over predicted seconds, of runs whose work takes long enough to be
more than Python's own. Medians, because some runs met a busy machine. They are written by `shoestring plan --calibrate`
alone, into calibration.json in the cache, and whoever uses them says so: a `Correction` in words is "corrected by 12
runs on this machine". Torch-free.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir
from shoestring.core.foreign import read_json
from shoestring.core.units import counted
from shoestring.plan.receipt import Damage, Receipt, aligned, log, machine_key, now, read
from shoestring.plan.shapes import KEPT, Correction, Prediction

FEWEST = 3  # runs, below which nothing is corrected
NEWEST = 50  # runs of a job and engine that are looked at: older ones were of other code
_FILE = "calibration.json"
_LEAST = 0.05  # seconds predicted of a step or another unit, below which it says nothing of longer ones
_BESIDE, _SECONDS = (1.0, 10.0), (0.05, 20.0)  # factors beyond are of something else than a machine


@dataclass(frozen=True)
class Calibration:
    """machine: `machine_key`. corrections: of every job and engine with runs enough. too_few: of which there were
    some. damaged: lines of the log that were passed over. receipts: of this machine, in `file`.
    """

    machine: str
    time: str
    receipts: int
    file: str
    corrections: tuple[Correction, ...]
    too_few: tuple[tuple[str, str, int], ...] = ()
    damaged: tuple[Damage, ...] = ()

    def __str__(self) -> str:
        lines = [f"{counted(self.receipts, 'receipt')} of this machine in {self.file}"]
        lines += [f"passed over {damage.where}: {damage.why}" for damage in self.damaged]
        if self.corrections:
            rows = [
                (
                    one.job, one.engine,
                    f"{one.beside:.2f} ({counted(one.beside_runs, 'run')})" if one.beside_runs else "",
                    f"{one.seconds:.2f} ({counted(one.seconds_runs, 'run')})" if one.seconds_runs else "",
                )
                for one in self.corrections
            ]  # fmt: skip
            lines.append(aligned(("job", "engine", "memory beside tensors, times", "time, times"), rows))
        for job, engine, runs in self.too_few:
            lines.append(f"{job}, {engine}: {counted(runs, 'run')}; {FEWEST} are needed to correct by")
        if not self.corrections and not self.too_few:
            lines.append("every run of pretrain, finetune, distill and so on leaves one; then calibrate again")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "corrections": [_to_json(one) for one in self.corrections]}


def calibrate(threads: int, file: Path | None = None) -> Calibration:
    """Look at the log anew and keep what it says for later plans; the log stays as it is.

    threads: that compute here. Raises RunError where the cache cannot be written.
    """
    file = file or log()
    receipts, damaged = read(file)
    key = machine_key(threads)
    mine = [one for one in receipts if one.machine == key]
    corrections, too_few = corrections_by(mine)
    found = Calibration(key, now(), len(mine), str(file), corrections, too_few, tuple(damaged))
    known = _known()
    known[key] = {"time": found.time, "factors": [_to_json(one) for one in found.corrections]}
    with atomic_write(cache_dir() / _FILE) as opened:
        json.dump(known, opened, indent=1, sort_keys=True)
    return found


def corrections_by(
    receipts: Iterable[Receipt], fewest: int = FEWEST
) -> tuple[tuple[Correction, ...], tuple[tuple[str, str, int], ...]]:
    """Of every job and engine with so many runs at least: corrections, and (job, engine, runs) where there are too few.
    In the order of names.
    """
    grouped: dict[tuple[str, str], list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        if receipt.device == "cpu" and receipt.processes == 1:
            grouped[receipt.job, receipt.engine].append(receipt)
    found, too_few = [], []
    for (job, engine), runs in sorted(grouped.items()):
        beside, beside_runs = _median([kept_beside(run) for run in runs], *_BESIDE, fewest)
        seconds, seconds_runs = _median([slower(run) for run in runs], *_SECONDS, fewest)
        if beside_runs or seconds_runs:
            found.append(Correction(job, engine, beside, beside_runs, seconds, seconds_runs))
        else:
            too_few.append((job, engine, len(runs)))
    return tuple(found), tuple(too_few)


def kept_beside(receipt: Receipt) -> float | None:
    """What the process kept beside tensors over what the constant said; None where either is not known."""
    if receipt.predicted_memory is None or receipt.measured_memory is None or receipt.constant <= 0:
        return None
    more = receipt.measured_memory - receipt.predicted_memory
    if receipt.measured_tensors is not None and receipt.predicted_tensors is not None:
        more -= receipt.measured_tensors - receipt.predicted_tensors  # which is the walk's error
    return max(receipt.constant + more, 0.0) / receipt.constant


def slower(receipt: Receipt) -> float | None:
    """Measured seconds over predicted ones; None where either is not known, or the work is too short."""
    if not receipt.predicted_seconds or not receipt.measured_seconds or receipt.predicted_seconds < _LEAST:
        return None
    return receipt.measured_seconds / receipt.predicted_seconds


def _median(figures: Sequence[float | None], low: float, high: float, fewest: int) -> tuple[float, int]:
    """Of the newest that are known, and how many they are; (1, 0) where too few are."""
    known = [figure for figure in figures if figure is not None][-NEWEST:]
    if len(known) < fewest:
        return 1.0, 0
    return min(max(statistics.median(known), low), high), len(known)


# --- its use ----------------------------------------------------------------------------------------------------


def corrections_of(job: str, threads: int) -> tuple[Correction, ...]:
    """For `plan.shapes.Machine.corrections`: what was calibrated here for a job; nothing where nothing was."""
    known = _known().get(machine_key(threads))
    factors = known.get("factors") if isinstance(known, dict) else None
    found = [_from_json(one) for one in factors] if isinstance(factors, list) else []
    return tuple(one for one in found if one is not None and one.job == job)


def forget(threads: int) -> bool:
    """Plan without corrections again; -> whether there were any."""
    known = _known()
    if known.pop(machine_key(threads), None) is None:
        return False
    with atomic_write(cache_dir() / _FILE) as opened:
        json.dump(known, opened, indent=1, sort_keys=True)
    return True


def corrected(prediction: Prediction, correction: Correction | None) -> Prediction:
    """With this machine's factors in its lines, and said."""
    if correction is None:
        return prediction
    beside = tuple(
        (name, round(size * correction.beside) if name == KEPT else size) for name, size in prediction.beside
    )
    return replace(
        prediction, beside=beside, seconds=prediction.seconds * correction.seconds,
        time=tuple((name, seconds * correction.seconds) for name, seconds in prediction.time), correction=correction,
    )  # fmt: skip


def _known() -> dict[str, Any]:
    """What calibration.json has; nothing where it is damaged: it can be made again from the log."""
    try:
        known = read_json(cache_dir() / _FILE)
    except (ShoestringError, OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _to_json(one: Correction) -> dict[str, Any]:
    return asdict(one)


def _from_json(value: Any) -> Correction | None:
    if not isinstance(value, dict):
        return None
    try:
        one = Correction(
            str(value["job"]), str(value["engine"]), float(value["beside"]), int(value["beside_runs"]),
            float(value["seconds"]), int(value["seconds_runs"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    fits = _BESIDE[0] <= one.beside <= _BESIDE[1] and _SECONDS[0] <= one.seconds <= _SECONDS[1]
    return one if fits and min(one.beside_runs, one.seconds_runs) >= 0 else None
