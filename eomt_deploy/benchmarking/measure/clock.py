"""Interleaved timing, after a warm-up that ends when the times are steady.

CPU functions are timed with ``perf_counter``, GPU work with events on its own stream
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
    """Clock that times one call."""

    def measure(self, work: Work) -> tuple[float, float]:
        """Time one call.

        Returns:
            milliseconds until the work was done, and until the call returned to the host.
        """


class CpuTimer:
    """Timer for functions that return when their work is done."""

    def measure(self, work: Work) -> tuple[float, float]:
        start = time.perf_counter_ns()
        work()
        elapsed = (time.perf_counter_ns() - start) / 1e6
        return elapsed, elapsed


class SynchronizingTimer:
    """Timer for a device that can be synchronized, but on which we cannot record events."""

    def __init__(self, synchronize: Callable[[], object]) -> None:
        self._synchronize = synchronize

    def measure(self, work: Work) -> tuple[float, float]:
        self._synchronize()  # earlier work does not count
        start = time.perf_counter_ns()
        work()
        host = time.perf_counter_ns() - start
        self._synchronize()
        return (time.perf_counter_ns() - start) / 1e6, host / 1e6


CPU_TIMER = CpuTimer()


@dataclass(frozen=True)
class Job:
    """Work to be timed, and its timer."""

    work: Work
    timer: Timer = CPU_TIMER


@dataclass(frozen=True)
class Rounds:
    """Number of rounds; each round runs every job once.

    Attributes:
        iterations: number of measured rounds.
        warmup: minimum number of warm-up rounds.
        max_warmup: maximum number of warm-up rounds if the times do not become steady; None runs
            exactly ``warmup`` rounds.
        seconds: time limit of the measured rounds; at least :data:`MIN_ROUNDS` rounds are measured.
        pause: seconds of rest before each round, to let the device cool down.
    """

    iterations: int
    warmup: int = 3
    max_warmup: int | None = None
    seconds: float | None = None
    pause: float = 0.0

    def __post_init__(self) -> None:
        if self.iterations < MIN_ROUNDS or self.warmup < 0:
            raise UsageError(
                f"Too few iterations: {self.warmup} warm-up, {self.iterations} measured.",
                fix=f"Measure at least {MIN_ROUNDS} rounds, e.g. 20, after 0 or more warm-ups.",
            )
        limit = self.seconds
        if not 0 <= self.pause < math.inf or (limit is not None and not 0 < limit < math.inf):
            raise UsageError(
                "`pause` must be 0 seconds or more and `seconds` more than 0, got "
                f"pause {self.pause:g} and seconds {'unlimited' if limit is None else limit}.",
                fix="Pass e.g. --pause 0 and --seconds 60, or leave them out.",
            )
        for name, value, maximum, unit in (
            ("iterations", self.iterations, MAX_ROUNDS, ""),
            ("warmup", self.warmup, MAX_ROUNDS, ""),
            ("max_warmup", self.max_warmup or 0, MAX_ROUNDS, ""),
            ("pause", self.pause, MAX_PAUSE, " seconds"),
            ("seconds", limit or 0, MAX_SECONDS, " seconds"),
        ):
            if value > maximum:
                raise UsageError(
                    f"{name} must be at most {maximum:,}{unit}, got {value:,}.",
                    fix="Pass a smaller number, or leave it out.",
                )


def rounds_line(rounds: Rounds, needed: int) -> str:
    """What will be measured, in one sentence, before it starts.

    Args:
        needed: minimum number of rounds for a valid result.
    """
    low, high = rounds.warmup, rounds.max_warmup or rounds.warmup
    warmup = f"{low} to {high}" if high > low else f"{low}"
    limit = "" if rounds.seconds is None else f", at most {rounds.seconds:g} s"
    return (
        f"{warmup} warm-up and {rounds.iterations} measured rounds{limit}; a valid result needs at "
        f"least {needed} measured rounds"
    )


MIN_ROUNDS = 2
"""Minimum number of measured rounds."""
MAX_ROUNDS, MAX_PAUSE, MAX_SECONDS = 1_000_000, 3600, 7 * 86_400
"""Upper limits in rounds and seconds; a larger value is a mistake."""


@dataclass
class Measured:
    """Milliseconds of every measured call, by job, in the order of the rounds.

    Attributes:
        samples: times until the work was done.
        host: times until the call returned; equal to ``samples`` on a CPU.
        warmup: number of warm-up rounds.
        steady: whether the times of each job were steady, at the end of the warm-up or over the
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
    """Time every job once per round, in random order, so that drift affects all jobs equally.

    Args:
        jobs: work and timers, by name.
        rounds: number of rounds.
        progress: called with the number of finished rounds, including the warm-up.
        watch: called after each measured round, to sample clocks and temperatures.
        seed: seed of the random order.
    """
    rng = np.random.default_rng(seed)
    names = list(jobs)
    done = 0

    def one_round(samples: dict[str, list[float]], host: dict[str, list[float]]) -> None:
        nonlocal done
        if rounds.pause:
            time.sleep(rounds.pause)
            jobs[names[0]].timer.measure(jobs[names[0]].work)  # ends the idle state of the device
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
        if rounds.seconds is not None and index >= MIN_ROUNDS and spent > rounds.seconds:
            break
        one_round(result.samples, result.host)
        watch()
    for name, times in result.samples.items():
        # With few, long rounds the warm-up may be too short for the steady-state check.
        steady[name] = steady[name] or is_steady(times, max(1, len(times) // 2))
    return result


def interleave(
    works: Mapping[str, Work],
    *,
    warmup: int,
    iterations: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Run :func:`measure` for functions that return when their work is done.

    Returns:
        milliseconds of every call, by name, in the order of the rounds.

    Raises:
        DeviceError: the clock returned an invalid time.
    """
    jobs = {name: Job(work) for name, work in works.items()}
    samples = measure(jobs, Rounds(iterations, warmup), progress=progress).samples
    for times in samples.values():
        if problem := clock_problem(times):
            raise DeviceError(
                f"The clock of this machine is not usable: {problem}.", fix="Try again."
            )
    return samples
