"""The thread that owns the models: it steps their schedulers, and nobody else touches them.

What others want of it they hand over as functions, which run between two steps: texts join and leave there. Results go
back a step's worth at a time. A step that fails ends the texts of its scheduler, and no others; the thread goes on.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from shoestring.core import console
from shoestring.core.errors import ShoestringError
from shoestring.serve.http.lane import Lane, Piece, Text

Outcome = Piece | Exception
Post = Callable[[list[tuple[Text, Outcome]]], None]


class Worker:
    """lanes: those that are stepped, in turn. post: is told, on this thread, what texts have become."""

    def __init__(self, lanes: Sequence[Lane], post: Post):
        self.steps = 0  # so far
        self._lanes, self._post = deque(lanes), post
        self._change = threading.Condition()
        self._actions: deque[Callable[[], None]] = deque()  # all of them before the next step
        self._tasks: deque[Callable[[], None]] = deque()  # long ones: one before each step
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float = 1.0) -> None:
        """End after the present step; wait for that so many seconds at most."""
        with self._change:
            self._stopping = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(patience)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def begin(self, lane: Lane, texts: Sequence[Text]) -> None:
        self._do(lambda: self._begin(lane, texts))

    def cancel(self, lane: Lane, texts: Sequence[Text]) -> None:
        def cancel() -> None:
            for text in texts:
                lane.cancel(text)

        self._do(cancel)

    def between_steps(self, task: Callable[[], None]) -> None:
        """Run something that takes long, once its turn has come."""
        with self._change:
            self._tasks.append(task)
            self._change.notify()

    def _do(self, action: Callable[[], None]) -> None:
        with self._change:
            self._actions.append(action)
            self._change.notify()

    def _begin(self, lane: Lane, texts: Sequence[Text]) -> None:
        for text in texts:
            try:
                lane.begin(text)
            except ShoestringError as error:
                self._post([(text, error)])

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._stopping or self._actions or self._tasks or any(lane.busy for lane in self._lanes)):
                    self._change.wait()
                if self._stopping:
                    return
                actions = list(self._actions)
                self._actions.clear()
                task = self._tasks.popleft() if self._tasks else None
            for action in [*actions, *([task] if task is not None else [])]:
                try:
                    action()
                except Exception:  # whoever asked is told by the action itself
                    log_mistake()
            self._step()

    def _step(self) -> None:
        """A step of the next lane that has something to do."""
        for _ in range(len(self._lanes)):
            lane = self._lanes[0]
            self._lanes.rotate(-1)
            if lane.busy:
                try:
                    pieces = lane.step()
                except Exception as error:
                    if not isinstance(error, ShoestringError):
                        log_mistake()
                    self._post([(text, error) for text in lane.give_up()])
                else:
                    self.steps += 1
                    if pieces:
                        self._post([(text, piece) for text, piece in pieces])
                return


def log_mistake() -> None:
    """What went wrong just now, with its place in the program."""
    console.say(traceback.format_exc())
