"""Timing of functions that run on the CPU, or that return when the device is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]


def interleave(
    works: Mapping[str, Work],
    *,
    warmup: int,
    iterations: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Time each function ``iterations`` times, in turn, so that drift hits all alike.

    Args:
        works: functions by name; run in this order within a round.
        warmup: rounds before the first one that counts.
        iterations: rounds that count.
        progress: told each finished round, warm-up included.

    Returns:
        milliseconds of every call, by name, in the order of the rounds.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    for round_index in range(warmup + iterations):
        for name, work in works.items():
            start = time.perf_counter_ns()
            work()
            elapsed = (time.perf_counter_ns() - start) / 1e6
            if round_index >= warmup:
                samples[name].append(elapsed)
        progress(round_index + 1)
    return samples
