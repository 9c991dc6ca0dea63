"""The queue between the server and its workers."""

from __future__ import annotations

import threading
import time

import pytest

from eomt_deploy.serving.queue import Pending, RequestQueue
from eomt_deploy.serving.supervision import Turns
from eomt_deploy.serving.work import Answer, RequestError, Work

NEVER = 1e12


def busy() -> RequestError:
    return RequestError(503, "full", fix="wait", retry_after=3)


def pending(deadline: float = NEVER, worker: int | None = None) -> Pending:
    return Pending(Work(b"image"), deadline, worker)


def queue_of(*items: Pending, size: int = 10) -> RequestQueue:
    queue = RequestQueue(size, busy)
    for item in items:
        queue.put(item)
    return queue


def take(queue: RequestQueue, most: int = 4, worker: int = 0, delay: float = 0) -> list[Pending]:
    found = queue.take(worker, most, delay, lambda: False)
    assert found is not None
    return found


def test_batches_in_order():
    items = [pending() for _ in range(5)]
    queue = queue_of(*items)
    assert take(queue, most=3) == items[:3]
    assert take(queue, most=3) == items[3:]


def test_waits_for_a_full_batch():
    first, second = pending(), pending()
    queue = queue_of(first)
    threading.Timer(0.05, queue.put, [second]).start()
    assert take(queue, most=2, delay=20) == [first, second]


def test_takes_what_there_is_after_the_delay():
    first = pending()
    assert take(queue_of(first), most=2, delay=0.02) == [first]


def test_a_full_queue_refuses():
    queue = queue_of(pending(), size=1)
    with pytest.raises(RequestError) as found:
        queue.put(pending())
    assert (found.value.status, found.value.retry_after) == (503, 3)


def test_cancelled_and_late_requests_make_room():
    cancelled, late, item = pending(), pending(deadline=time.monotonic() - 1), pending()
    queue = queue_of(cancelled, late, size=2)
    cancelled.future.cancel()
    queue.put(item)
    assert take(queue) == [item]
    assert late.future.exception(0).status == 503  # type: ignore[union-attr]


def test_a_request_for_one_worker():
    for_seven, for_all = pending(worker=7), pending()
    queue = queue_of(for_seven, for_all)
    assert take(queue, worker=0) == [for_all]
    assert take(queue, worker=7) == [for_seven]


def test_a_request_whose_worker_died_runs_alone():
    bad, others = pending(), [pending(), pending()]
    queue = queue_of(bad)
    assert take(queue) == [bad]
    for item in others:
        queue.put(item)
    bad.attempts = 1
    queue.put_back([bad])
    assert take(queue) == [bad]
    assert take(queue) == others


def test_requests_for_a_worker_that_is_gone():
    bound, free = pending(worker=7), pending()
    queue = queue_of(bound, free)
    queue.fail_bound([7], RequestError(404, "gone"))
    assert bound.future.exception(0).status == 404  # type: ignore[union-attr]
    assert take(queue) == [free]


def test_closing():
    item = pending()
    queue = queue_of(item)
    queue.close()
    with pytest.raises(RequestError, match="stopping"):
        queue.put(pending())
    assert not queue.finished
    assert take(queue) == [item]
    assert queue.finished
    assert queue.take(0, 1, 0, lambda: False) is None


def test_fail_all():
    item = pending()
    queue = queue_of(item)
    queue.fail_all(busy())
    assert item.future.exception(0).status == 503  # type: ignore[union-attr]
    late = pending()
    queue.put_back([late])
    assert late.future.exception(0).status == 503  # type: ignore[union-attr]
    item.finish(Answer(b"", "", {}))  # a late answer changes nothing
    assert item.future.exception(0) is not None


def test_nothing_is_lost_between_many_threads():
    queue = RequestQueue(10_000, busy)
    items = [pending() for _ in range(2_000)]
    found: list[Pending] = []

    def work(number: int) -> None:
        while (batch := queue.take(number, 5, 0.0005, lambda: False)) is not None:
            found.extend(batch)

    def send(part: list[Pending]) -> None:
        for item in part:
            queue.put(item)

    workers = [threading.Thread(target=work, args=[i]) for i in range(4)]
    senders = [threading.Thread(target=send, args=[items[i::4]]) for i in range(4)]
    for thread in workers + senders:
        thread.start()
    for thread in senders:
        thread.join()
    queue.close()
    for thread in workers:
        thread.join(20)
    assert sorted(map(id, found)) == sorted(map(id, items))


def test_a_batch_that_runs_alone_is_not_starved():
    turns = Turns()
    order: list[str] = []

    def alone() -> None:
        with turns.turn(alone=True):
            order.append("alone")

    with turns.turn(alone=False):
        first = threading.Thread(target=alone)
        first.start()
        time.sleep(0.05)
        second = threading.Thread(target=lambda: shared(turns, order))
        second.start()
        time.sleep(0.05)
        assert order == []
    first.join(5)
    second.join(5)
    assert order == ["alone", "shared"]


def shared(turns: Turns, order: list[str]) -> None:
    with turns.turn(alone=False):
        order.append("shared")
