"""Three steps on each of many items, on neighbouring items at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Done = TypeVar("Done")
Result = TypeVar("Result")


def overlap(
    items: Iterable[Item],
    prepare: Callable[[Item], Ready],
    run: Callable[[Ready], Done],
    finish: Callable[[Done], Result],
    *,
    ahead: int,
) -> Iterator[Result]:
    """``finish(run(prepare(item)))`` of each item, in order.

    While ``run`` works on an item in the caller's thread, one thread finishes the item before and
    another prepares those after it. What fails, fails in its turn: first come all results of the
    items before it. Items are taken in the caller's thread.

    Args:
        ahead: items that are taken and prepared early; 0 does one thing after another.
    """
    if ahead == 0:
        for item in items:
            yield finish(run(prepare(item)))
        return
    failure: Exception | None = None
    finished: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, "prepare") as before, ThreadPoolExecutor(1, "finish") as after:
        early = _Early(items, lambda item: before.submit(prepare, item))
        try:
            early.take(ahead)
            while early.waiting:
                while finished and finished[0].done():  # before a slow source is asked again
                    yield finished.popleft().result()
                try:
                    ready = early.waiting.popleft().result()
                    early.take(ahead)
                    done = run(ready)
                except Exception as error:
                    failure = error
                    break
                finished.append(after.submit(finish, done))
                if len(finished) > 1:
                    yield finished.popleft().result()
            while finished:
                yield finished.popleft().result()
        finally:
            for waiting in early.waiting:
                waiting.cancel()
            for result in finished:
                result.cancel()
    failure = failure or early.failure
    if failure:
        raise failure


class _Early(Generic[Item, Ready]):
    """Items that are taken early; when no more can be had, those taken are still there."""

    def __init__(self, items: Iterable[Item], submit: Callable[[Item], Future[Ready]]) -> None:
        self.waiting: deque[Future[Ready]] = deque()
        self.failure: Exception | None = None
        self._source: Iterator[Item] | None = iter(items)
        self._submit = submit

    def take(self, count: int) -> None:
        """Until so many are waiting, or there are no more."""
        while self._source is not None and len(self.waiting) < count:
            try:
                self.waiting.append(self._submit(next(self._source)))
            except StopIteration:
                self._source = None
            except Exception as error:  # of whoever makes the items
                self.failure, self._source = error, None
