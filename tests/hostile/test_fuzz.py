"""Some hundred hostile inputs of each kind; `python -m tests.hostile` runs as many as wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from hostile.campaign import Campaign, Result, split
from hostile.targets import TARGETS

SEED, COUNT = 14, 200
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="memory is limited by setrlimit")


@pytest.fixture(scope="module")
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """All selected targets at once, in as many processes as there are cores."""
    names = [item.callspec.params["target"] for item in request.session.items
             if getattr(item, "originalname", "") == test_hostile_inputs.__name__]  # fmt: skip
    jobs = [job for name in names for job in split(name, SEED, 0, COUNT)]
    running = Campaign(jobs, min(os.cpu_count() or 1, len(jobs), 4), lambda target: None)
    yield running
    running.stop()


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_inputs(campaign: Campaign, target: str) -> None:
    """Accepted, or refused by one readable error, in time and memory, with nothing on the side."""
    result = campaign.wait(target)
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
