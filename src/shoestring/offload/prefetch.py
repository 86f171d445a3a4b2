"""Numbered parts of a file in a few buffers, the next ones read on a thread while one is used.

The reader knows which parts come next. It keeps the one in use, reads at most `ahead` that follow, and gives up the
buffer whose part is needed last (Belady's rule, IBM Systems Journal 5, 1966): where a pass up is followed by a pass
down, the parts at the turn are still there, and c buffers save 2c reads of 2L.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

Read = Callable[[int, int], None]  # (part, buffer): fill the buffer with the part, on the reader's thread
_FAR = 1 << 40


class Prefetch:
    """`take(part, coming)` -> the buffer that holds it. ahead 0: nothing is read before it is asked for.

    waited: seconds that `take` waited for reads. reads: how many were made. What a read raises, `take` raises.
    """

    def __init__(self, read: Read, buffers: int, ahead: int = 1):
        assert buffers > ahead >= 0
        self._read, self._ahead = read, ahead
        self._held: dict[int, int] = {}  # part -> buffer
        self._reading: dict[int, Future[None]] = {}
        self._free = list(range(buffers))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shoestring-read")
        self.waited, self.reads = 0.0, 0

    def take(self, part: int, coming: Iterable[int]) -> int:
        """The buffer with `part`, good until the next `take`. coming: the parts after it, as far as is known."""
        after: dict[int, int] = {}
        for distance, later in enumerate(itertools.islice(coming, 4096)):
            after.setdefault(later, distance)
        after[part] = -1
        if part not in self._held:
            self._start(part, after)
        started = time.perf_counter()
        self._finish(part)
        self.waited += time.perf_counter() - started
        nearest = sorted((later for later in after if later != part), key=after.__getitem__)
        for later in nearest[: self._ahead]:
            if later not in self._held and not self._start(later, after):
                break
        return self._held[part]

    def forget(self) -> None:
        """Drop every part: what they were read from has changed."""
        for part in list(self._held):
            self._drop(part)

    def close(self) -> None:
        """End the thread; what it is reading is finished first."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _start(self, part: int, after: dict[int, int]) -> bool:
        """Begin to read, into a free buffer or the one whose part is needed later than this and last of all."""
        if not self._free:
            last = max(self._held, key=lambda held: after.get(held, _FAR))
            if after.get(last, _FAR) <= after[part]:
                return False
            self._drop(last)
        self._held[part] = buffer = self._free.pop()
        self._reading[part] = self._thread.submit(self._read, part, buffer)
        self.reads += 1
        return True

    def _finish(self, part: int) -> None:
        reading = self._reading.get(part)
        if reading is None:
            return
        try:
            reading.result()
        except BaseException:
            self._drop(part)
            raise
        self._reading.pop(part, None)

    def _drop(self, part: int) -> None:
        reading = self._reading.pop(part, None)
        if reading is not None and not reading.cancel():
            reading.exception()  # until it no longer writes into the buffer
        self._free.append(self._held.pop(part))
