"""Statistics of samples: percentiles, variation, and whether two sets of samples differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Samples = Sequence[float]
Finding = Literal["no difference", "faster", "slower"]

PERCENTILES = (50, 90, 95, 99)
LEVEL = 0.99
"""Confidence level of the intervals: 1% of the comparisons of equal engines find a difference."""
NEGLIGIBLE = 0.015
"""Smaller differences are ignored: two copies of one engine differ by up to this share because of
their memory addresses (benchmarks/resolution.py)."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """Speedup over a base, with its confidence interval.

    Attributes:
        value: median over the rounds of base time / row time; if unpaired, ratio of the medians.
        low, high: bootstrap interval at :data:`LEVEL`.
        paired: whether both were measured in the same rounds, so that drift cancels.
    """

    value: float
    low: float
    high: float
    paired: bool = True

    @property
    def finding(self) -> Finding:
        """A difference needs an interval entirely further from 1 than :data:`NEGLIGIBLE`."""
        if self.low <= 1 + NEGLIGIBLE and self.high >= 1 - NEGLIGIBLE:
            return "no difference"
        return "faster" if self.low > 1 else "slower"

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": round(self.value, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "level": LEVEL,
            "paired": self.paired,
            "finding": self.finding,
        }


def clock_problem(milliseconds: Samples) -> str | None:
    """Reason why the values are not valid times; None if they are."""
    for time in milliseconds:
        if not math.isfinite(time):
            return f"a time of {time} ms was measured"
        if time < 0:
            return f"a time of {time:.4g} ms was measured: the clock went backwards"
        if time == 0:
            return "a time of 0 ms was measured: the clock did not advance"
    return None


def rate(count: float, milliseconds: float) -> float:
    """Rate per second, if ``count`` items take that time; NaN if the time is invalid."""
    return 1000 * count / milliseconds if 0 < milliseconds < math.inf else math.nan


def rounded(value: float | None, digits: int) -> float | None:
    """The rounded value; None for infinity and NaN, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def share_of(part: Samples, total: Samples) -> float | None:
    """Median of a part over the median of the total; None if a time is invalid."""
    if clock_problem(part) or clock_problem(total):
        return None
    return percentile(part, 50) / percentile(total, 50)


def percentile(samples: Samples, percent: float) -> float:
    """Value that ``percent`` of the samples do not exceed."""
    return float(np.percentile(samples, percent))


def variation(samples: Samples, images: int = 1) -> float:
    """Coefficient of variation: standard deviation over mean; infinite for invalid times.

    Args:
        samples: times in the order of the rounds.
        images: number of images that were measured in turn. The times of each image are compared
            with their own mean, because a larger image takes longer in every round.
    """
    if images > 1:
        parts = [np.asarray(samples[first::images], float) for first in range(images)]
        parts = [part for part in parts if len(part)]
        means = [float(np.mean(part)) for part in parts]
        free = len(samples) - len(parts)
        if free < 1 or not all(0 < mean < math.inf for mean in means):
            return math.inf
        squares = [np.sum((p / m - 1) ** 2) for p, m in zip(parts, means, strict=True)]
        return math.sqrt(float(sum(squares)) / free)
    mean = float(np.mean(samples))
    return float(np.std(samples)) / mean if 0 < mean < math.inf else math.inf


def speedup(
    base: Samples, row: Samples, *, paired: bool = True, resamples: int = RESAMPLES, seed: int = 0
) -> Ratio:
    """Speedup of a row over ``base``, with its bootstrap interval.

    Paired samples are divided round by round, so that a slowdown of a complete round cancels. The
    bootstrap draws blocks of neighbouring rounds, because other load lasts longer than one round.

    Args:
        base, row: valid times in milliseconds, in the order of the rounds.
        paired: whether both come from the same rounds.

    Raises:
        ValueError: paired samples differ in number.
    """
    a, b = np.asarray(base, float), np.asarray(row, float)
    if paired and len(a) != len(b):
        raise ValueError(f"paired samples must be equal in number, got {len(a)} and {len(b)}")
    rng = np.random.default_rng(seed)
    first = _blocks(rng, len(a), resamples)
    if paired:
        value = np.median(a / b)
        ratios = np.median((a / b)[first], axis=1)
    else:
        value = np.median(a) / np.median(b)
        second = _blocks(rng, len(b), resamples)
        ratios = np.median(a[first], axis=1) / np.median(b[second], axis=1)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Ratio(float(value), float(low), float(high), paired)


def _blocks(rng: np.random.Generator, count: int, resamples: int) -> npt.NDArray[np.int64]:
    """Indices [resamples, count]: blocks of neighbours that wrap around at the end."""
    length = max(1, round(count ** (1 / 3)))
    starts = rng.integers(count, size=(resamples, -(-count // length), 1))
    indices = (starts + np.arange(length)) % count
    return indices.reshape(resamples, -1)[:, :count]


STEADY_WINDOW = 5
STEADY_TOLERANCE = 0.05


def is_steady(samples: Samples, window: int = STEADY_WINDOW) -> bool:
    """Whether the last calls took as long as those before them, which ends the warm-up."""
    if len(samples) < 2 * window:
        return False
    last = float(np.median(samples[-window:]))
    before = float(np.median(samples[-2 * window : -window]))
    return abs(last - before) <= STEADY_TOLERANCE * before
