"""A bounded queue of requests that workers take in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition

from eomt_deploy.serving.work import Answer, RequestError, Work

MAX_ATTEMPTS = 3
"""How often a request is given to a worker if workers die while they process it."""


@dataclass(eq=False)
class Pending:
    """A request that waits for its answer.

    Attributes:
        work: what to do.
        deadline: time (of ``time.monotonic``) after which nobody waits for the answer.
        worker: number of the only worker that can do it; None for any.
        arrived: time of arrival.
        attempts: number of workers that died while they processed it.
        future: receives the answer, or a :class:`RequestError`.
    """

    work: Work
    deadline: float
    worker: int | None = None
    arrived: float = field(default_factory=time.monotonic)
    attempts: int = 0
    future: Future[Answer] = field(default_factory=Future)

    def begin(self) -> bool:
        """From now on the request cannot be cancelled; False if it was."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def finish(self, reply: Answer | RequestError) -> None:
        """Answer, unless there is an answer already."""
        with suppress(InvalidStateError):
            if isinstance(reply, RequestError):
                self.future.set_exception(reply)
            else:
                self.future.set_result(reply)


class RequestQueue:
    """Requests in the order of their arrival.

    Args:
        size: maximum number of waiting requests.
        busy: called for the error if the queue is full.
    """

    def __init__(self, size: int, busy: Callable[[], RequestError]) -> None:
        self._size = size
        self._busy = busy
        self._items: deque[Pending] = deque()
        self._changed = Condition()
        self._closed = False
        self._failed: RequestError | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def finished(self) -> bool:
        """Whether it is closed and empty."""
        return self._closed and not self._items

    def put(self, item: Pending) -> None:
        """Add a request.

        Raises:
            RequestError: the queue is full, or closed.
        """
        with self._changed:
            if self._closed:
                raise RequestError(503, "The server is stopping.", fix="Use another server.")
            if len(self._items) >= self._size:
                self._drop_finished()
            if len(self._items) >= self._size:
                raise self._busy()
            self._items.append(item)
            self._changed.notify_all()

    def fail_bound(self, workers: Collection[int], error: RequestError) -> None:
        """Answer waiting requests that only one of these workers could process."""
        with self._changed:
            for item in self._items:
                if item.worker is not None and item.worker in workers:
                    item.finish(error)
            self._drop_finished()

    def put_back(self, items: list[Pending]) -> None:
        """Put requests back to the front, e.g. after their worker has died."""
        with self._changed:
            if self._failed is not None:
                for item in items:
                    item.finish(self._failed)
                return
            self._items.extendleft(reversed(items))
            self._changed.notify_all()

    def take(
        self, worker: int, most: int, delay: float, stop: Callable[[], bool]
    ) -> list[Pending] | None:
        """Wait for requests, and take them out of the queue.

        Args:
            worker: number of the worker that will process them.
            most: maximum number of requests.
            delay: seconds to wait for more requests after the arrival of the first.
            stop: whether this worker shall not take any more.

        Returns:
            requests of which someone still wants the answer. A request whose worker died is
            returned alone. None if the queue is closed and empty, or ``stop()``.
        """
        with self._changed:
            while True:
                if stop():
                    return None
                self._drop_finished()
                found = self._batch(worker, most)
                if found:
                    left = found[0].arrived + delay - time.monotonic()
                    if len(found) == most or left <= 0 or self._closed or found[0].attempts:
                        for item in found:
                            self._items.remove(item)
                        wanted = [i for i in found if i.begin()]
                        if wanted:
                            return wanted
                    self._changed.wait(left)
                elif self._closed and not self._items:
                    return None
                else:
                    self._changed.wait(1.0)

    def _batch(self, worker: int, most: int) -> list[Pending]:
        found: list[Pending] = []
        for item in self._items:
            if item.worker not in (None, worker):
                continue
            if item.attempts:
                return found or [item]
            found.append(item)
            if len(found) == most:
                break
        return found

    def _drop_finished(self) -> None:
        """Remove requests that nobody waits for."""
        now = time.monotonic()
        kept: deque[Pending] = deque()
        for item in self._items:
            if item.future.done():
                continue
            if item.deadline < now:
                item.finish(
                    RequestError(
                        503,
                        "The request waited too long for a free worker.",
                        fix="Send fewer requests at a time, or start more workers.",
                        retry_after=1,
                    )
                )
                continue
            kept.append(item)
        self._items = kept

    def wake(self) -> None:
        """Make all waiting workers check ``stop`` again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Accept no more requests; those in the queue are still processed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail_all(self, error: RequestError) -> None:
        """Answer all waiting requests with an error, and those that are put back later."""
        with self._changed:
            self._failed = error
            for item in self._items:
                item.finish(error)
            self._items.clear()
