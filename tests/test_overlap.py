from __future__ import annotations

import threading
import time

import pytest

from eomt_deploy.overlap import overlap


def add(name):
    return lambda value: f"{value}{name}"


def through(items, *, ahead, **steps):
    usual = {"prepare": add("p"), "run": add("r"), "finish": add("f")}
    return overlap(items, **usual | steps, ahead=ahead)


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_all_items_in_order(ahead):
    assert list(through("abcdef", ahead=ahead)) == [f"{x}prf" for x in "abcdef"]
    assert list(through("", ahead=ahead)) == []


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("step", ["prepare", "run", "finish"])
def test_a_failure_comes_after_the_results_before_it(ahead, step):
    def fail(value):
        if value.startswith("c"):
            raise ValueError("this one")
        return value

    found = []
    with pytest.raises(ValueError, match="this one"):  # noqa: PT012
        for result in through("abcde", ahead=ahead, **{step: fail}):
            found.append(result[0])
    assert found == ["a", "b"]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_source_that_fails_is_no_loss_either(ahead):
    def source():
        yield from "ab"
        raise OSError("unplugged")

    found = []
    with pytest.raises(OSError, match="unplugged"):  # noqa: PT012
        for result in through(source(), ahead=ahead):
            found.append(result)
    assert found == ["aprf", "bprf"]


@pytest.mark.parametrize(("ahead", "maximum"), [(0, 1), (1, 3), (2, 4)])
def test_no_more_items_are_taken_than_allowed(ahead, maximum):
    taken = []

    def source():
        for index in range(20):
            taken.append(index)
            yield str(index)

    results = through(source(), ahead=ahead)
    for count in range(1, 11):
        next(results)
        assert len(taken) <= count + maximum
    if ahead == 0:
        assert len(taken) == 10
    results.close()
    assert len(taken) < 20


def test_run_stays_in_the_callers_thread_and_the_others_leave_it():
    seen = {}

    def note(step):
        def work(value):
            seen.setdefault(step, set()).add(threading.current_thread())
            return value

        return work

    list(overlap("abc", note("prepare"), note("run"), note("finish"), ahead=2))
    assert seen["run"] == {threading.current_thread()}
    assert len({*seen["prepare"], *seen["run"], *seen["finish"]}) == 3


def test_steps_overlap():
    """Each step waits until another item is in another step, so a sequential run would hang."""
    meeting = threading.Barrier(3, timeout=20)

    def meet(value):
        meeting.wait()
        return value

    def run(value):
        if 1 <= value <= 4:  # the first and last have no neighbours
            meeting.wait()
        return value

    found = overlap(
        range(6),
        lambda v: meet(v) if v >= 2 else v,
        run,
        lambda v: meet(v) if v <= 3 else v,
        ahead=1,
    )
    assert list(found) == list(range(6))


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    results = through("abcdefgh", ahead=3, prepare=lambda v: time.sleep(0.01) or v)
    next(results)
    results.close()
    assert threading.active_count() == before
