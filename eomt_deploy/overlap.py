"""A pipeline of three steps that process neighbouring items at the same time."""

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
    """Yield ``finish(run(prepare(item)))`` of each item, in order.

    While ``run`` processes an item in the caller's thread, one thread finishes the previous item
    and another prepares the next ones. An exception is raised after all results of the items
    before it. Items are taken from ``items`` in the caller's thread.

    Args:
        items: the items.
        prepare: first step.
        run: second step.
        finish: third step.
        ahead: number of items that are taken and prepared early; 0 runs all steps in sequence.
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
                while finished and finished[0].done():  # before waiting for the next item
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
    """Items that are taken and prepared early.

    If the source fails, its exception is kept in ``failure``, and the items before it remain.
    """

    def __init__(self, items: Iterable[Item], submit: Callable[[Item], Future[Ready]]) -> None:
        self.waiting: deque[Future[Ready]] = deque()
        self.failure: Exception | None = None
        self._source: Iterator[Item] | None = iter(items)
        self._submit = submit

    def take(self, count: int) -> None:
        """Take items until ``count`` are waiting or there are no more."""
        while self._source is not None and len(self.waiting) < count:
            try:
                self.waiting.append(self._submit(next(self._source)))
            except StopIteration:
                self._source = None
            except Exception as error:  # raised by the caller's iterator
                self.failure, self._source = error, None
