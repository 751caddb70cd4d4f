"""One thread that holds the model and takes what waits together: a bounded queue, batches, a way to stop."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
SMOOTHING = 0.1  # share of the latest batch in the seconds that one request is said to take


class Full(Exception):
    """No room in the queue. `seconds`: after which there may be some."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"busy: too many requests wait; try again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class _Waiting(Generic[Ask, Answer]):
    ask: Ask
    answer: "Future[Answer]" = field(default_factory=Future)


class Engine(Generic[Ask, Answer]):
    """Answers requests in one thread of its own, those that belong together at once.

    Args:
        make: requests -> as many answers. It is never called twice at a time.
        together: requests of one such key may share a call of `make`.
        batch: at most so many do.
        room: at most so many wait.
    """

    def __init__(
        self, make: Callable[[list[Ask]], list[Answer]], together: Callable[[Ask], Hashable], batch: int, room: int
    ) -> None:
        self._make, self._together, self._batch, self._room = make, together, batch, room
        self._queue: deque[_Waiting[Ask, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._pace = 0.0  # seconds a request
        self.answered = 0
        self._thread = threading.Thread(target=self._work, name="calrec-lite model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests nobody works on yet."""
        return len(self._queue)

    def submit(self, ask: Ask) -> "Future[Answer]":
        """Where the answer, or the exception that `make` raised, will be. Cancelled while it waits, it is never made.

        Raises:
            Full: no room, or the engine is closed.
        """
        entry: _Waiting[Ask, Answer] = _Waiting(ask)
        with self._changed:
            if self._closed or len(self._queue) >= self._room:
                raise Full(max(1, round(self._pace * len(self._queue))))
            self._queue.append(entry)
            self._changed.notify()
        return entry.answer

    def close(self, seconds: float | None = None) -> None:
        """Take nothing more, answer what waits, and end the thread; wait for that at most so long."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while entries := self._next():
            entries = [entry for entry in entries if entry.answer.set_running_or_notify_cancel()]
            if entries:
                start = time.perf_counter()
                self._answer(entries)
                seconds = (time.perf_counter() - start) / len(entries)
                self._pace += (seconds - self._pace) * (SMOOTHING if self._pace else 1)

    def _next(self) -> list[_Waiting[Ask, Answer]]:
        """The oldest request and those behind it that may share its batch; empty when all is done and closed."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            key = self._together(self._queue[0].ask)
            taken, left = list[_Waiting[Ask, Answer]](), deque[_Waiting[Ask, Answer]]()
            for entry in self._queue:
                fits = len(taken) < self._batch and self._together(entry.ask) == key
                (taken if fits else left).append(entry)
            self._queue = left
            return taken

    def _answer(self, entries: list[_Waiting[Ask, Answer]]) -> None:
        """Give each its answer. What fails together is done one by one, so that a request fails for itself only."""
        try:
            answers = self._make([entry.ask for entry in entries])
        except Exception as error:
            if len(entries) > 1:
                for entry in entries:
                    self._answer([entry])
                return
            self.answered += 1
            entries[0].answer.set_exception(error)
            return
        for entry, answer in zip(entries, answers, strict=True):
            self.answered += 1
            entry.answer.set_result(answer)
