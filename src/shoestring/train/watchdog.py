"""No process of a run waits for ever for another: who hangs or has died is named, and the others end.

Each process says every second, through the store that the processes met by, where it is: its step, what it does, how
many exchanges it has entered. A thread of each looks at what the others say; who is to blame is decided in
`train.blame`. Where an exchange breaks off by itself (gloo notices that a connection is closed), `lost` makes one
sentence of that; where the main thread would wait for ever, the thread ends the process. What all do alike is limited
by `parallel.exchange_timeout`; what the first one does for all (preparing text, saving) is not, while it shows signs of
life.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from shoestring.core.errors import RunError
from shoestring.core.interrupt import end_process
from shoestring.core.units import format_seconds
from shoestring.train.blame import GRACE, Seen, Status, Verdict, blame, frozen, lost

BEAT = 1.0  # seconds between two signs of life
LIMIT = 600.0  # seconds that an exchange may take, until a recipe says otherwise
_CONNECTION = ("connect", "closed", "reset", "socket", "broken pipe", "timed out", "timeout", "peer", "nccl", "gloo")
_VERDICT = "verdict"
_ANSWER = 30.0  # seconds that the store is given to answer
_ARRIVAL = timedelta(minutes=10)


class Lost(RunError):
    """Another process of the run has died, hangs, or cannot go on. told: by this process, for all that are left."""

    def __init__(self, verdict: Verdict, told: bool, where: str | None = None, hint: str | None = None):
        super().__init__(verdict.sentence, where, hint)
        self.verdict, self.told = verdict, told
        self.silent = not told


class Watchdog:
    """One for each process. store: that all have met by, used through a connection of its own."""

    def __init__(self, store: dist.Store, rank: int, world: int):
        self.rank, self.world, self.limit = rank, world, LIMIT
        self.notes: list[Callable[[Verdict, bool], tuple[str, str]]] = []  # (verdict, told) -> where, hint
        self._store = dist.PrefixStore("watchdog", store.clone())  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=_ANSWER))
        self._turn = threading.Lock()  # of those who use the store
        self._own = Status(host=socket.gethostname(), place=_place(), pid=os.getpid())
        self._step, self._doing, self.limited, self._failed = 0, self._own.doing, False, ""
        self._entered = 0
        self._since: float | None = None  # when this process has entered the exchange that it is in
        self._for_first = False
        now = time.monotonic()
        self._known = [(Status(), -1, now, now)] * world  # status, count of signs, when each of them changed
        self._signs = 0
        self._agreed: Verdict | None = None  # what holds for all, told by rank `_teller`
        self._teller = -1
        self._ending = False
        self._cut_off = ""  # why the store cannot be reached
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._tell, self._look)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    # What the main thread says.

    def doing(self, step: int, what: str, limited: bool) -> None:
        self._step, self._doing, self.limited = step, what, limited

    def failed(self, reason: str) -> None:
        """This process cannot go on; it takes that back by entering another exchange."""
        self._failed = reason
        with contextlib.suppress(Exception):
            self._give_sign()

    @contextlib.contextmanager
    def exchange(self, for_first: bool = False) -> Iterator[None]:
        """Around each exchange. for_first: waits for what the first process does for all. Raises Lost."""
        self._failed, self._for_first = "", for_first
        self._entered += 1
        self._since = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if (found := self.lost(error)) is not None:
                raise found from error
            raise
        finally:
            self._since = None

    def lost(self, error: RuntimeError) -> Lost | None:
        """Why an exchange broke off, found out within ten seconds; None where that was no other process's fault."""
        started = time.monotonic()
        while self._ending:
            time.sleep(1)
        while (verdict := self._agreed or lost(self._others(), self._step)) is None and not self._cut_off:
            if time.monotonic() - started > 2 * GRACE:
                break
            time.sleep(0.1)
        if verdict is None:
            silent = [each for each in self._others() if each.unheard > 4 * BEAT]
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if self._cut_off and self.rank:
                verdict = self._without_store()
            elif silent:
                verdict = frozen(max(silent, key=lambda each: each.unheard))
            elif any(word in str(error).lower() for word in _CONNECTION):
                mine = self._seen()[self.rank]
                text = f"an exchange in step {self._step:,} broke off, and all processes are there: {said}"
                verdict = Verdict("lost_rank", None, text, self._step, self._doing, mine.quiet)
        if verdict is None:
            return None
        return Lost(*self._agree(verdict))

    def close(self) -> None:
        """As the process ends: nobody has to wait for it any more.

        A thread that the store answers while Python is ending would abort the process, so answers are waited for.
        """
        atexit.unregister(self.close)
        self._over.set()
        for thread in self._threads:
            thread.join(_ANSWER)
        if not self._cut_off:
            self.failed(self._failed or "its process has ended")

    # Signs of life, in a thread of their own: the store may not answer.

    def _tell(self) -> None:
        try:
            while True:
                self._give_sign()
                if self._over.wait(BEAT):
                    return
        except Exception as error:  # DistNetworkError and others
            self._cut_off = str(error).splitlines()[0] or type(error).__name__

    def _give_sign(self) -> None:
        """Say where this process is, and hear the others."""
        with self._turn:
            self._signs += 1
            self._store.set(str(self.rank), json.dumps([self._signs, asdict(self._status())]))
            others = [rank for rank in range(self.world) if rank != self.rank]
            there = [rank for rank in others if self._known[rank][1] >= 0 or self._store.check([str(rank)])]
            for rank, text in zip(there, self._store.multi_get([str(rank) for rank in there]), strict=True):
                status, signs, heard, changed = self._known[rank]
                count, values = json.loads(text)
                now, newest = time.monotonic(), Status(**values)
                self._known[rank] = (
                    newest, count, now if count != signs else heard, now if newest != status else changed,
                )  # fmt: skip
            if self._agreed is None and self._store.check([_VERDICT]):
                self._hear(self._store.get(_VERDICT))
        self._see_own()

    def _hear(self, text: bytes) -> None:
        self._teller, values = json.loads(text)
        self._agreed = Verdict(**values)

    def _status(self) -> Status:
        own = self._own
        return Status(
            self._step, self._doing, self._entered + _issued(), self._since is not None, self.limited, self._failed,
            own.host, own.place, own.pid,
        )  # fmt: skip

    def _see_own(self) -> None:
        status, _, _, changed = self._known[self.rank]
        now, newest = time.monotonic(), self._status()
        self._known[self.rank] = newest, self._signs, now, now if newest != status else changed

    # What is made of them.

    def _seen(self) -> list[Seen]:
        now, own = time.monotonic(), self._own
        self._see_own()
        return [
            Seen(
                rank, status, now - changed, now - heard,
                rank != self.rank and status.place == own.place and bool(status.pid) and _is_gone(status.pid),
            )
            for rank, (status, _, heard, changed) in enumerate(self._known)
        ]  # fmt: skip

    def _others(self) -> list[Seen]:
        return [each for each in self._seen() if each.rank != self.rank]

    def _look(self) -> None:
        while not self._over.wait(BEAT / 2):
            since = self._since
            waiting = 0.0 if since is None else time.monotonic() - since
            if since is None and not self.limited:
                continue  # what it does ends by itself
            seen = self._seen()
            if self._agreed is not None:
                verdict: Verdict | None = self._agreed
            elif not self._cut_off:
                verdict = blame(seen, self.rank, waiting, self._for_first, self.limit)
            else:  # nobody has been heard since
                stuck = (waiting or seen[self.rank].quiet) > 2 * GRACE
                verdict = lost(self._others(), self._step) or self._without_store() if stuck else None
            if verdict is None:
                continue
            if self._agreed is not None:
                time.sleep(2 * BEAT)  # an exchange that breaks off by itself ends in the main thread, more gently
                if self._since is None and not self.limited:
                    continue
            self._end(verdict)

    def _without_store(self) -> Verdict:
        first = self._seen()[0]
        said = f"rank 0 has been silent for {format_seconds(first.unheard)}, since step {first.status.step:,}: the"
        said += f" store of the rendezvous, on its machine, cannot be reached ({self._cut_off})"
        return Verdict("lost_rank", 0, said, first.status.step, first.status.doing, first.unheard)

    def _agree(self, verdict: Verdict) -> tuple[Verdict, bool]:
        """What holds for all, and whether this process is the one to tell it."""
        if self._agreed is not None:  # the store may have gone with the one that tells it
            return self._agreed, self._teller == self.rank
        text = json.dumps([self.rank, verdict.to_json()])
        if self._turn.acquire(timeout=GRACE):
            try:
                self._hear(self._store.compare_set(_VERDICT, "", text))
                return self._agreed or verdict, self._teller == self.rank
            except Exception:  # no store, nobody to agree with
                pass
            finally:
                self._turn.release()
        return verdict, True

    def _end(self, verdict: Verdict) -> None:
        """The process: its main thread would wait for ever."""
        self._ending = True
        verdict, told = self._agree(verdict)
        hints = []
        for note in self.notes:
            with contextlib.suppress(Exception):
                hints.append(note(verdict, told))
        time.sleep(2 * BEAT)  # the others read the verdict: the store may end with this process
        error = Lost(verdict, told, *next((hint for hint in hints if hint is not None), (None, None)))
        end_process(f"error: {error}" if told else "", Lost.exit_code)


def meet(backend: str) -> None:
    """The processes that a launcher such as torchrun has started, into one group. Raises RunError, which names who has
    not come."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if lacking := [name for name in needed if not os.environ.get(name)]:
        raise RunError(f"WORLD_SIZE is set, and {', '.join(lacking)} not", hint="start the processes by torchrun")
    rank, world, address, port = (os.environ[name] for name in needed)
    store = _arrive(int(rank), int(world), address, int(port))
    dog = Watchdog(store, int(rank), int(world))
    # The group's own patience ends what takes long for a good reason, and without a word: ours is the watchdog's.
    with dog.exchange():
        dist.init_process_group(
            backend, store=store, rank=int(rank), world_size=int(world), timeout=timedelta(days=7)
        )
    _NOW.append((dist.group.WORLD, dog))


def _arrive(rank: int, world: int, address: str, port: int) -> dist.Store:
    """The store that torchrun keeps, or rank 0, once all are there."""
    master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    keys = [f"here/{number}" for number in range(world)]
    store: dist.Store | None = None
    # torchrun's store outlives the processes that it starts anew, and what the first ones said in it is wrong now.
    again = f"shoestring/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{world}"
    try:
        tcp = dist.TCPStore(address, port, world, master, _ARRIVAL, wait_for_workers=False)
        store = dist.PrefixStore(again, tcp)
        store.set(keys[rank], "1")
        store.wait(keys, _ARRIVAL)
    except RuntimeError as error:
        missing = [0]
        if store is not None:
            with contextlib.suppress(RuntimeError):
                missing = [number for number, key in enumerate(keys) if not store.check([key])]
        if master:
            time.sleep(2 * BEAT)  # the store ends with this process, and the others ask it who is missing
        who = f"rank {', '.join(map(str, missing))}" if missing else "another process"
        within = format_seconds(_ARRIVAL.total_seconds())
        hint = f"look at what that process says, and whether {address}:{port} can be reached from there"
        raise RunError(f"{who} of {world} has not come within {within}", None, hint) from error
    return store


_NOW: list[tuple[Any, Watchdog]] = []  # the process group, and who watches it


def watching() -> Watchdog:
    """Of the processes that have met; begun at the first call, which is that of the first exchange."""
    group = dist.group.WORLD
    if _NOW and _NOW[0][0] is group:
        return _NOW[0][1]
    if _NOW:
        _NOW.pop()[1].close()
    found = Watchdog(dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size())
    _NOW.append((group, found))
    return found


def doing(step: int, what: str, limited: bool = True) -> None:
    """What this process does now; nothing where it is alone."""
    if _NOW:
        _NOW[0][1].doing(step, what, limited)


def failed(error: BaseException) -> None:
    """This process leaves a run that others may be waiting in."""
    if _NOW and not isinstance(error, Lost):
        _NOW[0][1].failed((str(error).splitlines() or [type(error).__name__])[0])


def _issued() -> int:
    """Exchanges that were begun by whoever: engines have some of their own."""
    try:
        group: Any = dist.group.WORLD
        return int(group._get_sequence_number_for_group())
    except Exception:  # a backend that does not count
        return 0


def _place() -> str:
    """Where process ids mean the same: a machine, and on Linux a name space of it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, be it that nobody has asked for its exit code yet."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0] in "ZX"
        except (OSError, IndexError):
            return not os.path.exists(f"/proc/{pid}")
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
