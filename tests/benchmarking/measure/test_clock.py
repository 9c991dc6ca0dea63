from __future__ import annotations

import itertools

import pytest

from eomt_deploy.benchmarking.measure.clock import (
    Job,
    Rounds,
    SynchronizingTimer,
    interleave,
    measure,
)
from eomt_deploy.errors import DeviceError, UsageError


class FixedTimes:
    """A timer that returns given values."""

    def __init__(self, times):
        self.times = iter(times)

    def measure(self, work):
        work()
        elapsed = next(self.times)
        return elapsed, elapsed / 2


def test_every_round_holds_every_job_once_in_an_order_drawn_anew():
    calls: list[str] = []
    rounds: list[int] = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = interleave(works, warmup=2, iterations=20, progress=rounds.append)
    assert rounds == list(range(1, 23))
    turns = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 3
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 20)
    assert all(value >= 0 for values in samples.values() for value in values)


def test_warm_up_ends_when_the_times_are_steady_and_is_not_counted():
    falling = [100.0 / n for n in range(1, 15)] + [5.0] * 100
    job = Job(lambda: None, FixedTimes(falling))
    found = measure({"x": job}, Rounds(4, warmup=2, max_warmup=50))
    assert 14 < found.warmup < 40
    assert found.samples["x"] == [5.0] * 4
    assert found.host["x"] == [2.5] * 4
    assert found.steady == {"x": True}


def test_warm_up_that_never_ends_is_cut_off_and_said():
    job = Job(lambda: None, FixedTimes(1.5**n for n in itertools.count()))
    found = measure({"x": job}, Rounds(2, warmup=1, max_warmup=20))
    assert found.warmup == 20
    assert found.steady == {"x": False}


def test_what_is_steady_while_it_is_measured_needs_no_longer_warm_up():
    job = Job(lambda: None, FixedTimes([9.0, 7.0, 5.0, *[4.0] * 20]))
    found = measure({"x": job}, Rounds(6, warmup=1, max_warmup=3))
    assert (found.warmup, found.steady) == (3, {"x": True})


def test_rounds_end_after_their_time_but_not_before_they_say_something():
    slow = Job(lambda: None, FixedTimes(itertools.repeat(1.0)))
    samples: list[int] = []
    found = measure(
        {"x": slow}, Rounds(1_000_000, 0, seconds=0.05), watch=lambda: samples.append(1)
    )
    assert 2 <= len(found.samples["x"]) < 1_000_000
    assert len(samples) == len(found.samples["x"])
    found = measure({"x": slow}, Rounds(50, 0, seconds=1e-9))
    assert len(found.samples["x"]) == 2


def test_what_came_before_is_not_timed():
    events: list[str] = []
    timer = SynchronizingTimer(lambda: events.append("wait"))
    elapsed, host = timer.measure(lambda: events.append("work"))
    assert events == ["wait", "work", "wait"]
    assert 0 <= host <= elapsed


@pytest.mark.parametrize(
    "rounds", [{"iterations": 1}, {"iterations": 5, "warmup": -1}, {"iterations": 5, "pause": -1},
               {"iterations": 5, "seconds": 0}],
)  # fmt: skip
def test_rounds_that_say_nothing(rounds):
    with pytest.raises(UsageError):
        Rounds(**rounds)


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ({"iterations": 10**12}, "iterations must be at most 1,000,000, got 1,000,000,000,000"),
        ({"iterations": 5, "warmup": 10**7}, "warmup must be at most 1,000,000"),
        ({"iterations": 5, "max_warmup": 10**7}, "max_warmup must be at most 1,000,000"),
        ({"iterations": 5, "pause": 1e30}, "pause must be at most 3,600 seconds"),
        ({"iterations": 5, "seconds": 1e9}, "seconds must be at most 604,800 seconds"),
        ({"iterations": 5, "pause": float("nan")}, "must be 0 seconds or more"),
        ({"iterations": 5, "seconds": float("inf")}, "seconds"),
    ],
)
def test_rounds_that_would_never_end(rounds, words):
    with pytest.raises(UsageError, match=words):
        Rounds(**rounds)


@pytest.mark.parametrize(
    ("times", "words"),
    [(itertools.count(5000, -7), "backwards"), (itertools.repeat(5), "did not advance")],
)
def test_nothing_is_compared_by_a_clock_that_is_wrong(monkeypatch, times, words):
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(times))
    with pytest.raises(DeviceError, match=words):
        interleave({"a": lambda: None, "b": lambda: None}, warmup=1, iterations=3)
