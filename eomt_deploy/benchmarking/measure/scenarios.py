"""Load scenarios, and a server simulation with random arrivals and a finite queue."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eomt_deploy.benchmarking.measure.statistics import (
    PERCENTILES,
    clock_problem,
    percentile,
    rounded,
)
from eomt_deploy.benchmarking.measure.verdict import Reason, Verdict
from eomt_deploy.errors import UsageError

Scenario = Literal["single", "offline", "server"]
"""``single``: one image after the other; ``offline``: several batch sizes, for throughput;
``server``: Poisson arrivals at a rate."""
SCENARIOS: tuple[Scenario, ...] = ("single", "offline", "server")

LOADS = (0.5, 0.8, 1.1)
"""Default rates, as shares of the measured throughput; the last one is an overload."""
QUEUE = 16
"""Maximum number of waiting requests."""
MAX_BATCH, MAX_RATE, MAX_SECONDS, MAX_REQUESTS = 4096, 100_000, 86_400, 10_000_000
"""Upper limits: batch size, requests per second, seconds per rate and requests per rate."""
STUCK = 3
"""Number of sleeps without progress of the clock after which we stop."""


@dataclass(frozen=True)
class Served:
    """Result of one run of the server scenario.

    Attributes:
        row, runtime: row (or engine) and runtime that answered the requests.
        rate: mean number of requests per second.
        latencies: milliseconds from arrival to answer, in the order of the answers.
        lost: number of requests that were dropped because the queue was full.
        seconds: time until the last answer.
        queue: maximum number of waiting requests.
        problem: reason why no request could be sent; empty if there is none.
    """

    row: str
    runtime: str
    rate: float
    latencies: tuple[float, ...]
    lost: int
    seconds: float
    queue: int = QUEUE
    problem: str = ""

    @property
    def doubt(self) -> str | None:
        """Reason why the times are invalid; None if they are valid."""
        return self.problem or clock_problem([*self.latencies, 1000 * self.seconds])

    @property
    def verdict(self) -> Verdict:
        return Verdict((Reason("clock", self.doubt),) if self.doubt else ())

    @property
    def loss(self) -> float:
        """Share of the requests that were lost, 0 to 1."""
        sent = len(self.latencies) + self.lost
        return self.lost / sent if sent else 0.0

    @property
    def offered(self) -> float:
        """Requests per second that arrived, including lost ones. ``rate`` is their mean."""
        sent = len(self.latencies) + self.lost
        return sent / self.seconds if self.seconds > 0 else 0.0

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "runtime": self.runtime,
            "rate": round(self.rate, 4),
            "queue": self.queue,
            "seconds": rounded(self.seconds, 4),
            "unit": "ms",
            "latencies": [rounded(latency, 4) for latency in self.latencies],
            **{
                f"p{p}": rounded(percentile(self.latencies, p), 4)
                for p in PERCENTILES
                if self.latencies
            },
            "throughput": rounded(self.throughput, 4),
            "lost": self.lost,
            "loss": round(self.loss, 4),
            "problem": self.problem,
            "verdict": self.verdict.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Served:
        names = ("row", "runtime", "rate", "lost", "seconds", "queue")
        return cls(
            latencies=tuple(data["latencies"]),
            problem=data.get("problem", ""),  # missing in older reports
            **{name: data[name] for name in names},
        )


def poisson_arrivals(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Arrival times of requests in seconds, with exponential gaps of mean ``1 / rate``."""
    rng = np.random.default_rng(seed)
    times: list[float] = []
    now = float(rng.exponential(1 / rate))
    while now < seconds:
        times.append(now)
        now += float(rng.exponential(1 / rate))
    return times


def serve(
    work: Callable[[], object],
    arrivals: Sequence[float],
    *,
    queue: int = QUEUE,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[list[float], int, float]:
    """Answer requests one at a time, in the order of their arrival.

    Args:
        work: function that answers one request and returns afterwards.
        arrivals: arrival times in seconds from the start, in ascending order.
        queue: maximum number of waiting requests; further ones are lost.
        now, sleep: the clock, in seconds.

    Returns:
        milliseconds from arrival to answer, number of lost requests, and total seconds. If the
        clock stops or runs backwards, the run ends early and the total is 0 or negative.
    """
    start = now()
    waiting: deque[float] = deque()
    latencies: list[float] = []
    lost = coming = stuck = 0
    while coming < len(arrivals) or waiting:
        elapsed = now() - start
        # Nothing leaves the queue during `work`, so filling it afterwards loses the same requests.
        while coming < len(arrivals) and arrivals[coming] <= elapsed:
            if len(waiting) < queue:
                waiting.append(arrivals[coming])
            else:
                lost += 1
            coming += 1
        if not waiting:
            if coming < len(arrivals):
                sleep(arrivals[coming] - elapsed)
                stuck = 0 if now() - start > elapsed else stuck + 1
                if stuck == STUCK:
                    return latencies, lost, min(0.0, now() - start)
            continue
        arrived = waiting.popleft()
        work()
        latencies.append((now() - start - arrived) * 1000)
    return latencies, lost, now() - start


def absurd(batches: Sequence[int], rate: float | None, seconds: float | None) -> list[str]:
    """The first value that is too large, as a message with the maximum; empty if all are valid."""
    given = (
        ("batch", max(batches, default=0), MAX_BATCH),
        ("rate", rate or 0, MAX_RATE),
        ("serve-seconds", seconds or 0, MAX_SECONDS),
        ("rate times serve-seconds", (rate or 0) * (seconds or 0), MAX_REQUESTS),
    )
    return [
        f"{name} must be at most {maximum:,}, got {value:,}"
        for name, value, maximum in given
        if maximum < value < math.inf
    ][:1]


def no_clock(row: str, runtime: str, times: Sequence[float]) -> list[Served]:
    """The report entry for a server run without a usable clock; empty if ``times`` are valid."""
    problem = clock_problem(times)
    return [Served(row, runtime, 0.0, (), 0, 0.0, problem=problem)] if problem else []


def check_scenario(
    name: str, batches: Sequence[int] | None, rate: float | None, seconds: float | None
) -> Scenario:
    """The scenario of that name, after a check of its options.

    Raises:
        UsageError: it does not exist, or an option is invalid or belongs to another scenario.
    """
    found: Scenario | None = next((known for known in SCENARIOS if known == name), None)
    if found is None:
        raise UsageError(
            f"Scenario {name!r} is unknown.", fix=f"Use one of: {', '.join(SCENARIOS)}."
        )
    if batches and found != "offline":
        raise UsageError(
            f"--batch needs --scenario offline, got {name}.",
            fix="Add --scenario offline, or leave --batch out.",
        )
    if batches and min(batches) < 1:
        raise UsageError(
            f"--batch must be at least 1, got {min(batches)}.",
            fix="Pass 1 or more, or leave it out for 1, 2, 4 and 8.",
        )
    if problems := absurd(batches or (), rate, seconds):
        raise UsageError(
            f"{'; '.join(problems)}.",
            fix="Pass smaller values.",
        )
    if (rate is not None or seconds is not None) and found != "server":
        raise UsageError(
            f"--rate and --serve-seconds need --scenario server, got {name}.",
            fix="Add --scenario server, or leave them out.",
        )
    for option, number in (("--rate", rate), ("--serve-seconds", seconds)):
        if number is not None and not 0 < number < math.inf:
            raise UsageError(
                f"{option} must be a positive number, got {number:g}.",
                fix="Pass e.g. 20, or leave it out.",
            )
    return found
