"""`python -m shoestring.laptops.worker`: one machine's part of a run, begun and ended by `process.Worker`.

The first line on stdin says what to do, and where. On stdout it says, a JSON object a line, where the first process is
met, and how it ended: finished, stopped (saved), lost (another one has gone), failed (a sentence for the user) or
crashed. When stdin ends, whoever began it is gone, and so is this process.

The processes meet at torch's TCPStore, bound to the one address named, and compute over gloo, bound to the interface
that has it. Neither asks who connects: docs/laptops.md says what that means.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from shoestring.core.errors import ShoestringError
from shoestring.core.machine import peak_rss_bytes
from shoestring.laptops.interface import interface_of
from shoestring.laptops.order import Order

# The control connection notices within seconds who has gone; this is for what it does not see.
_TIMEOUT = timedelta(minutes=30)
_MEETING = timedelta(minutes=2)
# How an error says that another process has gone, where its class does not.
_LOST = (
    "another process has gone", "another process could not do", "another process of this run", "Connection closed",
    "Connection reset", "Broken pipe", "gloo", "Timed out waiting",
)  # fmt: skip


class Channel:
    """Between this process and the one that began it."""

    def __init__(self, said: TextIO, heard: TextIO):
        self._said, self._lock = said, threading.Lock()
        self.asked = json.loads(heard.readline() or "{}")
        threading.Thread(target=self._listen, args=[heard], daemon=True).start()

    def say(self, **values: Any) -> None:
        with self._lock:
            self._said.write(json.dumps(values) + "\n")
            self._said.flush()

    def _listen(self, heard: TextIO) -> None:
        for _ in heard:
            pass
        os._exit(1)


def main(channel: Channel) -> None:
    order = Order.of({**channel.asked["order"], "files": []})
    try:
        meet(order, channel)
        result = work(order, channel)
    except BaseException as error:
        channel.say(outcome=_outcome(error), **_told(error))
        return
    channel.say(outcome="finished", result=result, peak=peak_rss_bytes())


def meet(order: Order, channel: Channel) -> None:
    """All processes of the run, connected."""
    import torch.distributed as dist

    if order.world == 1:
        return
    here = channel.asked["here"]
    if (interface := interface_of(here)) is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ |= {"RANK": str(order.rank), "WORLD_SIZE": str(order.world), "LOCAL_RANK": "0"}
    if order.rank == 0:
        # Left to itself the store would listen on every address of this machine.
        family = socket.AF_INET6 if ":" in here else socket.AF_INET
        door = socket.socket(family, socket.SOCK_STREAM)
        door.bind((here, 0))
        door.listen(64)
        port = door.getsockname()[1]
        store = dist.TCPStore(
            here, port, order.world, is_master=True, timeout=_MEETING, wait_for_workers=False,
            master_listen_fd=door.detach(),
        )  # fmt: skip
        channel.say(store=port)
    else:
        host, port = channel.asked["store"]
        store = dist.TCPStore(host, port, order.world, is_master=False, timeout=_MEETING, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=order.rank, world_size=order.world, timeout=_TIMEOUT)


def work(order: Order, channel: Channel) -> dict[str, Any]:
    """The run itself; -> what the first process has to show."""
    from shoestring.laptops.runs import run

    result = run(order, Path(channel.asked["out"]))
    return {"text": str(result), "json": result.to_json()} if order.rank == 0 else {}


def _outcome(error: BaseException) -> str:
    from shoestring.train import parallel, watchdog
    from shoestring.train.interrupt import Interrupted

    if isinstance(error, (parallel.Lost, parallel.Elsewhere, watchdog.Lost)):
        return "lost"
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "stopped"
    said = str(error)
    if any(mark in said for mark in _LOST) and isinstance(error, (ShoestringError, RuntimeError)):
        return "lost"
    return "failed" if isinstance(error, ShoestringError) else "crashed"


def _told(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ShoestringError):
        where = f"{error.where}: " if error.where else ""
        return {"why": where + error.message, "hint": error.hint}
    traceback.print_exception(type(error), error, error.__traceback__)
    return {"why": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:500], "hint": None}


if __name__ == "__main__":
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a run prints is for people
    main(Channel(said, sys.stdin))
    said.flush()
    os._exit(0)
