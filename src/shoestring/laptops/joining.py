"""`shoestring join`: this machine works for a run on another one, until that is over. Torch-free, but for its worker.

It proves the token, says what it can do and what it gives, is told which layers it is to hold, says so, fetches their
tensors, and then starts a worker whenever the first machine says so. Where the connection ends, the worker ends, and
the machine asks again for as long as the first one waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoestring.core import interrupt
from shoestring.core.errors import NetworkError, ShoestringError
from shoestring.core.files import cache_dir
from shoestring.core.units import format_bytes
from shoestring.core.waiting import waiting
from shoestring.laptops import link
from shoestring.laptops.config import Address
from shoestring.laptops.fetch import Read, fetch, mark_parts, missing
from shoestring.laptops.handshake import SECONDS, Refused, Versions, ask, expect
from shoestring.laptops.listener import connected
from shoestring.laptops.member import BEAT, SILENCE
from shoestring.laptops.order import Order
from shoestring.laptops.process import GRACE, Worker
from shoestring.laptops.survey import MODEL
from shoestring.laptops.wire import Gone, LinkError, Message, Wire

AGAIN = 3.0  # seconds between two attempts to come back
_ANSWER = 60.0  # seconds for a piece of a file


class _OutOfDate(Exception):
    """Another plan was made meanwhile."""


class Joiner:
    """name, memory, machine: what is told of this machine. sources: from where pieces are read first.

    folder: where files are kept, None: in the cache.
    """

    def __init__(
        self, address: Address, token: str, name: str, memory: int | None, machine: dict[str, Any],
        say: Callable[[str], Any], sources: Sequence[Read] = (), folder: Path | None = None,
    ):  # fmt: skip
        self.address, self.name, self.say, self.sources = address, name, say, sources
        self._token, self._memory, self._machine = token, memory, machine
        self._folder = folder
        self._wait = AGAIN  # how long to ask again; the first machine says how long it waits
        self._worker: Worker | None = None
        self._number = 0
        self._order: Order | None = None
        self._answers: queue.Queue[Message] = queue.Queue()
        self._leaving = False
        self._preparing = threading.Lock()

    def run(self) -> str:
        """Until the first machine says that it is over; -> what it says. Raises Refused, NetworkError where it does not
        come back, and KeyboardInterrupt once the worker has ended because someone pressed Ctrl-C here."""
        lost = None
        while True:
            try:
                wire = self._joined()
            except Refused:
                if lost is None or time.monotonic() - lost > self._wait:
                    raise
                time.sleep(AGAIN)  # it may not have noticed yet that we were gone
                continue
            except LinkError as error:
                if lost is None or time.monotonic() - lost > self._wait:
                    raise NetworkError(error.message, hint="is the first machine waiting there?") from None
                time.sleep(AGAIN)
                continue
            try:
                return self._serve(wire)
            except LinkError as error:
                if self._leaving:
                    raise KeyboardInterrupt from None
                self.say(f"lost      the first machine: {error.message}; asking again for it")
                lost = time.monotonic()
            finally:
                self._end_worker()
                wire.close()

    def _joined(self) -> Wire:
        wire = connected(self.address, SECONDS)
        try:
            ask(wire, self._token)
            about = {"name": self.name, "memory": self._memory, "machine": self._machine}
            wire.send("join", {"versions": asdict(Versions.here()), **about})
            joined = expect(wire, "joined", SECONDS)
        except BaseException:
            wire.close()
            raise
        wait = joined.fields.get("wait")
        self._wait = float(wait) if isinstance(wait, (int, float)) and 0 < wait < 1e6 else AGAIN
        self.say(f"joined    the run of {str(joined.fields.get('first'))[:40]} at {self.address}; waiting for its plan")
        return wire

    def _serve(self, wire: Wire) -> str:
        threading.Thread(target=self._beat, args=[wire], daemon=True).start()
        while True:
            try:
                message = wire.receive(SILENCE)
                if message.kind == "done":
                    return str(message.fields.get("why"))[:500]
                self._take(wire, message)
                if self._leaving and (self._worker is None or not self._worker.alive):
                    raise Gone("this machine leaves")
            except KeyboardInterrupt:
                self._leave(wire)

    def _take(self, wire: Wire, message: Message) -> None:
        fields = message.fields
        if message.kind == "ping":
            link.answer(wire, fields)
        elif message.kind == "bytes":
            self._answers.put(message)
        elif message.kind == "offer":
            self._order = order = Order.of(fields.get("order"))
            self._number = order.number
            threading.Thread(target=self._prepare, args=[wire, order], daemon=True).start()
        elif message.kind == "start" and fields.get("number") == self._number:
            self._start(wire, fields)
        elif message.kind == "stop" and fields.get("number") == self._number and self._worker is not None:
            grace = fields.get("grace")
            self._worker.stop(float(grace) if isinstance(grace, (int, float)) else GRACE)

    def _leave(self, wire: Wire) -> None:
        """Ctrl-C: the run saves itself everywhere, and goes on without this machine. Once more: at once."""
        interrupt.answered()
        worker = self._worker
        if self._leaving or worker is None or not worker.alive:
            self._leaving = True
            raise Gone("this machine leaves")
        self._leaving = True
        self.say("leaving   after this step, which the run saves; Ctrl-C again to leave at once")
        wire.send("leaving", {"number": self._number})

    # --- what it fetches --------------------------------------------------------------------------------------

    def _prepare(self, wire: Wire, order: Order) -> None:
        with self._preparing, contextlib.suppress(_OutOfDate):
            self._fetch(wire, order)

    def _fetch(self, wire: Wire, order: Order) -> None:
        try:
            folder = self._place(order)
            for line in order.told():
                self.say(line)
            wanted = missing(order.files, folder)
            self.say(f"fetches   {format_bytes(wanted)}, which stay in {folder}")
            sources = list(self.sources)
            sources.append(lambda path, begin, size: self._ask_for(wire, order.number, path, begin, size))
            done = 0
            told_at = time.monotonic()

            with waiting("fetching  in bytes", wanted) as told:

                def advance(count: int) -> None:
                    nonlocal done, told_at
                    done += count
                    told.advance(count)
                    if time.monotonic() - told_at > 1:
                        told_at = time.monotonic()
                        wire.send("fetched", {"number": order.number, "bytes": done})

                fetch(order.files, folder, sources, advance)
            first, end = order.split.ranges[order.rank]
            if order.digests:
                mark_parts(folder / MODEL, dict(order.digests), f"{first}-{end}")
            wire.send("ready", {"number": order.number})
        except LinkError:
            wire.close()
        except (ShoestringError, OSError) as error:
            why = error.message if isinstance(error, ShoestringError) else f"{error.filename}: {error.strerror}"
            with contextlib.suppress(LinkError):
                wire.send("cannot", {"number": order.number, "why": why})

    def _place(self, order: Order) -> Path:
        """Where the files of a run stand: one folder for a model and a name, whose tensors other runs find there."""
        if self._folder is not None:
            return self._folder
        known = "".join(sorted(digest for _, digest in order.digests)) or order.out
        key = hashlib.sha256(known.encode()).hexdigest()
        return cache_dir() / "laptops" / f"{key[:16]}-{self.name}"

    def _ask_for(self, wire: Wire, number: int, path: str, begin: int, size: int) -> bytes:
        wire.send("read", {"number": number, "path": path, "begin": begin, "size": size})
        until = time.monotonic() + _ANSWER
        while True:
            if number != self._number:
                raise _OutOfDate
            try:
                message = self._answers.get(timeout=1)
            except queue.Empty:
                if time.monotonic() > until:
                    raise LinkError(f"{path} did not come") from None
                continue
            if message.fields.get("path") == path and message.fields.get("begin") == begin:
                if len(message.content) != size:
                    raise LinkError(f"{path} came in another size")
                return message.content

    # --- what it does -----------------------------------------------------------------------------------------

    def _start(self, wire: Wire, fields: dict[str, Any]) -> None:
        order, number = self._order, self._number
        assert order is not None
        host, port = fields.get("host"), fields.get("port")
        if not isinstance(host, str) or type(port) is not int or not 0 < port < 65536:
            raise LinkError("the first machine does not say where the workers meet")
        self._end_worker()

        def heard(values: dict[str, Any]) -> None:
            said = next(iter(values), "")
            if said == "say":
                self.say(str(values["say"]))
                return
            with contextlib.suppress(LinkError):
                wire.send("worker", {**values, "number": number, "said": said})

        folder = self._place(order)
        given = {Path(file.path).parts[1] for file in order.files if file.path.startswith(f"{order.out}/")}
        for path in (folder / order.out).glob("step-*"):
            if path.name not in given:  # of a start before, and the first machine may have given it up
                shutil.rmtree(path, ignore_errors=True)
        self._worker = Worker([], heard, folder)
        light = {**order.to_json(), "files": []}
        self._worker.tell(order=light, here=wire.here, store=[host, port], out=order.out)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait(5)
            self._worker = None

    def _beat(self, wire: Wire) -> None:
        try:
            while True:
                wire.send("alive")
                time.sleep(BEAT)
        except LinkError:
            wire.close()

