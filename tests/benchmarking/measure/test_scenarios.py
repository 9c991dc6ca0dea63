from __future__ import annotations

import itertools

import numpy as np
import pytest

from eomt_deploy.benchmarking.measure.scenarios import (
    Served,
    check_scenario,
    no_clock,
    poisson_arrivals,
    serve,
)
from eomt_deploy.errors import UsageError


class Clock:
    """A clock that only advances in `work` and `sleep`."""

    def __init__(self, service: float) -> None:
        self.time = 0.0  # a sleep ends exactly on time
        self.service = service

    def work(self) -> None:
        self.time += self.service

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.time += seconds

    def serve(self, arrivals, **options):
        return serve(self.work, arrivals, now=lambda: self.time, sleep=self.sleep, **options)


def test_latency_counts_from_arrival_not_from_the_start_of_work():
    latencies, lost, seconds = Clock(1.0).serve([0.0, 0.5, 5.0])
    assert latencies == pytest.approx([1000, 1500, 1000])
    assert lost == 0
    assert seconds == pytest.approx(6.0)


def test_a_full_queue_loses_requests():
    latencies, lost, _ = Clock(10.0).serve([0.0, 1.0, 2.0, 3.0, 4.0], queue=2)
    assert lost == 2  # one is served and two wait
    assert latencies == pytest.approx([10_000, 19_000, 28_000])


def test_nothing_is_lost_at_half_the_load_and_much_at_double():
    for load, minimum, maximum in ((0.5, 0.0, 0.0), (2.0, 0.4, 0.6)):
        arrivals = poisson_arrivals(load, 2000)
        latencies, lost, seconds = Clock(1.0).serve(arrivals)
        served = Served("r", "t", load, tuple(latencies), lost, seconds)
        assert minimum <= served.loss <= maximum
        assert len(latencies) + lost == len(arrivals)


def test_arrivals_are_poisson():
    arrivals = poisson_arrivals(50, 100)
    gaps = np.diff(arrivals)
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert arrivals == poisson_arrivals(50, 100)
    assert arrivals != poisson_arrivals(50, 100, seed=1)


def test_round_trip():
    served = Served("step 5", "torch-eager", 2.0, (10.0, 12.5), 1, 3.0)
    data = served.to_dict()
    assert Served.from_dict(data) == served
    assert data["loss"] == pytest.approx(1 / 3, abs=1e-4)
    assert served.verdict.valid
    old = {name: value for name, value in data.items() if name not in ("problem", "verdict")}
    assert Served.from_dict(old) == served
    nothing = Served("step 5", "torch-eager", 2.0, (), 0, 0.0)
    assert nothing.loss == nothing.throughput == 0
    assert Served.from_dict(nothing.to_dict()) == nothing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lunch", None, None, None), "Scenario 'lunch' is unknown"),
        (("single", [2], None, None), "--batch needs --scenario offline, got single"),
        (("offline", [0], None, None), "--batch must be at least 1, got 0"),
        (("offline", None, 2.0, None), "--rate and --serve-seconds"),
        (("server", None, -1.0, None), "positive"),
        (("server", None, float("nan"), None), "positive"),
        (("offline", [1, 10**9], None, None), "batch must be at most 4,096, got 1,000,000,000"),
        (("server", None, 1e12, None), "rate must be at most 100,000"),
        (("server", None, 2.0, 1e9), "serve-seconds must be at most 86,400"),
        (("server", None, 1e5, 8e4), "rate times serve-seconds must be at most 10,000,000"),
    ],
)
def test_options_that_do_not_go_together(arguments, words):
    with pytest.raises(UsageError, match=words):
        check_scenario(*arguments)
    assert check_scenario("server", None, 2.0, 1.0) == "server"


@pytest.mark.parametrize("step", [0.0, -0.5])
def test_a_clock_that_never_gets_anywhere_ends_the_run(step):
    now = itertools.count(100.0, step)
    slept: list[float] = []
    found = serve(lambda: None, [1.0, 2.0], now=lambda: next(now), sleep=slept.append)
    assert len(slept) == 3
    served = Served("r", "t", 1.0, tuple(found[0]), *found[1:])
    assert not served.verdict.valid
    assert "clock" in str(served.verdict)


def test_times_of_a_server_that_cannot_be():
    served = Served("r", "t", 2.0, (10.0, -12.5), 1, 3.0)
    assert "the clock went backwards" in served.doubt
    assert Served("r", "t", 2.0, (float("nan"),), 0, 3.0).to_dict()["latencies"] == [None]
    assert no_clock("r", "t", [1.0, 2.0]) == []
    (nothing,) = no_clock("r", "t", [0.0, 0.0])
    assert "did not advance" in nothing.doubt
    assert Served.from_dict(nothing.to_dict()) == nothing
