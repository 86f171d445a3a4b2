"""The first machine's end of the connection to a machine that joined."""

from __future__ import annotations

import queue
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from shoestring.laptops.config import NAME
from shoestring.laptops.share import Shared
from shoestring.laptops.wire import LinkError, Message, Wire
from shoestring.plan.split import Link

BEAT = 3.0  # seconds between two signs of life
SILENCE = 20.0  # seconds without one, and the other end counts as gone
_NUMBERS = ("memory", "process", "checkpointing", "int8_gain", "cores", "threads", "bandwidth", "pace")


@dataclass(frozen=True)
class Event:
    """Something that happened, for the loop that coordinates. kind "gone": the connection has ended."""

    name: str
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass
class Member:
    """machine: what it can do (`describe`). memory: bytes that it gives, None: no limit. link: to the first machine."""

    name: str
    wire: Wire
    machine: dict[str, Any]
    memory: int | None
    link: Link
    events: queue.Queue[Event]
    shared: Shared
    heard: float = field(default_factory=time.monotonic)
    gone: bool = False
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Hear it and show it signs of life, from now on."""
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name=f"{work.__name__} {self.name}", daemon=True).start()

    def send(self, kind: str, fields: dict[str, Any] | None = None) -> None:
        """What cannot be sent is noticed by who listens."""
        try:
            self.wire.send(kind, fields)
        except LinkError:
            self.wire.close()

    def _listen(self) -> None:
        try:
            while True:
                message = self.wire.receive(SILENCE)
                self.heard = time.monotonic()
                if message.kind == "read" and message.fields.get("number") != self.shared.number:
                    continue  # of a start that was given up
                if message.kind == "read":
                    content = self.shared.read(message.fields)
                    again = {name: message.fields[name] for name in ("path", "begin")}
                    self.wire.send("bytes", again, content)
                elif message.kind != "alive":
                    self.events.put(Event(self.name, message.kind, message.fields))
        except LinkError as error:
            self.end(error.message)
        except OSError as error:  # a file that is no longer there
            self.end(str(error))

    def end(self, why: str) -> None:
        """It counts as gone from now on, which is told once."""
        with self._ending:
            if self.gone:
                return
            self.gone = True
            self.events.put(Event(self.name, "gone", {"why": why}))
        self.wire.close()

    def _beat(self) -> None:
        try:
            while not self.gone:
                self.wire.send("alive")
                time.sleep(BEAT)
        except LinkError:
            self.wire.close()


def read_join(message: Message) -> tuple[str, dict[str, Any], int | None]:
    """Name, machine and memory of who wants to join. Raises LinkError."""
    fields = message.fields
    name, machine, memory = fields.get("name"), fields.get("machine"), fields.get("memory")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise LinkError("it has no name of letters and digits")
    if memory is not None and (type(memory) is not int or not 0 < memory < 2**50):
        raise LinkError("its memory is no number of bytes")
    if not isinstance(machine, dict) or not all(_is_positive(machine.get(key)) for key in _NUMBERS):
        raise LinkError("it does not say what it can do")
    flops = machine.get("flops")
    if not isinstance(flops, dict) or not all(_is_positive(flops.get(form)) for form in ("float32", "bfloat16")):
        raise LinkError("it does not say how fast it is")
    return name, machine, memory


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e20
