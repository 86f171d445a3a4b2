"""The first machine's loop: gather the machines, split the model, start all, watch, and begin again when one leaves.

    gather ─▶ plan ─▶ offer, fetch ─▶ start ─▶ watch ─┬─▶ finished, failed, stopped
       ▲                                              │
       └───── everyone stops: one has left, or is back

A worker that loses another one ends; all that count on it are stopped, and go on from the last checkpoint: with the
machine when it is back in time, else split anew without it. Nothing here loads torch, so it answers while others work.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shoestring.core import interrupt
from shoestring.core.errors import NetworkError, RunError
from shoestring.core.units import format_seconds
from shoestring.core.waiting import waiting
from shoestring.laptops.crew import Crew, Present, Say
from shoestring.laptops.member import Event
from shoestring.laptops.order import Order
from shoestring.laptops.process import GRACE, Worker

FETCHING = 3600.0  # seconds that fetching may take at most without a word
AFTER_A_LOSS = 10.0  # seconds that the others have to end by themselves
_LIMIT = GRACE + 15  # seconds in which all must have ended once one has
_JUST_NOW = 2.0
_FUTILE = 3  # starts in a row that come to no new step
_LOOK = 1.0


class Work(Protocol):
    """What is done over the machines (`project`)."""

    out: Path
    resume: str  # the command that goes on with it

    def orders(self, number: int, present: Sequence[Present], crew: Crew, say: Say) -> list[Order]:
        """One for each, of those that take part; others were left out because it is faster without them, or alone."""
        ...

    def step(self) -> int:
        """Of the last checkpoint."""
        ...

    def arguments(self, order: Order) -> dict[str, Any]:
        """What this machine's own worker is told beside its order."""
        ...


@dataclass
class Ending:
    """Of one start. kind: finished, stopped, failed; gone (a machine), left (a worker), lost (a worker has lost another
    one), back. who: on whose account. result: of the whole run."""

    kind: str
    who: str = ""
    why: str = ""
    hint: str | None = None
    result: dict[str, Any] | None = None


class Coordinator:
    """`run` sees it to its end."""

    def __init__(self, crew: Crew, work: Work, say: Say):
        self.crew, self.work, self.say = crew, work, say
        self.first = crew.config.machines[0].name
        self.interrupted = False

    def run(self) -> dict[str, Any]:
        """To the end of the run; -> its result. Raises RunError, NetworkError, and KeyboardInterrupt once all have
        saved themselves because someone pressed Ctrl-C here."""
        number, futile, step = 0, 0, self.work.step()
        while True:
            number += 1
            present = self.crew.gather(self.crew.config.wait)
            if len(present) < 2 and number == 1:
                names = ", ".join(self.crew.missing())
                waited = format_seconds(self.crew.config.wait)
                hint = "start them, or give --wait more time"
                raise NetworkError(f"none of {names} came within {waited}", hint=hint)
            if missing := self.crew.missing():
                self.say(f"without   {', '.join(missing)}: the layers are split anew")
            orders = self.work.orders(number, present, self.crew, self.say)
            if not self._fetched(orders):
                continue
            ending = self._once(number, orders)
            if ending.kind == "finished":
                assert ending.result is not None
                return ending.result
            if ending.kind == "stopped":
                raise KeyboardInterrupt
            if ending.kind == "failed":
                raise RunError(ending.why, ending.who or None, ending.hint)
            self.say(f"stopped   {ending.who}: {ending.why}; going on from step {self.work.step()}")
            if self.work.step() > step or ending.kind == "back":
                futile = 0
            elif ending.kind != "gone":  # such a machine comes again when somebody wants it to
                futile += 1
            step = self.work.step()
            if futile == _FUTILE:
                raise RunError(f"{_FUTILE} starts in a row came to no new step: {ending.why}", hint=self.work.resume)

    def _fetched(self, orders: Sequence[Order]) -> bool:
        """Offer each its order, and wait until all have what they need. False where one has left meanwhile."""
        waited = {}
        self._drop_old()
        for order in orders[1:]:
            name = order.names[order.rank]
            member = self.crew.alive().get(name)
            if member is None:
                return False
            member.send("offer", {"order": order.to_json()})
            waited[name] = sum(file.bytes for file in order.files)
        if not waited:  # this machine is alone
            return True
        with waiting(f"fetching  {', '.join(waited)}, in bytes", sum(waited.values())) as told:
            done: dict[str, int] = dict.fromkeys(waited, 0)
            until = time.monotonic() + FETCHING
            while waited:
                event = self._next()
                if self.interrupted:
                    raise KeyboardInterrupt
                if time.monotonic() > until:
                    raise NetworkError(f"{', '.join(waited)} did not fetch what is needed in an hour")
                if event is None or event.fields.get("number", orders[0].number) != orders[0].number:
                    continue
                if event.kind == "gone" and event.name in done:
                    return False
                if event.kind == "cannot":
                    raise RunError(f"{event.name} cannot take part: {str(event.fields.get('why'))[:500]}")
                if event.kind == "fetched" and event.name in done:
                    count = event.fields.get("bytes")
                    done[event.name] = count if isinstance(count, int) else 0
                    told.done, until = sum(done.values()), time.monotonic() + FETCHING
                if event.kind == "ready":
                    waited.pop(event.name, None)
        return True

    def _drop_old(self) -> None:
        """What was said before this start."""
        gone = []
        while (event := self._taken()) is not None:
            if event.kind == "gone" and event.name not in self.crew.alive():
                gone.append(event)
        for event in gone:
            self.crew.events.put(event)

    def _once(self, number: int, orders: Sequence[Order]) -> Ending:
        names = [order.names[order.rank] for order in orders]
        log = self.crew.events

        def heard(values: dict[str, Any]) -> None:
            kind = next(iter(values), "")
            log.put(Event(self.first, "worker", {**values, "number": number, "said": kind}))

        worker = Worker([], heard, Path.cwd())
        worker.tell(order=orders[0].to_json(), **self.work.arguments(orders[0]))
        try:
            return self._watch(number, names, worker)
        finally:
            worker.kill()

    def _watch(self, number: int, names: list[str], worker: Worker) -> Ending:
        """Until every worker that began has ended, for whatever reason; the first reason counts."""
        running, ending = {self.first}, None
        outcomes: dict[str, dict[str, Any]] = {}
        deadline, leaving = float("inf"), []

        def end(found: Ending, grace: float) -> None:
            nonlocal ending, deadline
            if ending is not None and ending.kind == "lost" and time.monotonic() < deadline - _LIMIT + _JUST_NOW:
                ending = found  # the reason comes after what came of it
            if ending is None:
                ending, deadline = found, time.monotonic() + _LIMIT
                worker.stop(grace)
                for name in names[1:]:
                    if member := self.crew.alive().get(name):
                        member.send("stop", {"number": number, "grace": grace})

        while running:
            event = self._next()
            if self.interrupted and ending is None:
                self.say("stopping  after this step; Ctrl-C again to stop at once without saving")
                end(Ending("stopped"), GRACE)
            if time.monotonic() > deadline:
                break  # who has not ended by now is no longer waited for
            if event is None or event.fields.get("number", number) != number:
                continue
            if event.kind == "came" and event.name not in names:
                end(Ending("back", event.name, "it is here, and the layers are split anew"), GRACE)
            elif event.kind == "gone" and event.name in names:
                running.discard(event.name)
                why = outcomes.get(event.name, {}).get("why") or event.fields["why"]
                end(Ending("gone", event.name, str(why)), AFTER_A_LOSS)
            elif event.kind == "leaving" and event.name in names:
                leaving.append(event.name)
                end(Ending("gone", event.name, "someone stopped it there"), GRACE)
            elif event.kind == "worker" and event.name in names:
                said = event.fields.get("said")
                if said == "store" and event.name == self.first:
                    for name in names[1:]:
                        if member := self.crew.alive().get(name):
                            store = {"host": self.crew.address.host, "port": event.fields["store"]}
                            member.send("start", {"number": number, **store})
                            running.add(name)
                elif said == "outcome":
                    outcomes[event.name] = event.fields
                    found = _judged(event.name, event.fields)
                    if found is not None and (ending is None or found.kind == "failed"):
                        end(found, AFTER_A_LOSS)
                elif said == "ended":
                    running.discard(event.name)
                    outcome = outcomes.get(event.name, {})
                    if not outcome:
                        code = event.fields.get("ended")
                        end(Ending("left", event.name, f"its worker ended with exit code {code}"), AFTER_A_LOSS)
        for name in leaving:
            if member := self.crew.alive().get(name):
                member.end("it has left")
        if ending is not None:
            return ending
        result = outcomes[self.first].get("result")
        peaks = {name: fields.get("peak") for name, fields in outcomes.items()}
        return Ending("finished", result={**(result if isinstance(result, dict) else {}), "peaks": peaks})

    def _next(self) -> Event | None:
        try:
            return self.crew.events.get(timeout=_LOOK)
        except queue.Empty:
            return None
        except KeyboardInterrupt:
            if self.interrupted:
                raise
            interrupt.answered()
            self.interrupted = True
            return None

    def _taken(self) -> Event | None:
        try:
            return self.crew.events.get_nowait()
        except queue.Empty:
            return None


def _judged(name: str, fields: dict[str, Any]) -> Ending | None:
    """What a worker's own account of its end means for all. None where it is no reason to stop."""
    outcome = fields.get("outcome")
    why, hint = str(fields.get("why", ""))[:2000], fields.get("hint")
    if outcome == "finished":
        return None
    if outcome == "failed":
        return Ending("failed", name, why, hint if isinstance(hint, str) else None)
    if outcome == "stopped":
        return Ending("left", name, "it was stopped")
    return Ending("lost", name, why or "its worker lost the others")


