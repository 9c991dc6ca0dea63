"""Timing in turn, after a warm-up that ends when the times are steady.

A CPU function is timed by ``perf_counter``; work on a GPU by events on its own stream
(:mod:`eomt_deploy.benchmarking.measure.gpu_clock`). Raw samples are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from eomt_deploy.benchmarking.measure.statistics import clock_problem, is_steady
from eomt_deploy.errors import DeviceError, UsageError

Work = Callable[[], object]


class Timer(Protocol):
    """How one call is timed."""

    def measure(self, work: Work) -> tuple[float, float]:
        """Milliseconds until the work was done, and until the call returned to the host."""


class CpuTimer:
    """For functions that return when they are done."""

    def measure(self, work: Work) -> tuple[float, float]:
        start = time.perf_counter_ns()
        work()
        elapsed = (time.perf_counter_ns() - start) / 1e6
        return elapsed, elapsed


class SynchronizingTimer:
    """For work on a device that can be waited for, but records no events of ours."""

    def __init__(self, synchronize: Callable[[], object]) -> None:
        self._synchronize = synchronize

    def measure(self, work: Work) -> tuple[float, float]:
        self._synchronize()  # what came before is not ours
        start = time.perf_counter_ns()
        work()
        host = time.perf_counter_ns() - start
        self._synchronize()
        return (time.perf_counter_ns() - start) / 1e6, host / 1e6


CPU_TIMER = CpuTimer()


@dataclass(frozen=True)
class Job:
    """Something to be timed, and by which clock."""

    work: Work
    timer: Timer = CPU_TIMER


@dataclass(frozen=True)
class Rounds:
    """How often everything runs.

    Attributes:
        iterations: measured rounds.
        warmup: rounds before them, at least.
        max_warmup: rounds after which the warm-up ends though the times are not steady; None
            makes it exactly ``warmup`` rounds.
        seconds: the measured rounds end after this time, but not before :data:`LEAST`.
        pause: seconds of rest before each round, against heat.
    """

    iterations: int
    warmup: int = 3
    max_warmup: int | None = None
    seconds: float | None = None
    pause: float = 0.0

    def __post_init__(self) -> None:
        if self.iterations < LEAST or self.warmup < 0:
            raise UsageError(
                f"{self.warmup} warm-up and {self.iterations} measured rounds say nothing.",
                fix=f"Measure at least {LEAST} rounds, better 20.",
            )
        limit = self.seconds
        if not 0 <= self.pause < math.inf or (limit is not None and not 0 < limit < math.inf):
            raise UsageError("Pauses and time limits are positive numbers of seconds.")
        for name, value, most, unit in (
            ("iterations", self.iterations, MOST_ROUNDS, ""),
            ("warmup", self.warmup, MOST_ROUNDS, ""),
            ("max_warmup", self.max_warmup or 0, MOST_ROUNDS, ""),
            ("pause", self.pause, MOST_PAUSE, " seconds"),
            ("seconds", limit or 0, MOST_SECONDS, " seconds"),
        ):
            if value > most:
                raise UsageError(f"{name} must be at most {most:,}{unit}, got {value:,}.")


LEAST = 2
"""Rounds that say something."""
MOST_ROUNDS, MOST_PAUSE, MOST_SECONDS = 1_000_000, 3600, 7 * 86_400
"""An hour before each round, and a week for all of them: more is a mistake."""


@dataclass
class Measured:
    """Milliseconds of every measured call, by job, in the order of the rounds.

    Attributes:
        samples: until the work was done.
        host: until the call returned; equals ``samples`` on a CPU.
        warmup: rounds that were not counted.
        steady: whether the job's times no longer changed, at the end of the warm-up or over the
            measured rounds.
    """

    samples: dict[str, list[float]]
    host: dict[str, list[float]]
    warmup: int = 0
    steady: dict[str, bool] = field(default_factory=dict)


def measure(
    jobs: Mapping[str, Job],
    rounds: Rounds,
    *,
    progress: Callable[[int], None] = lambda _: None,
    watch: Callable[[], object] = lambda: None,
    seed: int = 0,
) -> Measured:
    """Time every job once a round, in an order drawn anew, so that drift hits all alike.

    Args:
        progress: told each finished round, warm-up included.
        watch: called after each measured round, to look at clocks and temperatures.
    """
    rng = np.random.default_rng(seed)
    names = list(jobs)
    done = 0

    def one_round(samples: dict[str, list[float]], host: dict[str, list[float]]) -> None:
        nonlocal done
        if rounds.pause:
            time.sleep(rounds.pause)
            jobs[names[0]].timer.measure(jobs[names[0]].work)  # wakes up what fell asleep
        for index in rng.permutation(len(names)):
            name = names[index]
            elapsed, until_return = jobs[name].timer.measure(jobs[name].work)
            samples[name].append(elapsed)
            host[name].append(until_return)
        done += 1
        progress(done)

    warm: dict[str, list[float]] = {name: [] for name in names}
    unused: dict[str, list[float]] = {name: [] for name in names}
    limit = rounds.warmup if rounds.max_warmup is None else rounds.max_warmup
    while done < rounds.warmup or (done < limit and not all(map(is_steady, warm.values()))):
        one_round(warm, unused)
    steady = {n: rounds.max_warmup is None or is_steady(times) for n, times in warm.items()}
    result = Measured({n: [] for n in names}, {n: [] for n in names}, done, steady)
    start = time.perf_counter()
    for index in range(rounds.iterations):
        spent = time.perf_counter() - start
        if rounds.seconds is not None and index >= LEAST and spent > rounds.seconds:
            break
        one_round(result.samples, result.host)
        watch()
    for name, times in result.samples.items():
        # Rare and long rounds may be measured before a warm-up could be seen to end.
        steady[name] = steady[name] or is_steady(times, max(1, len(times) // 2))
    return result


def interleave(
    works: Mapping[str, Work],
    *,
    warmup: int,
    iterations: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """:func:`measure` for functions that return when they are done.

    Returns:
        milliseconds of every call, by name, in the order of the rounds.

    Raises:
        DeviceError: the clock gave a value that is not a time.
    """
    jobs = {name: Job(work) for name, work in works.items()}
    samples = measure(jobs, Rounds(iterations, warmup), progress=progress).samples
    for times in samples.values():
        if problem := clock_problem(times):
            raise DeviceError(f"Nothing can be timed here: {problem}.", fix="Try it again.")
    return samples
