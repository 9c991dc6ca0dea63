"""Work in several threads."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from eomt_deploy.processing.compiled import in_bands, in_threads


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_results_keep_the_order(threads):
    """Also if the work takes longer for the first ones."""

    def work(number: int) -> int:
        time.sleep(0.002 if number < 5 else 0)
        return 10 * number

    assert in_threads(work, list(range(40)), threads) == list(range(0, 400, 10))
    assert in_threads(work, [], threads) == []
    bands = in_bands(lambda start, end: (start, end), 100, 8, threads)
    assert (bands[0][0], bands[-1][1]) == (0, 100)
    assert all(a[1] == b[0] and b[0] % 8 == 0 for a, b in pairwise(bands))


def test_this_thread_works_too_and_the_others_end():
    both = threading.Barrier(2, timeout=60)
    before = threading.active_count()

    def work(number: int) -> threading.Thread:
        both.wait()
        return threading.current_thread()

    assert threading.current_thread() in in_threads(work, [0, 1], 2)
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [IndexError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("mine", [True, False])
def test_an_error_ends_the_work(error, mine):
    """In this thread or in another one; the others take no further item."""
    here, both = threading.current_thread(), threading.Barrier(2, timeout=60)
    done = []

    def work(number: int) -> None:
        if number < 2:
            both.wait()
            if (threading.current_thread() is here) == mine:
                raise error("reason")
            time.sleep(0.2)
        done.append(number)

    with pytest.raises(error, match="reason"):
        in_threads(work, list(range(100)), 2)
    assert len(done) < 5
