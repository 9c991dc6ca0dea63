from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.benchmarking.measure.statistics import (
    Ratio,
    clock_problem,
    is_steady,
    percentile,
    rate,
    rounded,
    share_of,
    speedup,
    variation,
)


def noisy(seed: int, count: int = 60, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of one run: drift and other load affect both, and each has its own noise."""
    rng = np.random.default_rng(seed)
    drift = 1 + 0.2 * np.sin(np.arange(count) / 9) + np.where(rng.random(count) < 0.1, 0.5, 0)
    rows = [10 * drift * rng.lognormal(0, 0.02, count) for _ in range(2)]
    return rows[0], rows[1] * factor


def test_equal_samples_do_not_differ_and_five_percent_does():
    same = [speedup(*noisy(seed)).finding for seed in range(40)]
    assert same.count("no difference") >= 37
    slowed = [speedup(*noisy(seed, factor=1.05)).finding for seed in range(40)]
    assert slowed.count("slower") >= 37
    quicker = [speedup(*noisy(seed, factor=1 / 1.05)).finding for seed in range(40)]
    assert quicker.count("faster") >= 37


def test_only_paired_samples_detect_a_small_difference():
    base, row = noisy(3, factor=1.05)
    paired, unpaired = speedup(base, row), speedup(base, row, paired=False)
    assert paired.high - paired.low < unpaired.high - unpaired.low
    assert not unpaired.paired
    with pytest.raises(ValueError, match="equal in number"):
        speedup(base, row[:-1])


@given(st.lists(st.floats(0.1, 1000), min_size=2, max_size=40), st.floats(0.2, 5))
def test_ratio_of_scaled_samples_is_the_scale(samples, factor):
    ratio = speedup(samples, [factor * s for s in samples], resamples=50)
    assert ratio.value == pytest.approx(1 / factor)
    assert ratio.low == pytest.approx(1 / factor)
    assert ratio.high == pytest.approx(1 / factor)


def test_the_same_samples_give_the_same_interval():
    base, row = noisy(1)
    assert speedup(base, row) == speedup(base, row)


def test_findings_leave_one_and_its_neighbourhood_out():
    assert Ratio(1.02, 0.99, 1.05).finding == "no difference"
    assert Ratio(1.006, 1.003, 1.008).finding == "no difference"  # two copies of one engine
    assert Ratio(1.05, 1.02, 1.09).finding == "faster"
    assert Ratio(0.9, 0.85, 0.98).to_dict()["finding"] == "slower"


def test_percentiles_and_variation():
    samples = [float(i) for i in range(1, 102)]
    assert percentile(samples, 50) == 51
    assert percentile(samples, 95) == 96
    assert variation([2.0, 2.0]) == 0
    assert variation([1.0, 3.0]) == 0.5


def test_steady():
    assert is_steady([5.0] * 10)
    assert is_steady([9.0] * 5 + [5.1] * 5 + [5.0] * 5)
    assert not is_steady([5.0] * 9)
    assert not is_steady([9.0] * 5 + [5.0] * 5)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([5.0, -3.25, 5.0], "a time of -3.25 ms was measured: the clock went backwards"),
        ([0.0, 0.0], "the clock did not advance"),
        ([1.0, float("nan")], "a time of nan ms"),
        ([float("inf"), 1.0], "a time of inf ms"),
    ],
)
def test_what_cannot_be_a_time(samples, words):
    assert words in clock_problem(samples)
    assert clock_problem([5.0, 1e-6]) is None
    assert variation(samples) > 0.1 or variation(samples) == np.inf
    assert share_of(samples, [1.0, 1.0]) is None
    assert share_of([1.0, 1.0], samples) is None


def test_rates_and_json_of_what_is_no_time():
    assert rate(4, 2.0) == 2000
    assert all(np.isnan(rate(1, time)) for time in (0.0, -1.0, np.nan, np.inf))
    assert [rounded(v, 2) for v in (1.234, None, np.nan, -np.inf)] == [1.23, None, None, None]
    assert share_of([1.0, 3.0], [4.0]) == 0.5
