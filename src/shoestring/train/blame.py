"""Whom the others wait for: the process of a run that hangs or has died, by what each last said of itself.

Exchanges come in the same order in every process. So of one that waits in an exchange, those who have entered fewer are
behind, and it waits for the one furthest behind. No clock and no network here; `train.watchdog` has both. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shoestring.core.units import format_seconds

GRACE = 5.0  # seconds in which an exchange may break off by itself, once a process is known to be gone
UNHEARD = 10.0  # seconds without a sign of life after which a process counts as frozen
_ALONE = 3.0  # times the limit that a step may take in which nobody is known to wait


@dataclass(frozen=True)
class Status:
    """What a process says of itself. exchange: how many it has entered; waits: it is inside the last one. limited: it
    does what all do alike and at once, so that others may wait only so long for it. failed: why it cannot go on, ""
    where it can. place: the machine, as far as process ids reach."""

    step: int = 0
    doing: str = "starting"
    exchange: int = 0
    waits: bool = False
    limited: bool = False
    failed: str = ""
    host: str = ""
    place: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Seen:
    """A process as another one sees it. quiet: seconds since its status changed; unheard: since its last sign of life.
    gone: there is no such process any more."""

    rank: int
    status: Status
    quiet: float
    unheard: float
    gone: bool = False


@dataclass(frozen=True)
class Verdict:
    """rank: None where nobody is behind. silent: seconds without anything new."""

    event: Literal["lost_rank", "hung_rank"]
    rank: int | None
    sentence: str
    step: int
    doing: str
    silent: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def blame(seen: Sequence[Seen], me: int, waiting: float, for_first: bool, limit: float) -> Verdict | None:
    """Who keeps this process from going on, once it has waited for too long; None where nobody does.

    seen: by rank. waiting: seconds since this process entered the exchange that it is in, 0 where it is in none.
    for_first: it waits for what the first process does for all, which may take any time while that one is alive. limit:
    seconds that an exchange may take.
    """
    mine = seen[me]
    others = [each for each in seen if each.rank != me]
    stuck = waiting or (mine.quiet if mine.status.limited else 0.0)
    if stuck >= (GRACE if waiting else 2 * GRACE) and (found := lost(others, mine.status.step)) is not None:
        return found
    if for_first and waiting:
        first = seen[0]
        if first.status.exchange < mine.status.exchange:
            return frozen(first) if first.unheard > limit else None
        waiting = min(waiting, first.quiet)
    if waiting:
        return _in_exchange(mine, others, waiting, limit)
    return _in_step(mine, others, limit) if mine.status.limited else None


def lost(others: Sequence[Seen], step: int) -> Verdict | None:
    """A process that is gone, or says that it cannot go on; the one that did so for a reason of its own.

    step: of this process, which the one that is gone had come to, whatever it had last said.
    """
    for each in others:
        if each.status.failed:
            said = f"rank {each.rank} cannot go on in {_where(each)}: {each.status.failed}"
            return Verdict("lost_rank", each.rank, said, each.status.step, each.status.doing, each.quiet)
    for each in others:
        if each.gone:
            status = each.status
            where = _where(each) if status.step >= step else f"step {step:,}"
            said = f"rank {each.rank} has died in {where}, silent for {format_seconds(each.quiet)}: process"
            said += f" {status.pid} on {status.host} is gone"
            return Verdict("lost_rank", each.rank, said, max(status.step, step), status.doing, each.quiet)
    return None


def frozen(each: Seen) -> Verdict:
    said = f"rank {each.rank} gives no sign of life: it has been silent for {format_seconds(each.unheard)}, since"
    said += f" {_where(each)}"
    return Verdict("hung_rank", each.rank, said, each.status.step, each.status.doing, each.unheard)


def nobody(mine: Seen, world: int, waiting: float) -> Verdict:
    said = f"an exchange between {world} processes has not ended for {format_seconds(waiting)}: no rank is behind, all"
    said += f" wait in step {mine.status.step:,}, so the connection between them may be broken"
    return Verdict("hung_rank", None, said, mine.status.step, mine.status.doing, waiting)


def _in_exchange(mine: Seen, others: Sequence[Seen], waiting: float, limit: float) -> Verdict | None:
    if waiting <= limit:
        return None
    behind = [each for each in others if each.status.exchange < mine.status.exchange]
    guilty = [each for each in behind if each.status.limited or each.unheard > UNHEARD]
    if guilty:
        return _hung(min(guilty, key=lambda each: (each.status.exchange, -each.quiet)))
    silent = [each for each in others if each.unheard > UNHEARD]
    if silent:
        return frozen(max(silent, key=lambda each: each.unheard))
    return None if behind else nobody(mine, len(others) + 1, waiting)


def _in_step(mine: Seen, others: Sequence[Seen], limit: float) -> Verdict | None:
    """Some engines wait inside their passes, where nobody tells when: both have to be quiet."""
    if mine.quiet <= limit:
        return None
    late = [each for each in others if each.quiet > limit]
    behind = [each for each in late if each.status.limited and each.status.exchange < mine.status.exchange]
    if behind:
        return _hung(min(behind, key=lambda each: (each.status.exchange, -each.quiet)))
    silent = [each for each in late if each.unheard > limit]
    if silent:
        return frozen(max(silent, key=lambda each: each.unheard))
    alike = all(each.status.exchange == mine.status.exchange for each in late) and len(late) == len(others)
    return nobody(mine, len(others) + 1, mine.quiet) if alike and mine.quiet > _ALONE * limit else None


def _hung(each: Seen) -> Verdict:
    if each.unheard > UNHEARD:
        return frozen(each)
    said = f"rank {each.rank} hangs: it has been silent for {format_seconds(each.quiet)} in {_where(each)}"
    return Verdict("hung_rank", each.rank, said, each.status.step, each.status.doing, each.quiet)


def _where(each: Seen) -> str:
    return f"step {each.status.step:,} ({each.status.doing})"

