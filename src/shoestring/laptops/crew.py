"""The machines that are there: who came, whom to wait for, how far away each is. On the first machine; torch-free."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoestring.core.units import format_bytes
from shoestring.core.waiting import waiting
from shoestring.laptops.config import Address, MachinesConfig
from shoestring.laptops.link import measured
from shoestring.laptops.listener import Listener
from shoestring.laptops.member import BEAT, Event, Member, read_join
from shoestring.laptops.share import Shared
from shoestring.laptops.wire import LinkError, Message, Wire
from shoestring.plan.split import Laptop, Link

Say = Callable[[str], Any]
_LOOK = 0.5  # seconds between two looks at who is there


@dataclass(frozen=True)
class Present:
    """One machine that takes part. member: None for the first one, on which this runs."""

    name: str
    machine: dict[str, Any]
    memory: int | None
    layers: int | None
    member: Member | None = None

    def laptop(self, flops: float) -> Laptop:
        return Laptop(self.name, flops, self.memory, self.layers)


class Crew:
    """first: what this machine can do (`describe`). events: where what happens is put."""

    def __init__(self, config: MachinesConfig, address: Address, token: str, first: dict[str, Any], say: Say):
        self.config, self.say = config, say
        self.events: queue.Queue[Event] = queue.Queue()
        self.members: dict[str, Member] = {}
        self._first = first
        self._hashes: dict[tuple[str, int, int, int, int], str] = {}
        self._lock = threading.Lock()
        self.listener = Listener(address, token, self._came, say)

    @property
    def address(self) -> Address:
        return self.listener.address

    def close(self, why: str) -> None:
        """Tell everyone that it is over."""
        self.listener.close()
        with self._lock:
            members = list(self.members.values())
        for member in members:
            member.send("done", {"why": why})
        deadline = time.monotonic() + 2
        while any(not member.gone for member in members) and time.monotonic() < deadline:
            time.sleep(0.05)  # they close the connection, having read why
        for member in members:
            member.wire.close()

    def alive(self) -> dict[str, Member]:
        with self._lock:
            return {name: member for name, member in self.members.items() if not member.gone}

    def missing(self) -> list[str]:
        there = self.alive()
        return [one.name for one in self.config.machines[1:] if one.name not in there]

    def gather(self, seconds: float) -> list[Present]:
        """Those that are there once all are, or after so long, in the order of the file."""
        until = time.monotonic() + seconds
        if self.missing():
            with waiting(f"waiting   for {', '.join(self.missing())}") as told:
                while (missing := self.missing()) and time.monotonic() < until:
                    told.what = f"waiting   for {', '.join(missing)}"
                    time.sleep(_LOOK)
        there = self.alive()
        found = []
        for i, one in enumerate(self.config.machines):
            if i == 0:
                found.append(Present(one.name, self._first, one.memory, one.layers))
            elif member := there.get(one.name):
                found.append(Present(one.name, member.machine, _least(one.memory, member.memory), one.layers, member))
        return found

    def links(self, present: Sequence[Present]) -> Callable[[int, int], Link]:
        """Of two of them by their places. Two that are not the first are as far apart as the slower of their links to
        it, which were measured; the one between them was not."""
        ways = {i: one.member.link for i, one in enumerate(present) if one.member is not None}

        def between(i: int, j: int) -> Link:
            found = [ways[place] for place in (i, j) if place in ways]
            return Link(max(link.latency for link in found), min(link.bandwidth for link in found))

        return between

    def _came(self, wire: Wire, message: Message) -> None:
        """Someone who knows the token. Raises LinkError for who is not expected, or here already."""
        name, machine, memory = read_join(message)
        names = [one.name for one in self.config.machines[1:]]
        if name not in names:
            raise LinkError(f"there is no machine {name!r} in this run: it names {', '.join(names)}")
        with self._lock:
            before = self.members.get(name)
            if before is not None and not before.gone and time.monotonic() - before.heard < 2 * BEAT + 1:
                raise LinkError(f"{name} is here already, from {before.wire.there}")
        if before is not None:
            before.end("its connection was cut")  # and it is back before that was noticed
        wire.send("joined", {"wait": self.config.wait, "first": self.config.machines[0].name})
        link = measured(wire)
        member = Member(name, wire, machine, memory, link, self.events, Shared(self._hashes))
        with self._lock:
            self.members[name] = member
        limit = "" if memory is None else f", {format_bytes(memory)} of memory"
        self.say(
            f"joined    {name}: {machine.get('cores'):.0f} cores{limit}, {link.latency * 1e3:.1f} ms away,"
            f" {link.bandwidth * 8 / 1e6:,.0f} Mbit/s"
        )
        member.start()
        self.events.put(Event(name, "came"))


def _least(*sizes: int | None) -> int | None:
    given = [size for size in sizes if size is not None]
    return min(given) if given else None
