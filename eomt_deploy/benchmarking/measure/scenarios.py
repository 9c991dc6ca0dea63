"""Load as a server sees it: requests that come when they like, and a queue that is finite."""

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
"""``single``: one image after the other; ``offline``: growing batches, for throughput;
``server``: Poisson arrivals at a rate."""
SCENARIOS: tuple[Scenario, ...] = ("single", "offline", "server")

LOADS = (0.5, 0.8, 1.1)
"""Shares of what one stream can do, where the user names no rate; the last one is too much."""
QUEUE = 16
MOST_BATCH, MOST_RATE, MOST_SECONDS, MOST_REQUESTS = 4096, 100_000, 86_400, 10_000_000
"""Images of one call, requests a second, seconds of one rate, and requests of one rate."""
STUCK = 3
"""Sleeps after which the clock had not moved on: it never will."""


@dataclass(frozen=True)
class Served:
    """What became of the requests of one run.

    Attributes:
        row, runtime: what served them.
        rate: requests a second that were sent, on average.
        latencies: milliseconds from arrival to answer, in the order of the answers.
        lost: requests that found the queue full.
        seconds: until the last answer.
        queue: requests that may wait.
        problem: why nothing could be sent; empty where it could.
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
        """Why its times cannot be believed; None if they can."""
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
    def throughput(self) -> float:
        """Answers a second."""
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
            problem=data.get("problem", ""),  # older reports have none
            **{name: data[name] for name in names},
        )


def poisson_arrivals(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Seconds at which requests come, with exponential gaps of mean ``1 / rate``."""
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
    """Answer requests one at a time, first come first served.

    Args:
        work: answers one request, and returns when it is answered.
        arrivals: seconds from the start, in order.
        queue: requests that may wait; one more is lost.
        now, sleep: the clock.

    Returns:
        milliseconds from arrival to answer, the number lost, and seconds in all. It ends early
        where the clock stands still or goes backwards; the seconds are not above 0 then.
    """
    start = now()
    waiting: deque[float] = deque()
    latencies: list[float] = []
    lost = coming = stuck = 0
    while coming < len(arrivals) or waiting:
        elapsed = now() - start
        # While one is served nobody leaves the queue: looking afterwards loses the same ones.
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
    """What is larger than anything that can be measured, with the maximum; empty if nothing is."""
    given = (
        ("batch", max(batches, default=0), MOST_BATCH),
        ("rate", rate or 0, MOST_RATE),
        ("serve-seconds", seconds or 0, MOST_SECONDS),
        ("rate times serve-seconds", (rate or 0) * (seconds or 0), MOST_REQUESTS),
    )
    return [
        f"{name} must be at most {most:,}, got {value:,}"
        for name, value, most in given
        if most < value < math.inf
    ][:1]


def no_clock(row: str, runtime: str, times: Sequence[float]) -> list[Served]:
    """What stands in a report where no rate could be chosen; empty if ``times`` can be believed."""
    problem = clock_problem(times)
    return [Served(row, runtime, 0.0, (), 0, 0.0, problem=problem)] if problem else []


def check_scenario(
    name: str, batches: Sequence[int] | None, rate: float | None, seconds: float | None
) -> Scenario:
    """The scenario of that name, if the options go with it.

    Raises:
        UsageError: it does not exist, or an option belongs to another.
    """
    found: Scenario | None = next((known for known in SCENARIOS if known == name), None)
    if found is None:
        raise UsageError(f"There is no scenario {name!r}.", fix=f"Known: {', '.join(SCENARIOS)}.")
    if batches and found != "offline":
        raise UsageError("--batch goes with --scenario offline.")
    if batches and min(batches) < 1:
        raise UsageError("A batch has 1 image or more.")
    if problems := absurd(batches or (), rate, seconds):
        raise UsageError(f"This cannot be measured: {'; '.join(problems)}.")
    if (rate is not None or seconds is not None) and found != "server":
        raise UsageError("--rate and --serve-seconds go with --scenario server.")
    if any(number is not None and not 0 < number < math.inf for number in (rate, seconds)):
        raise UsageError("Rates and seconds are positive numbers.")
    return found
