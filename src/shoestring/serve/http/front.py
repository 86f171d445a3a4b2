"""The asyncio side: what is asked is let in, or not; each request gets the pieces of its texts; what nobody waits for
any more is ended.

A lane runs as many texts as it has slots, and so many more may wait; a request that would be beyond gets 429. The
event loop never computes: prompts are made ready in two threads, texts are written in the worker's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch

from shoestring.core.errors import ConfigError, ShoestringError
from shoestring.generate.request import Request
from shoestring.serve.http.errors import ApiError, refusal
from shoestring.serve.http.lane import Lane, Piece, Text
from shoestring.serve.http.limits import Limits
from shoestring.serve.http.metrics import Metrics
from shoestring.serve.http.worker import Outcome, Worker, log_mistake

T = TypeVar("T")
_PREPARING = 2  # threads
_NOT_BEGUN = {  # message, param, code of a request of which nothing was written
    "time": ("this waited longer than the server allows", None, "timeout"),
    "shutdown": ("the server is shutting down", None, "shutting_down"),
}


class Front:
    """`open` binds it to the running event loop, on which everything else here is called."""

    def __init__(self, lanes: Sequence[Lane], limits: Limits, metrics: Metrics):
        self.limits, self.metrics, self.lanes = limits, metrics, list(lanes)
        self.closing = False
        self._pending = dict.fromkeys(self.lanes, 0)  # texts that run or wait
        self._answers: set[Answer] = set()
        self._worker = Worker(self.lanes, self._post)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = concurrent.futures.ThreadPoolExecutor(_PREPARING, "prompts")
        self._computing = asyncio.Lock()  # vectors: one after another, since each has memory of its own
        self._computed: asyncio.Future[Any] | None = None

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    def close(self) -> None:
        """End what is still there, at once."""
        self.closing = True
        for answer in list(self._answers):
            answer.end("shutdown")
        self._end_computing()
        self._worker.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin_closing(self) -> None:
        """Let nobody in any more; what is being written is ended when the grace is over."""
        if not self.closing and self._loop is not None:
            self.closing = True
            for answer in list(self._answers):
                self._loop.call_later(self.limits.grace, answer.end, "shutdown")
            self._loop.call_later(self.limits.grace, self._end_computing)

    def _end_computing(self) -> None:
        if self._computed is not None and not self._computed.done():
            self._computed.set_exception(ApiError(503, *_NOT_BEGUN["shutdown"]))

    @property
    def healthy(self) -> bool:
        return self._worker.alive and not self.closing

    def pending(self, lane: Lane) -> int:
        """Texts that run or wait."""
        return self._pending[lane]

    async def prepare(self, make: Callable[[], T]) -> T:
        """What `make` gives, in a thread."""
        self._check_open()
        assert self._loop is not None
        return await self._loop.run_in_executor(self._threads, make)

    def answer(self, lane: Lane, requests: Sequence[Request]) -> Answer:
        """Have these texts written. Raises ApiError: 429 where too many wait, 503 where nothing is begun any more."""
        self._check_open()
        room = lane.slots + self.limits.queue
        if len(requests) > room:
            raise ApiError(400, f"{len(requests)} texts at once are more than this server takes, which is {room}", "n")
        if self._pending[lane] + len(requests) > room:
            self.metrics.refused += 1
            raise ApiError(
                429, "too many texts are being written and waited for: try again in a moment", None,
                "rate_limit_exceeded", {"retry-after": "1"},
            )  # fmt: skip
        answer = Answer(self, lane, requests)
        self._answers.add(answer)
        self._pending[lane] += len(requests)
        self._worker.begin(lane, answer.texts)
        return answer

    async def compute(self, lane: Lane, parts: Generator[None, None, T], until: float) -> T:
        """What `parts` returns, with the lane's adapter at work in each of them, one between any two steps. Ended where
        nobody waits for it any more. until: by the loop's clock. Raises ApiError: 429, 503."""
        self._check_open()
        if self._pending[lane] >= lane.slots + self.limits.queue:
            self.metrics.refused += 1
            raise ApiError(
                429, "too much is waited for: try again in a moment", None, "rate_limit_exceeded", {"retry-after": "1"}
            )
        self._pending[lane] += 1
        try:
            return await asyncio.wait_for(self._in_turn(lane, parts), max(until - self.now, 0))
        except asyncio.TimeoutError:
            raise ApiError(503, "this took longer than the server allows", None, "timeout") from None
        finally:
            self._pending[lane] -= 1

    async def _in_turn(self, lane: Lane, parts: Generator[None, None, T]) -> T:
        assert self._loop is not None
        async with self._computing:
            self._check_open()  # while others were computed
            loop, future = self._loop, self._loop.create_future()
            self._computed = future

            def done(result: Any, error: Exception | None) -> None:
                if not future.done():
                    future.set_result(result) if error is None else future.set_exception(error)

            def part() -> None:
                result: Any = None
                error: Exception | None = None
                try:
                    if future.done():  # nobody waits any more
                        parts.close()
                        return
                    lane.base.activate(lane.adapter)
                    next(parts)
                except StopIteration as end:
                    result = end.value
                except Exception as found:
                    if not isinstance(found, ShoestringError):
                        log_mistake()
                    error = _told(found)
                else:
                    self._worker.between_steps(part)
                    return
                with contextlib.suppress(RuntimeError):  # the loop is gone
                    loop.call_soon_threadsafe(done, result, error)

            self._worker.between_steps(part)
            return await future

    @property
    def now(self) -> float:
        """By the loop's clock, in seconds."""
        assert self._loop is not None
        return self._loop.time()

    def _check_open(self) -> None:
        if self.closing:
            raise ApiError(503, "the server is shutting down", None, "shutting_down", {"retry-after": "5"})
        if not self._worker.alive:
            raise ApiError(503, "the server is not running", None, "unavailable")

    def _post(self, outcomes: list[tuple[Text, Outcome]]) -> None:
        """Called on the worker's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(_deliver, outcomes)

    def _ended(self, answer: Answer, left: Sequence[Text]) -> None:
        """An answer has no more to come, or is not wanted."""
        self._answers.discard(answer)
        if left:
            self._worker.cancel(answer.lane, left)

    def _freed(self, lane: Lane) -> None:
        self._pending[lane] -= 1


def _deliver(outcomes: list[tuple[Text, Outcome]]) -> None:
    for text, outcome in outcomes:
        text.owner.put(text, outcome)


class Answer:
    """The texts of one request while they are written: an asynchronous iterator of (index, piece), each text's last one
    with a reason. Raises ApiError where they cannot be written. Use it in a `with`: what is not read to its end is
    cancelled."""

    def __init__(self, front: Front, lane: Lane, requests: Sequence[Request]):
        assert front._loop is not None
        self.lane = lane
        self.texts = [Text(request, self, index) for index, request in enumerate(requests)]
        self._front = front
        self._open = set(self.texts)  # not yet ended
        self._left = len(self.texts)  # whose end has not been read
        self._queue: asyncio.Queue[tuple[int, Outcome]] = asyncio.Queue()
        self._begun, self._first = time.monotonic(), False
        self._timer = front._loop.call_later(front.limits.seconds, self.end, "time")

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        if not self._left:
            raise StopAsyncIteration
        index, outcome = await self._queue.get()
        if isinstance(outcome, Exception):
            self.close()
            raise _told(outcome)
        self._left -= outcome.reason is not None
        return index, outcome

    def put(self, text: Text, outcome: Outcome) -> None:
        """What the worker says of a text; of one that has been ended here it says nothing new."""
        if text not in self._open:
            return
        if not self._first:
            self._first = True
            self._front.metrics.first_token.add(time.monotonic() - self._begun)
        if isinstance(outcome, Exception) or outcome.reason is not None:
            self._end_of(text)
        self._queue.put_nowait((text.index, outcome))
        if not self._open:
            self._finish([])

    def end(self, reason: str) -> None:
        """End what is being written as it stands, since time is up or the server closes; an error where nothing is."""
        left = [text for text in self.texts if text in self._open]
        if not self._first and reason in _NOT_BEGUN:
            outcome: Outcome = ApiError(503, *_NOT_BEGUN[reason])
        else:
            outcome = Piece(reason=reason)
        for text in left:
            self._end_of(text)
            self._queue.put_nowait((text.index, outcome))
        if left:
            self._finish(left)

    def abandon(self) -> None:
        """The client has left."""
        self._front.metrics.left += 1
        self.close()

    def close(self) -> None:
        """Nobody reads any more."""
        left = list(self._open)
        for text in left:
            self._end_of(text)
        if left:
            self._finish(left)

    def _end_of(self, text: Text) -> None:
        self._open.discard(text)
        self._front._freed(self.lane)

    def _finish(self, left: Sequence[Text]) -> None:
        self._timer.cancel()
        self._front._ended(self, left)


def _told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConfigError):
        return refusal(error)
    if isinstance(error, ShoestringError):  # of the model, and no fault of whoever asks
        return ApiError(500, error.message, None, "model_error")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "emory" in str(error):
        return ApiError(503, "there is not enough memory for this now", None, "out_of_memory")
    return ApiError(500, "the server made a mistake: its log says which", None, "internal_error")
