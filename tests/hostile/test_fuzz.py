"""Fifty hostile inputs of each kind; `python -m tests.hostile` runs any number."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from hostile.campaign import Job, Result, Worker, tallies
from hostile.targets import TARGETS

SEED, COUNT = 14, 50
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="memory is limited by setrlimit")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all targets, which imports everything once."""
    process = Worker()
    yield process
    process.close()


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_inputs(worker: Worker, target: str) -> None:
    """Inputs are accepted or refused with one readable error, in time, without side effects."""
    result = Result(target)
    for tally in tallies(worker, Job(target, SEED, 0, COUNT)):
        result.add(tally)
    assert result.inputs >= COUNT
    assert result.accepted, "every input was refused: nothing but the first check was attacked"
    if result.causes:
        pytest.fail(failures(result), pytrace=False)


def failures(result: Result) -> str:
    lines = []
    for cause, count in result.causes.items():
        shown = next(f for f in result.failures if f["cause"] == cause)
        lines += [f"{count} x {cause}", f"  python -m tests.hostile {shown['case']}",
                  f"  {'; '.join(shown['steps'])[:300]}"]  # fmt: skip
    return "\n".join(lines)
